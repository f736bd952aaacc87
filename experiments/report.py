"""Draw the report of a run: one HTML page that holds all its pictures and needs no network."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Args:
    """Draw report/index.html of a run of pipeline, explore, tune or rounds, from what it wrote."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as given with --out."""
    out: Path | None = None
    """Folder for index.html. Default: report inside the run's folder."""


def run(args: Args) -> None:
    """Draw the page and print the main figures."""
    from envs.runs import console

    out = args.out or args.run / "report"
    for line in drawn(args.run, out):
        console.print(line)
    console.print(f"Report: {(out / 'index.html').resolve()}")


def drawn(root: Path, out: Path) -> list[str]:
    """Draw the report that fits what the folder holds. Raises InputError where there is nothing to draw yet."""
    from envs.errors import InputError
    from experiments import report_explore, report_rounds, report_tune

    if (root / "tune.json").exists():
        return report_tune.build(root, out)
    if (root / "rounds" / "1" / "measure.json").exists():
        return report_rounds.build(root, out)
    if (root / "metrics.jsonl").exists() and any((root / "checkpoints").glob("*/module.safetensors")):
        return report_explore.build(root, out)
    if not (root / "evaluation" / "base-random.json").exists():
        raise InputError(f"{root} holds no evaluation yet: finish it with `autoexplore pipeline --out {root}`")
    return build(root, out)


def build(root: Path, out: Path) -> list[str]:
    """Write out/index.html for the run in `root`; returns its main figures as lines of text."""
    from envs.files import write_atomic
    from experiments import report_explore
    from experiments import report_sections as sections
    from experiments.report_data import headline, read_measured, short_name
    from experiments.report_page import render
    from experiments.report_training import training
    from experiments.screens import compared, seen_by_game

    plan: dict[str, Any] = json.loads((root / "config.json").read_text())["pipeline"]
    measured = read_measured(root / "evaluation")
    seen = {name: seen_by_game(root / "data" / name) for name in ("random", "more-random", "explored")}
    page = {
        **sections.top(plan, measured, seen, root),
        **sections.result(measured),
        **sections.games(root, plan, measured),
        **sections.horizon(measured),
        **sections.screens(seen),
        "explorer": report_explore.sections(root / "explore", plan["games"]),
        **training(root, measured),
        **sections.the_run(root, plan),
    }
    html = render("report.html.j2", page)
    write_atomic(out / "index.html", html.encode())
    found = []
    for game in sections.both_saw(seen):
        explored, random = compared(seen["explored"][game], seen["more-random"][game])
        found.append(f"{short_name(game)} {explored:,} against {random:,}")
    return [*headline(measured), f"Distinct screens, explorer against random agent: {', '.join(found)}"]
