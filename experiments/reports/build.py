"""The report of a pipeline's run."""

import json
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_atomic
from experiments.reports import explore_report, pipeline_report
from experiments.reports.page import render
from experiments.reports.results import headline, read_results, short_name
from experiments.reports.screens import equal_frame_counts, seen_by_game


def build(root: Path, out: Path) -> list[str]:
    """Write out/index.html for the run in `root` and return its main results as lines of text."""
    plan: dict[str, Any] = json.loads((root / "config.json").read_text())["pipeline"]
    results = read_results(root / "evaluation")
    data_sets = ("random", "more-random", "explored")
    seen = {name: seen_by_game(root / "data" / name) for name in data_sets}
    page = {
        **pipeline_report.top(plan, results, seen, root),
        **pipeline_report.comparison(results),
        **pipeline_report.games(root, plan, results),
        **pipeline_report.horizon(results),
        **pipeline_report.screens(seen),
        "explorer": explore_report.sections(root / "explore", plan["games"]),
        **pipeline_report.training(root, results),
        **pipeline_report.timings_and_settings(root, plan),
    }
    write_atomic(out / "index.html", render("report.html.j2", page).encode())
    counts = []
    for game in pipeline_report.played_by_both(seen):
        explored, random = equal_frame_counts(seen["explored"][game], seen["more-random"][game])
        counts.append(f"{short_name(game)} {explored:,} against {random:,}")
    return [
        *headline(results),
        f"Distinct screens, explorer against random agent: {', '.join(counts)}",
    ]
