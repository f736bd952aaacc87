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
    PLAYERS,
    TEST_NAMES,
    describe_deep_play,
    describe_main_gain,
    format_gain,
    format_number,
    main_test,
)
from experiments.reports.page import Section, Table, write_page
from experiments.reports.places import Places, draw_places, load_models
from experiments.reports.results import COPY, EvalResults, game_title, paired_gain, read_results
from worldmodel.config import Precision
from worldmodel.statistics import Estimate

METRICS = {"psnr": "PSNR", "delta_psnr": "delta-PSNR"}


def build_games_report(root: Path, out: Path, precision: Precision = "auto") -> list[str]:
    """Write <out>/index.html and summary.json; return the main results as lines of text.

    summary.json: {"seconds" of the longest pipeline, "<test>_play": TEST, ..., "games": {game:
    {"<test>_play": TEST, ...}}}
    TEST: {"explored_minus_random_psnr": [mean, low, high], "explored_minus_random_delta_psnr",
    "base_psnr", "random_psnr", "explored_psnr", "explorers": {explorer: its two differences}}
    Explored is the main explorer. `precision` is that of the models, with auto the run's.
    """
    plan = json.loads((root / "config.json").read_text())["pipeline"]
    if precision == "auto":
        precision = plan["precision"]
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
    test, main = main_test(plan["tests"]), plan["explorers"][0]
    gained = summary[f"{test}_play"]
    lead = describe_main_gain(
        test,
        main,
        {metric: gained[f"explored_minus_random_{metric}"] for metric in METRICS},
    )
    places = {}
    for game, one in results.items():
        run = root / "games" / game
        models = load_models(run, ("base", *one.explorers), precision)
        places[game] = draw_places(run, game, plan, one, models)
    films = [place.films[main] for place in places.values() if main in place.films]
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
            Section(f"What the {PLAYERS[main]} found", [], pictures=films),
            Section("Where each went", [], pictures=[place.map for place in places.values()]),
            Section(
                "Gain over random play",
                [
                    "The same base model is fine-tuned in the same way on each player's data. "
                    "Differences to random play are paired by window; 95 % intervals are over "
                    f"episodes. The run took {format_duration(summary['seconds'])}.",
                ],
                [_gain_table(results)],
            ),
            *(_game_section(game, one, places[game]) for game, one in results.items()),
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


def _game_section(game: str, results: EvalResults, places: Places) -> Section:
    """Return the metrics of all models of a game, and what its other explorers found."""
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
    others = [film for explorer, film in places.films.items() if explorer != results.main]
    return Section(
        game_title(game),
        ["In dB.", *describe_deep_play(results)],
        [Table(columns, rows)],
        pictures=others,
    )
