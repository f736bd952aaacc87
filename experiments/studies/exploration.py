"""Study of exploration: which explorer's data improve a world model most, and where?

Every arm gets as many emulator steps, the same base model, the same fine-tuning and the same test
windows; differences are paired by window. Run it again to continue, with more arms too: finished
stages are kept.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.images import png
from envs.utils.progress import console, progress
from envs.utils.ray_session import ray_session
from experiments.pipeline.config import pipeline_preset
from experiments.reports.places import place_map, read_frames
from experiments.studies.arguments import ExplorationArgs
from experiments.studies.exploration_cell import ARMS, DATA, StudyCell
from experiments.studies.exploration_runs import run_study_cell
from experiments.studies.exploration_tables import (
    MAP_COLOURS,
    PLAYER_COLOURS,
    cell_rows,
    study_markdown,
    study_rows,
)
from exploration.train import game_name
from worldmodel.evaluation.ray_tasks import map_ray_tasks


def run(args: ExplorationArgs) -> None:
    """Run the missing cells, then print the table and the names of the files."""
    cells = plan_cells(args)
    elsewhere = cells_elsewhere(args, cells)
    parallel = args.parallel > 1
    with ray_session(args.ray_address) if parallel else nullcontext():
        calls = [(cell,) for cell in cells]
        results: Iterator[tuple[int, Any]]
        results = ((number, run_study_cell(*call)) for number, call in enumerate(calls))
        if parallel:
            results = map_ray_tasks(run_study_cell, calls, at_a_time=args.parallel)
        with progress("cells", len(cells)) as bar:
            for number, _ in results:
                write_study(args.out, cells, elsewhere)
                bar.advance(note=f"{cells[number].game}, seed {cells[number].seed}")
    console.print((args.out / "exploration.md").read_text(), markup=False)
    console.print(f"written to {args.out}: exploration.json, exploration.md")


def plan_cells(args: ExplorationArgs) -> list[StudyCell]:
    """Return the cells of the flags. Raises InputError for an unknown arm or data."""
    for given, known, flag in ((args.arms, ARMS, "--arms"), (args.data, DATA, "--data")):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise InputError(f"{flag} {' '.join(unknown)}: choose from {', '.join(known)}")
    if not args.games or not args.seeds or args.parallel < 1:
        raise InputError("games, --seeds and --parallel: give 1 or more of each")
    if ARMS[0] not in args.arms:
        raise InputError(f"--arms: {ARMS[0]} is the baseline of every difference: add it")
    if "agent-archive" in args.arms and "archive-entropy" not in args.arms:
        raise InputError("--arms: agent-archive begins in the archive of archive-entropy: add it")
    if unknown := [arm for arm in args.factorial if arm not in args.arms or arm == ARMS[0]]:
        raise InputError(f"--factorial {' '.join(unknown)}: choose from the other --arms")
    preset = pipeline_preset(args.preset)
    training: dict[str, dict[str, Any]] = {
        "decoder_finetune": preset.decoder_finetune | {"iterations": args.decoder_iterations},
        "dynamics_finetune": preset.dynamics_finetune | {"iterations": args.dynamics_iterations},
    }
    for name in ("tokenizer", "dynamics"):
        if (iterations := getattr(args, f"base_{name}_iterations")) is not None:
            training[name] = {"iterations": iterations}
    explore: dict[str, Any] = {}
    if args.explore_epochs is not None:
        explore["epochs"] = args.explore_epochs
    if args.precision != "auto":
        explore["precision"] = args.precision
    return [
        StudyCell(
            out=args.out.absolute(),
            game=game_name(game),
            seed=seed,
            preset=args.preset,
            arms=tuple(arm for arm in ARMS if arm in args.arms),
            data=args.data,
            factorial=args.factorial,
            steps=args.steps,
            base_steps=args.base_steps,
            test_episodes=args.test_episodes,
            limit=args.limit,
            training=training,
            explore=explore,
            precision=args.precision,
            threads=1 if args.parallel > 1 else 0,
        )
        for game in args.games
        for seed in args.seeds
    ]


def cells_elsewhere(args: ExplorationArgs, cells: Sequence[StudyCell]) -> list[dict[str, Any]]:
    """Return the cells of --results. Raises InputError for other settings or a seed met twice."""
    found: list[dict[str, Any]] = []
    seen = {(cell.game, cell.seed): "this study" for cell in cells}
    for path in args.results:
        try:
            records = json.loads(path.read_text())["cells"]
            keys = [(record["game"], record["seed"]) for record in records]
            settings = [record["settings"] for record in records]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--results {path}: no exploration.json of this study: {error!r}"
            ) from None
        for (game, seed), other in zip(keys, settings, strict=True):
            if (game, seed) in seen:
                raise InputError(
                    f"--results {path}: {game}, seed {seed} is in {seen[game, seed]} already"
                )
            seen[game, seed] = str(path)
            mine = cells[0].settings
            names = {**mine, **other}  # precision is only recorded if it was chosen
            if different := [name for name in names if other.get(name) != mine.get(name)]:
                name = different[0]
                raise InputError(
                    f"--results {path}: {game}, seed {seed} was run with {name} {other.get(name)}, "
                    f"this study with {mine.get(name)}"
                )
        found += records
    return found


def write_study(
    out: Path, cells: Sequence[StudyCell], elsewhere: Sequence[dict[str, Any]] = ()
) -> None:
    """Write the tables of the finished cells and of those that were run `elsewhere`."""
    finished = [cell for cell in cells if is_finished(cell)]
    records = [describe_cell(cell) for cell in finished]
    records = sorted([*records, *elsewhere], key=itemgetter("game", "seed"))
    rows = list(study_rows(records))
    maps = {}
    for cell in finished:
        if cell.game not in maps:
            maps[cell.game] = f"map-{cell.game}.png"
            write_atomic(out / maps[cell.game], draw_map(cell))
    write_json_atomic(out / "exploration.json", {"rows": rows, "cells": records})
    write_atomic(out / "exploration.md", study_markdown(rows, records, maps).encode())


def is_finished(cell: StudyCell) -> bool:
    """Return whether a cell was run to its end with these settings, all of the arms among them."""
    path = cell.root / "cell.json"
    return path.exists() and json.loads(path.read_text()).get("settings") == cell.settings


def describe_cell(cell: StudyCell) -> dict[str, Any]:
    """Return the record of a cell: what its arms did, its settings and its own rows."""
    record: dict[str, Any] = json.loads((cell.root / "cell.json").read_text())
    return record | {"rows": list(cell_rows(cell))}


def draw_map(cell: StudyCell) -> bytes:
    """Return the map of where base data and arms of a cell went, as PNG."""
    players = ("base", *cell.arms)
    frames = [read_frames(cell.root / "data" / player, cell.game) for player in players]
    return png(place_map(frames, [MAP_COLOURS[PLAYER_COLOURS[player]] for player in players]))
