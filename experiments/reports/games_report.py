"""Report of several games with a world model of their own: what exploring gained in each."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from envs.utils.atomic_io import write_json_atomic
from envs.utils.progress import format_duration
from experiments.reports.comparison import (
    MODEL_NAMES,
    TEST_NAMES,
    describe_deep_play,
    format_gain,
    format_number,
)
from experiments.reports.page import Section, Table, write_page
from experiments.reports.places import draw_places
from experiments.reports.results import COPY, EvalResults, game_title, paired_gain, read_results
from worldmodel.statistics import Estimate

METRICS = {"psnr": "PSNR", "delta_psnr": "delta-PSNR"}


def build_games_report(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and summary.json; return the main results as lines of text.

    summary.json: {"seconds" of the longest pipeline, "<test>_play": TEST, ..., "games": {game:
    {"<test>_play": TEST, ...}}}
    TEST: {"explored_minus_random_psnr": [mean, low, high], "explored_minus_random_delta_psnr",
    "base_psnr", "random_psnr", "explored_psnr", "explorers": {explorer: its two differences}}
    Explored is the main explorer.
    """
    plan = json.loads((root / "config.json").read_text())["pipeline"]
    results = {
        game: read_results(root / "games" / game / "evaluation", plan["explorers"], plan["tests"])
        for game in plan["games"]
    }
    timings = [
        json.loads((root / "games" / game / "timings.json").read_text())["total"]
        for game in plan["games"]
    ]
    summary = {
        # The pipelines run at the same time: the longest one is what a user waits for.
        "seconds": max(timings),
        **_summarise(list(results.values())),
        "games": {game: _summarise([one]) for game, one in results.items()},
    }
    write_json_atomic(root / "summary.json", summary)
    lead = _lead(summary, plan)
    folders = {
        game: os.path.relpath(root / "games" / game / "report", out) for game in plan["games"]
    }
    links = [
        Markup('<a href="{}/index.html">{}</a>').format(folder, game_title(game))
        for game, folder in folders.items()
    ]
    write_page(
        out,
        root,
        f"preset {plan['preset']}",
        title="What exploring gained in " + " and ".join(map(game_title, plan["games"])),
        lead=lead,
        sections=[
            Section(
                "Gain over random play",
                [
                    "The same base model is fine-tuned in the same way on each player's data. "
                    "Differences to random play are paired by window; 95 % intervals are over "
                    f"episodes. The run took {format_duration(summary['seconds'])}.",
                ],
                [_gain_table(results)],
            ),
            *(
                _game_section(root / "games" / game / "data", game, one)
                for game, one in results.items()
            ),
            Section("Reports of the games", links),
        ],
    )
    return [lead, *_lines(summary)]


def _summarise(runs: Sequence[EvalResults]) -> dict[str, Any]:
    """Return the numbers of summary.json for one game, or for several together."""
    first = runs[0]
    summary: dict[str, Any] = {}
    for test in first.tests:
        gains = {
            explorer: {
                f"explored_minus_random_{metric}": as_list(
                    paired_gain(runs, explorer, test, metric)
                )
                for metric in METRICS
            }
            for explorer in first.explorers
        }
        models = {"base": "base", "random": "random", "explored": first.main}
        psnr = {
            f"{name}_psnr": sum(run.get(model, test).mean_psnr for run in runs) / len(runs)
            for name, model in models.items()
        }
        summary[f"{test}_play"] = {**gains[first.main], **psnr, "explorers": gains}
    return summary


def as_list(gain: Estimate) -> list[float | None]:
    """Return [mean, low, high]; None for what is unknown."""
    values = (gain.mean, gain.low, gain.high)
    return [value if math.isfinite(value) else None for value in values]


def _lead(summary: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Return one sentence of what exploring gained."""
    test = "deep" if "deep" in plan["tests"] else plan["tests"][0]
    row = summary[f"{test}_play"]
    psnr, delta = (format_gain(row[f"explored_minus_random_{metric}"]) for metric in METRICS)
    return (
        f"On {TEST_NAMES[test]}, a world model that learned from the {plan['explorers'][0]}'s data "
        f"gains {psnr} dB PSNR and {delta} dB delta-PSNR over the same model with as much random "
        "play."
    )


def _lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the gains of each game as lines of text."""
    lines = []
    for game, own in summary["games"].items():
        for test, row in own.items():
            parts = [
                f"{explorer} "
                + ", ".join(
                    f"{format_gain(gains[f'explored_minus_random_{metric}'])} dB {name}"
                    for metric, name in METRICS.items()
                )
                for explorer, gains in row["explorers"].items()
            ]
            lines.append(f"{game_title(game)}, {test.replace('_', ' ')}: {'; '.join(parts)}")
    return lines


def _gain_table(results: Mapping[str, EvalResults]) -> Table:
    """Return the gains of each explorer by game and test set."""
    rows = [
        [
            game_title(game),
            TEST_NAMES[test],
            explorer,
            *(format_gain(one.gain(explorer, test, metric)) for metric in METRICS),
        ]
        for game, one in results.items()
        for test in one.tests
        for explorer in one.explorers
    ]
    return Table(["game", "test set", "explorer", "PSNR, dB", "delta-PSNR, dB"], rows)


def _game_section(data: Path, game: str, results: EvalResults) -> Section:
    """Return the metrics of all models of a game, and where its players went."""
    rows = [
        [
            MODEL_NAMES[model],
            *(format_number(results.get(model, test).mean_psnr, 2) for test in results.tests),
            *(format_number(results.get(model, test).delta, 2) for test in results.tests),
            *(format_number(results.get(model, test).reconstruction, 2) for test in results.tests),
        ]
        for model in (COPY, *results.models)
    ]
    tests = [TEST_NAMES[test] for test in results.tests]
    columns = [
        "model",
        *(f"PSNR over {results.horizon} steps, {test}" for test in tests),
        *(f"delta-PSNR, {test}" for test in tests),
        *(f"reconstruction, {test}" for test in tests),
    ]
    pictures = draw_places(data, game, results.explorers)
    return Section(
        game_title(game),
        ["In dB.", *describe_deep_play(results)],
        [Table(columns, rows)],
        pictures=pictures,
    )
