"""Study of exploration: which explorer's data improve a world model most, and where?

Every arm gets as many emulator steps, the same base model, the same fine-tuning and the same test
windows; differences are paired by window. Run it again to continue: finished stages are kept.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.images import png
from envs.utils.progress import console, progress
from envs.utils.ray_session import ray_session
from experiments.pipeline.config import pipeline_preset
from experiments.reports.page import Table
from experiments.reports.places import place_map, read_frames
from experiments.studies.arguments import ExplorationArgs
from experiments.studies.exploration_cell import (
    ARMS,
    CONTROL_TESTS,
    DATA,
    FAR,
    TESTS,
    StudyCell,
)
from experiments.studies.exploration_runs import run_study_cell
from exploration.train import game_name
from worldmodel.evaluation.feature_networks import network_name
from worldmodel.evaluation.ray_tasks import map_ray_tasks
from worldmodel.statistics import estimate, paired_estimate

METRICS = ("psnr", "moving_psnr", "ssim", "delta_psnr", "reconstruction")
MAP_COLOURS = {
    "blue": "#0067a5",
    "orange": "#d5780b",
    "yellow": "#e8d44d",
    "green": "#00a878",
    "violet": "#8f5fd0",
    "red": "#d62839",
    "cyan": "#2ec4e6",
    "pink": "#ff8fc7",
    "brown": "#8d6e4b",
    "grey": "#9a9a9a",
    "olive": "#7d8a1e",
    "white": "#ffffff",
}
"""Colours of a map by their names."""
PLAYER_COLOURS = dict(zip(("base", *ARMS), MAP_COLOURS, strict=True))
"""Names of the colours of base data and arms."""
MAP_CAPTION = (
    "Where base data and arms of the first seed went: screens by their ranks along the two "
    "directions in which they differ most. A cell has the colour of the first of these that saw it:"
)
UNSEEN_TEST = "unseen"
"""Windows of all test sets whose given frame is far from every frame of the base data."""


def run(args: ExplorationArgs) -> None:
    """Run the missing cells, then print the table and the names of the files."""
    cells = plan_cells(args)
    parallel = args.parallel > 1
    with ray_session(args.ray_address) if parallel else nullcontext():
        calls = [(cell,) for cell in cells]
        results: Iterator[tuple[int, Any]]
        results = ((number, run_study_cell(*call)) for number, call in enumerate(calls))
        if parallel:
            results = map_ray_tasks(run_study_cell, calls, at_a_time=args.parallel)
        with progress("cells", len(cells)) as bar:
            for number, _ in results:
                write_study(args.out, cells)
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
            explore={} if args.explore_epochs is None else {"epochs": args.explore_epochs},
            threads=1 if args.parallel > 1 else 0,
        )
        for game in args.games
        for seed in args.seeds
    ]


def write_study(out: Path, cells: Sequence[StudyCell]) -> None:
    """Write the tables of the finished cells."""
    finished = [cell for cell in cells if (cell.root / "cell.json").exists()]
    rows = list(study_rows(finished))
    arms = [json.loads((cell.root / "cell.json").read_text()) for cell in finished]
    maps = {}
    for cell in finished:
        if cell.game not in maps:
            maps[cell.game] = f"map-{cell.game}.png"
            write_atomic(out / maps[cell.game], draw_map(cell))
    write_json_atomic(out / "exploration.json", {"rows": rows, "cells": arms})
    write_atomic(out / "exploration.md", study_markdown(rows, arms, maps).encode())


def draw_map(cell: StudyCell) -> bytes:
    """Return the map of where base data and arms of a cell went, as PNG."""
    players = ("base", *cell.arms)
    frames = [read_frames(cell.root / "data" / player, cell.game) for player in players]
    return png(place_map(frames, [MAP_COLOURS[PLAYER_COLOURS[player]] for player in players]))


def study_rows(cells: Sequence[StudyCell]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the study: one for each game, arm, test and data.

    A metric has its mean over the windows of all seeds, and its difference to the random arm as
    [mean, low, high]: with several seeds over their means, with one over its episodes.
    """
    for game in dict.fromkeys(cell.game for cell in cells):
        own = [cell for cell in cells if cell.game == game]
        for arm, data in [("base", ""), *own[0].finetuned]:
            for test in (*TESTS, UNSEEN_TEST):
                model = f"{arm}-{data}" if data else arm
                baseline = f"{ARMS[0]}-{data or own[0].data[0]}"
                scores = [load_scores(cell, model, test) for cell in own]
                others = [load_scores(cell, baseline, test) for cell in own]
                windows = sum(len(each["psnr"]) for each in scores)
                row: dict[str, Any] = {"game": game, "arm": arm, "test": test, "data": data}
                row |= {"seeds": [cell.seed for cell in own], "windows": windows}
                if windows:
                    row |= {
                        metric: compare_to_baseline(scores, others, metric) for metric in METRICS
                    }
                    if "fid" in scores[0]:
                        row["fid"] = compare_distances(scores, others)
                yield row


def load_scores(cell: StudyCell, model: str, test: str) -> dict[str, NDArray[Any]]:
    """Return the scores of the windows of a test, or of those far from the base data in all."""
    names = TESTS if test == UNSEEN_TEST else (test,)
    parts = [dict(np.load(cell.root / "scores" / model / f"{name}.npz")) for name in names]
    if test != UNSEEN_TEST:
        return parts[0]
    by_window = [key for key in parts[0] if key != "fid"]
    scores = {key: np.concatenate([part[key] for part in parts]) for key in by_window}
    far = scores["distance"] > FAR
    return {key: values[far] for key, values in scores.items()}


def compare_to_baseline(
    values: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any]:
    """Return the mean of a metric and its paired difference to the baseline, over seeds."""
    mean = np.concatenate([each[metric] for each in values])
    mean = mean[np.isfinite(mean)]
    seeds = [paired_estimate([pair], metric) for pair in zip(values, baseline, strict=True)]
    seeds = [seed for seed in seeds if not math.isnan(seed.mean)]
    if not seeds:
        return {"mean": None, "difference": None}
    means = torch.tensor([seed.mean for seed in seeds])
    result = estimate(means) if len(seeds) > 1 else seeds[0]
    interval = [result.mean, result.low, result.high]
    return {
        "mean": float(mean.mean()),
        "difference": [None if math.isnan(value) else value for value in interval],
    }


def compare_distances(
    values: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the mean Frechet distance over seeds and its difference to the baseline.

    A set of windows has one distance, so that a single seed has no interval.
    """
    mine, others = (
        torch.tensor([float(each["fid"]) for each in side]) for side in (values, baseline)
    )
    result = estimate(mine - others)
    interval = [result.mean, result.low, result.high]
    return {
        "mean": float(mine.mean()),
        "difference": [None if math.isnan(value) else value for value in interval],
    }


def study_markdown(
    rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]], maps: Mapping[str, str]
) -> str:
    """Return the tables as Markdown: differences to the random arm, means, where the arms went.

    `maps` has the file name of the map of each game.
    """
    parts = []
    for game in dict.fromkeys(row["game"] for row in rows):
        own = [row for row in rows if row["game"] == game]
        for data, title in (("new", "new data alone"), ("half", "new data and the base data")):
            if chosen := [row for row in own if row["data"] == data]:
                parts.append(f"### {game}, {title}\n\n{differences_table(chosen).markdown()}")
        parts.append(f"### {game}, mean PSNR in dB\n\n{means_table(own).markdown()}")
        mine = [cell for cell in cells if cell["game"] == game]
        parts.append(f"### {game}, where the arms went\n\n{reach_table(mine).markdown()}")
        players = ("base", *mine[0]["arms"])
        legend = ", ".join(f"{player} {PLAYER_COLOURS[player]}" for player in players)
        parts.append(f"![Map of {game}]({maps[game]})\n\n{MAP_CAPTION} {legend}.")
    return "\n\n".join(parts) + "\n"


def differences_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the differences of each other arm to the random one, with intervals."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != ARMS[0]):
        tests = {row["test"]: row for row in rows if row["arm"] == arm}
        psnr = [_interval(tests[test], "psnr") for test in (*TESTS, UNSEEN_TEST)]
        delta = [_interval(tests[test], "delta_psnr") for test in CONTROL_TESTS]
        distances = [_interval(tests[test], "fid") for test in CONTROL_TESTS]
        lines.append([arm, *psnr, *delta, *distances])
    names = ("delta-PSNR", network_name() or "FID")
    heads = [f"{name}, {test}" for name in names for test in CONTROL_TESTS]
    return Table(["PSNR, dB", *TESTS, UNSEEN_TEST, *heads], lines)


def means_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the mean PSNR of every model on every test."""
    lines = []
    for arm, data in dict.fromkeys((row["arm"], row["data"]) for row in rows):
        own = [row.get("psnr") for row in rows if (row["arm"], row["data"]) == (arm, data)]
        lines.append([arm, data or "-", *(f"{psnr['mean']:.2f}" if psnr else "-" for psnr in own)])
    return Table(["arm", "data", *(row["test"] for row in rows[: len(lines[0]) - 2])], lines)


def reach_table(cells: Sequence[dict[str, Any]]) -> Table:
    """Return what each arm did and how far from the base data it went, as means over seeds.

    leak: largest share of a test's frames that its data hold; information: of action and history.
    """
    lines = []
    for arm in cells[0]["arms"]:
        own = [cell["arms"][arm] for cell in cells]
        actions = {
            name: np.mean([each["actions"][name] for each in own]) for name in own[0]["actions"]
        }
        favourite = max(actions, key=actions.__getitem__)
        line = [
            arm,
            f"{np.mean([each['frames'] for each in own]):,.0f}",
            f"{np.mean([each['distance'] for each in own]):.2f}",
            f"{np.mean([each['unseen'] for each in own]):.0%}",
            f"{np.mean([max(each['leak'].values()) for each in own]):.1%}",
            f"{favourite} {actions[favourite]:.0%}",
        ]
        known = [each["mutual_information"] for each in own if "mutual_information" in each]
        lines.append([*line, f"{np.mean(known):.4f} nats" if known else "-"])
    return Table(
        [
            "arm",
            "frames",
            "distance from base data",
            "unseen frames",
            "largest leak",
            "commonest action",
            "information",
        ],
        lines,
    )


def _interval(row: dict[str, Any], metric: str) -> str:
    result = row.get(metric) or {"difference": None}
    if result["difference"] is None:
        return "-"
    mean, low, high = result["difference"]
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:.2f}, {high:.2f}]"
