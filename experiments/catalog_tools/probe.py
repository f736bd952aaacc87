"""Measurement of the effect of each control, compared with the catalogue's labels."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from envs import catalog
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console, progress
from experiments.arguments import check_games
from experiments.catalog_tools.control_probe import CONTROLS

TIMEOUT_SECONDS = 300
SURE = 0.7
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
"""Kinds of labels that a picture shows: up covers climbing, flying and jumping, act all attacks."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Hold each control from save states and measure the motion. The catalogue is not changed."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Games to probe. Default: all whose ROM is imported."""
    out: Path | None = None
    """Folder for one JSON file per game; games that have one there are not probed again."""
    states: int = 8
    """Number of save states from which each control is tried."""
    seed: int = 0
    """Random seed."""
    workers: int = 2
    """Number of parallel emulator processes."""


def run(args: Args) -> None:
    """Probe games; print one line per game and the agreement with the catalogue by label."""
    if args.states < 1 or args.workers < 1:
        raise InputError(f"--states {args.states} and --workers {args.workers} must be 1 or more")
    games = check_games(args.games) if args.games else catalog.games(playable=True)
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(args.workers) as pool, progress("probe", len(games)) as bar:
        waiting = {pool.submit(probe_in_process, game, args): game for game in games}
        for done in as_completed(waiting):
            game = waiting[done]
            try:
                found[game] = done.result()
            except InputError as error:
                failed[game] = str(error)
            bar.advance(1, game)
    _print(found, catalog.table().set_index("game"))
    for game, reason in sorted(failed.items()):
        console.print(f"{game} could not be probed: {reason}")
    if not found:
        raise InputError("no game could be probed")


def probe_in_process(game: str, args: Args) -> dict[str, Any]:
    """Probe a game in a new process, or load an earlier result. Raises InputError on failure."""
    asked = {"game": game, "states": args.states, "seed": args.seed}
    file = args.out / f"{game}.json" if args.out else None
    if file is not None and file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["asked"] == asked:
            return dict(kept["probe"])
    command = [sys.executable, "-m", "experiments.catalog_tools.control_probe", json.dumps(asked)]
    try:
        # The package need not lie in the current folder.
        where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=where
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"its emulator hung for {TIMEOUT_SECONDS} s") from error
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        raise InputError(
            lines[-1] if lines else f"its emulator died (exit code {ended.returncode})"
        )
    probed: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    if file is not None:
        write_json_atomic(file, {"asked": asked, "probe": probed})
    return probed


def _print(found: dict[str, dict[str, Any]], labels: Any) -> None:
    """Print label and confidence of each control per game, with the catalogue's if it differs."""
    shown = Table("game", "begins with", *CONTROLS, box=None, header_style="bold")
    for game, probed in sorted(found.items()):
        cells = []
        for name in CONTROLS:
            control, ours = probed["controls"][name], str(labels.at[game, name])
            word = "dead" if control["dead"] else control["label"]
            agrees = kind(control["label"]) == kind(ours)
            cells.append(f"{word} {control['confidence']:.2f}" + ("" if agrees else f" ({ours})"))
        begins = probed["starter"] or (f"{probed['waits']} steps" if probed["waits"] else "-")
        shown.add_row(game, begins, *cells)
    console.print(shown)
    console.print("in brackets: the catalogue's label, where it is of another kind")
    counted = Table("label", box=None, header_style="bold")
    for heading in ("compared", "of the same kind", "share"):
        counted.add_column(heading, justify="right")
    for group, (same, both) in agreement(found, labels).items():
        counted.add_row(group, str(both), str(same), f"{same / both:.0%}")
    console.print(counted)


def agreement(found: dict[str, dict[str, Any]], labels: Any) -> dict[str, tuple[int, int]]:
    """Return, by group of labels, the number of the same kind and the number compared.

    Compared are labels that both have, of buttons that the console has. labels: the catalogue's
    table by game. Group "start": the game needs a button or a wait at its start.
    """
    same: Counter[str] = Counter()
    both: Counter[str] = Counter()
    for game, probed in found.items():
        for name, control in probed["controls"].items():
            ours = str(labels.at[game, name])
            if "unknown" in (ours, control["label"]) or not control["trials"]:
                continue
            groups = [name, f"catalogue says {ours}", "all controls"]
            groups += ["all, confidence 0.7 and more"] if control["confidence"] >= SURE else []
            both.update(groups)
            same.update(groups if kind(control["label"]) == kind(ours) else ())
        transition = str(labels.at[game, "transition"])
        if transition != "unknown":
            both["start"] += 1
            same["start"] += (probed["needs_start"] or probed["waits"] > 0) == (transition == "yes")
    first = [group for group in both if not group.startswith("catalogue")]
    return {
        group: (same[group], both[group]) for group in [*first, *sorted(both.keys() - set(first))]
    }


def kind(label: str) -> str:
    """Return the kind of a label that probing can recognise."""
    return KINDS.get(label, label)
