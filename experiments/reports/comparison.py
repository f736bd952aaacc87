"""Sentences and tables about the results of a pipeline's run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.reports.results import COPY, EvalResults, Metrics, game_title, mean
from worldmodel.statistics import Estimate

MODEL_NAMES = {
    COPY: "Copy the last frame",
    "base": "Base model",
    "random": "+ more random play",
    "archive": "+ play from the archive",
    "agent": "+ the agent's play",
}
MODEL_PHRASES = {
    "base": "the base model",
    "random": "the one with more random play",
    "archive": "the one with play from the archive",
    "agent": "the one with the agent's play",
}
DEEP_PLAY = (
    "Deep play goes on from savestates chosen by the game's own score (Go-Explore), with other "
    "seeds and another policy than the explorers'. Of its clips, the quarter least like the base "
    "model's data counts: on average {} grey levels away."
)
PLAYERS = {"random": "random agent", "archive": "archive", "agent": "agent"}
TEST_NAMES = {"random": "random play", "deep": "deep play", "agent": "the agent's play"}
NOISE_DB = 0.5
"""Difference in dB below which the report says that it may be chance, with one seed."""
EQUAL_DB = 0.1
"""Difference in dB below which two PSNRs are called equal."""


def describe_comparison(results: EvalResults) -> list[str]:
    """Return sentences that say what the comparison shows."""
    psnr = {model: results.get(model).mean_psnr for model in (COPY, *results.models)}
    names = {model: MODEL_PHRASES[model] for model in ("random", *results.explorers)}
    reached = [f"{name} reaches {psnr[model]:.1f} dB" for model, name in names.items()]
    gains = [
        f"{describe_gain(results, explorer, test)} on {TEST_NAMES[test]}"
        for explorer in results.explorers
        for test in results.tests
    ]
    return [
        f"Over {results.horizon} predicted frames of held-out play, of models fine-tuned in the "
        f"same way, {', '.join(reached)}; the base model reaches {psnr['base']:.1f} dB and copying "
        f"the last frame {psnr[COPY]:.1f} dB. " + _conclude(psnr[results.main] - psnr["random"]),
        f"Gains over random play: {'; '.join(gains)}. The seeds of held-out episodes occur in no "
        "training data.",
        _describe_control(results),
        *describe_deep_play(results),
    ]


def describe_main_gain(test: str, explorer: str, gains: Mapping[str, Any]) -> str:
    """Return one sentence of what an explorer's data gained; `gains` by the metric's name."""
    psnr, delta = (format_gain(gains[metric]) for metric in ("psnr", "delta_psnr"))
    return (
        f"On {TEST_NAMES[test]}, a world model that learned from the {explorer}'s data gains {psnr}"
        f" dB PSNR and {delta} dB delta-PSNR over the same model with as much random play."
    )


def main_test(tests: Sequence[str]) -> str:
    """Return the test set of the main result: deep play if it was played."""
    return "deep" if "deep" in tests else tests[0]


def describe_deep_play(results: EvalResults) -> list[str]:
    """Return a sentence about the test set of deep play, if there is one."""
    distances = results.far.get("deep", {})
    if not distances:
        return []
    text = ", ".join(
        f"{distance:.1f}" + (f" ({game_title(game)})" if len(distances) > 1 else "")
        for game, distance in distances.items()
    )
    return [DEEP_PLAY.format(text)]


def describe_gain(results: EvalResults, explorer: str, test: str) -> str:
    """Return the gain of an explorer's data over random play in words."""
    psnr, delta = (
        format_gain(results.gain(explorer, test, metric)) for metric in ("psnr", "delta_psnr")
    )
    return f"{explorer} {psnr} dB PSNR, {delta} dB delta-PSNR"


def format_gain(gain: Estimate | Sequence[float | None]) -> str:
    """Return a mean with its interval, if there is one; None is an unknown number."""
    values = (gain.mean, gain.low, gain.high) if isinstance(gain, Estimate) else gain
    mean, low, high = (math.nan if value is None else value for value in values)
    text = signed(mean, 2)
    return f"{text} [{low:.2f}, {high:.2f}]" if math.isfinite(low) else text


def _conclude(gain: float) -> str:
    """Return a sentence about the gain in dB of explored over random play."""
    if not math.isfinite(gain):
        return "The two could not be compared."
    if abs(gain) < EQUAL_DB:
        return f"Explored play made no difference to more random play beyond {EQUAL_DB} dB."
    better, worse = ("Explored play", "more random play")
    if gain < 0:
        better, worse = ("More random play", "explored play")
    words = f"{better} was worth {abs(gain):.1f} dB more than {worse}."
    if abs(gain) < NOISE_DB:
        words += " This is one run with one seed: so small a difference may be chance."
    return words


def _describe_control(results: EvalResults) -> str:
    """Return a sentence about delta-PSNR and its interval, by model."""
    metrics = {MODEL_PHRASES[model]: results.get(model) for model in results.models}
    parts = [
        f"{phrase} {row.delta:.2f} dB{_interval_words(row)}" for phrase, row in metrics.items()
    ]
    above = [phrase for phrase, row in metrics.items() if row.delta_low > 0]
    which = f"{' and '.join(above)} only" if above else "none of them"
    if len(above) == len(results.models):
        which = "all of them"
    return (
        f"How much the true actions help over random ones (delta-PSNR): {', '.join(parts)}; "
        f"the interval lies above zero for {which}."
    )


@dataclass(frozen=True)
class Column:
    """A column of a table. better: +1 if more is better, -1 if less is."""

    head: str
    value: Callable[[Metrics], float]
    better: int = 1
    digits: int = 1
    small: Callable[[Metrics], str] = lambda metrics: ""


def table_columns(results: EvalResults, *, distance: bool) -> list[Column]:
    """Return the columns of the tables, with the Frechet distance if wanted and measured."""
    steps = f"{results.horizon} steps, mean"
    columns = [
        Column("1 step, PSNR dB", lambda row: row.one_step),
        Column(f"{steps} PSNR dB", lambda row: row.mean_psnr),
        Column("moving pixels, PSNR dB", lambda row: mean(row.moving_psnr)),
        Column(f"{steps} SSIM", lambda row: mean(row.ssim), digits=3),
        Column(
            "delta-PSNR dB", lambda row: row.delta, digits=2, small=lambda row: row.delta_interval
        ),
        Column("reconstruction, PSNR dB", lambda row: row.reconstruction),
    ]
    if distance and results.distance_name:
        columns.append(Column(results.distance_name, lambda row: row.distance, better=-1))
    return columns


def metrics_table(
    title: str, rows: Sequence[tuple[str, Metrics]], columns: Sequence[Column]
) -> dict[str, Any]:
    """Return rows of (model, metrics) as text; in each column the best model is marked."""
    cells: list[list[dict[str, Any]]] = [[] for _ in rows]
    for column in columns:
        values = [column.value(metrics) for _, metrics in rows]
        # Values are compared as shown: of two that look equal none is better.
        rounded = [round(value * column.better, column.digits) for value in values]
        finite = {value for value in rounded if math.isfinite(value)}
        best = max(finite) if len(finite) > 1 else None
        for index, (_, metrics) in enumerate(rows):
            text = format_number(values[index], column.digits)
            small = column.small(metrics)
            cells[index].append({"text": text, "best": rounded[index] == best, "small": small})
    return {
        "title": title,
        "columns": [column.head for column in columns],
        "rows": [
            {"name": MODEL_NAMES[model], "style": model, "cells": row}
            for (model, _), row in zip(rows, cells, strict=True)
        ],
    }


def format_number(value: float, digits: int = 1) -> str:
    """Return a number for the page; a dash if it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign: +1.3, -0.2, 0.0; never -0.0."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def headline(results: EvalResults) -> list[str]:
    """Return the main results as lines for the terminal."""
    copy, best = results.get(COPY), results.get(results.main)
    random, base = results.get("random").mean_psnr, results.get("base").mean_psnr
    by_game = ", ".join(
        f"{game_title(game)} {results.get('base', game=game).reconstruction:.1f}"
        for game in results.games
    )
    return [
        f"Reconstruction PSNR in dB: {by_game}",
        f"One step ahead: {best.one_step:.1f} dB (copying {copy.one_step:.1f}), "
        f"fine-tuned on {results.main}",
        f"{results.horizon} steps ahead, mean: {best.mean_psnr:.1f} dB "
        f"(copying {copy.mean_psnr:.1f}), random fine-tuning {random:.1f}, base {base:.1f}",
        f"Delta-PSNR: {best.delta:.2f} dB{_interval_words(best)}",
        *(
            f"Gain over random play on {TEST_NAMES[test]}: "
            + "; ".join(describe_gain(results, explorer, test) for explorer in results.explorers)
            for test in results.tests
        ),
    ]


def _interval_words(metrics: Metrics) -> str:
    """Return the interval of delta-PSNR in parentheses, if there is one."""
    return f" (95 % interval {metrics.delta_interval})" if metrics.delta_interval else ""
