"""Measurement of the effect of each control, compared with the catalogue's labels."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.table import Table

from envs import catalog
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console, progress
from experiments.arguments import check_at_least, check_games
from experiments.catalog_tools.control_probe import CONTROLS

if TYPE_CHECKING:
    import pandas as pd

TIMEOUT_SECONDS = 300
SURE = 0.7
"""Confidence from which the agreement is also reported separately."""
KINDS = {
    **dict.fromkeys(("up", "climb", "fly", "jump", "look", "accelerate"), "up"),
    **dict.fromkeys(("down", "crouch", "drop"), "down"),
    **dict.fromkeys(
        ("shoot", "throw", "aim", "strike", "punch", "kick", "whip", "special", "use", "block"),
        "act",
    ),
    "right": "right",
    "left": "left",
    "none": "none",
}
"""Kinds of labels that screens show: up covers climbing, flying and jumping, act all attacks."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Hold each control from save states and measure its effect. The catalogue is not changed."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Games to probe. Default: all whose ROM is installed."""
    out: Path | None = None
    """Folder of one JSON file per game; games that have one are not probed again."""
    states: int = 8
    """Number of save states from which each control is tried."""
    seed: int = 0
    """Random seed."""
    workers: int = 2
    """Number of parallel emulator processes."""


def run(args: Args) -> None:
    """Probe games; print one line per game and the agreement with the catalogue by label."""
    check_at_least(1, states=args.states, workers=args.workers)
    games = check_games(args.games) if args.games else catalog.games(playable=True)
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(args.workers) as pool, progress("probe", len(games)) as bar:
        tasks = {pool.submit(probe_in_process, game, args): game for game in games}
        for task in as_completed(tasks):
            game = tasks[task]
            try:
                results[game] = task.result()
            except InputError as error:
                failed[game] = str(error)
            bar.advance(1, game)
    print_results(results, catalog.table().set_index("game"))
    for game, reason in sorted(failed.items()):
        console.print(f"{game} could not be probed: {reason}")
    if not results:
        raise InputError("no game could be probed")


def probe_in_process(game: str, args: Args) -> dict[str, Any]:
    """Probe a game in a new process, or load an earlier result. Raises InputError on failure."""
    settings = {"game": game, "states": args.states, "seed": args.seed}
    file = args.out / f"{game}.json" if args.out else None
    if file is not None and file.exists():
        stored: dict[str, Any] = json.loads(file.read_text())
        if stored["asked"] == settings:
            return dict(stored["probe"])
    words = [sys.executable, "-m", "experiments.catalog_tools.control_probe", json.dumps(settings)]
    # The package need not be in the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        process = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"its emulator hung for {TIMEOUT_SECONDS} s") from error
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise InputError(lines[-1] if lines else f"its emulator died ({process.returncode})")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    if file is not None:
        write_json_atomic(file, {"asked": settings, "probe": result})
    return result


def print_results(results: dict[str, dict[str, Any]], labels: "pd.DataFrame") -> None:
    """Print label and confidence of each control per game, with the catalogue's if it differs."""
    table = Table("game", "begins with", *CONTROLS, box=None, header_style="bold")
    for game, result in sorted(results.items()):
        cells = []
        for name in CONTROLS:
            control, ours = result["controls"][name], str(labels.at[game, name])
            word = "dead" if control["dead"] else control["label"]
            agrees = kind(control["label"]) == kind(ours)
            cells.append(f"{word} {control['confidence']:.2f}" + ("" if agrees else f" ({ours})"))
        begins = result["starter"] or (f"{result['waits']} steps" if result["waits"] else "-")
        table.add_row(game, begins, *cells)
    console.print(table)
    console.print("in brackets: the catalogue's label, if it is of another kind")
    table = Table("label", box=None, header_style="bold")
    for heading in ("compared", "of the same kind", "share"):
        table.add_column(heading, justify="right")
    for group, (same, compared) in agreement_by_group(results, labels).items():
        table.add_row(group, str(compared), str(same), f"{same / compared:.0%}")
    console.print(table)


def agreement_by_group(
    results: dict[str, dict[str, Any]], labels: "pd.DataFrame"
) -> dict[str, tuple[int, int]]:
    """Return, by group of labels, the number of the same kind and the number compared.

    Compared are labels that both have, of buttons that the console has. labels: the catalogue's
    table by game. Group "start": the game needs a button or a wait at its start.
    """
    same: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    for game, result in results.items():
        for name, control in result["controls"].items():
            ours = str(labels.at[game, name])
            if "unknown" in (ours, control["label"]) or not control["trials"]:
                continue
            groups = [name, f"catalogue says {ours}", "all controls"]
            groups += ["all, confidence 0.7 and more"] if control["confidence"] >= SURE else []
            compared.update(groups)
            same.update(groups if kind(control["label"]) == kind(ours) else ())
        transition = str(labels.at[game, "transition"])
        if transition != "unknown":
            compared["start"] += 1
            needs_start = result["needs_start"] or result["waits"] > 0
            same["start"] += needs_start == (transition == "yes")
    first = [group for group in compared if not group.startswith("catalogue")]
    last = sorted(compared.keys() - set(first))
    return {group: (same[group], compared[group]) for group in [*first, *last]}


def kind(label: str) -> str:
    """Return the kind of a label that probing can recognise."""
    return KINDS.get(label, label)
