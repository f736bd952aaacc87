"""Write the report of a pipeline's run."""

import json
from pathlib import Path
from typing import Any


def build(root: Path, out: Path) -> list[str]:
    """Write out/index.html for the run in `root`; returns its main figures as lines of text."""
    from envs.utils.atomic_io import write_atomic
    from experiments.reports import explore_report
    from experiments.reports import pipeline_report as sections
    from experiments.reports.page import render
    from experiments.reports.pipeline_report import training
    from experiments.reports.results import headline, read_measured, short_name
    from experiments.reports.screens import equal_frame_counts, seen_by_game

    plan: dict[str, Any] = json.loads((root / "config.json").read_text())["pipeline"]
    measured = read_measured(root / "evaluation")
    seen = {
        name: seen_by_game(root / "data" / name) for name in ("random", "more-random", "explored")
    }
    page = {
        **sections.top(plan, measured, seen, root),
        **sections.result(measured),
        **sections.games(root, plan, measured),
        **sections.horizon(measured),
        **sections.screens(seen),
        "explorer": explore_report.sections(root / "explore", plan["games"]),
        **training(root, measured),
        **sections.the_run(root, plan),
    }
    html = render("report.html.j2", page)
    write_atomic(out / "index.html", html.encode())
    found = []
    for game in sections.both_saw(seen):
        explored, random = equal_frame_counts(seen["explored"][game], seen["more-random"][game])
        found.append(f"{short_name(game)} {explored:,} against {random:,}")
    return [
        *headline(measured),
        f"Distinct screens, explorer against random agent: {', '.join(found)}",
    ]
