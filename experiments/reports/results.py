"""Results of a pipeline's run, and the sentences and tables that the report derives from them."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.utils.run_dir import read_metrics
from worldmodel.statistics import estimate

COPY = "copy"
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
PLAYERS = {"random": "random agent", "archive": "archive", "agent": "agent"}
TEST_NAMES = {"random": "random play", "deep": "deep play", "agent": "the agent's play"}
ALL = "all"
"""Name of all games, and of all test sets, together."""
NOISE_DB = 0.5
"""Difference in dB below which the report says that it may be chance, with one seed."""
EQUAL_DB = 0.1
"""Difference in dB below which two PSNRs are called equal."""


@dataclass(frozen=True)
class Metrics:
    """Metrics of one model, or of copying, on one set of windows.

    PSNR is in dB. Tuples run over the steps of the horizon. delta_low and delta_high are the 95 %
    interval of delta-PSNR. Values that do not exist are NaN.
    """

    windows: int
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    moving_psnr: tuple[float, ...]
    reconstruction: float = math.nan
    distance: float = math.nan
    delta: float = math.nan
    delta_low: float = math.nan
    delta_high: float = math.nan

    @property
    def one_step(self) -> float:
        """PSNR of the first step."""
        return self.psnr[0]

    @property
    def mean_psnr(self) -> float:
        """Mean PSNR over the horizon."""
        return mean(self.psnr)

    @property
    def delta_interval(self) -> str:
        """Interval of delta-PSNR as text; empty if there are too few episodes for one."""
        if not math.isfinite(self.delta_low):
            return ""
        return f"{self.delta_low:.2f} to {self.delta_high:.2f}"


def mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def pool(parts: Sequence[Metrics]) -> Metrics:
    """Return the metrics of the union of sets of windows: means weighted by windows.

    The Frechet distance is no mean over windows and is left out. The interval of delta-PSNR assumes
    independent sets.
    """
    total = sum(part.windows for part in parts)
    shares = [part.windows / total for part in parts]

    def weighted_mean(values: Sequence[float]) -> float:
        pairs = zip(shares, values, strict=True)
        finite = [(share, value) for share, value in pairs if math.isfinite(value)]
        if not finite:
            return math.nan
        return sum(share * value for share, value in finite) / sum(share for share, _ in finite)

    def by_step(name: str) -> tuple[float, ...]:
        steps = zip(*(getattr(part, name) for part in parts), strict=True)
        return tuple(map(weighted_mean, steps))

    delta = weighted_mean([part.delta for part in parts])
    halves = [(part.delta_high - part.delta_low) / 2 for part in parts]
    half = math.sqrt(sum((share * side) ** 2 for share, side in zip(shares, halves, strict=True)))
    return Metrics(
        total,
        by_step("psnr"),
        by_step("ssim"),
        by_step("moving_psnr"),
        reconstruction=weighted_mean([part.reconstruction for part in parts]),
        delta=delta,
        delta_low=delta - half,
        delta_high=delta + half,
    )


@dataclass(frozen=True)
class EvalResults:
    """All metrics of a run, `by_model[model][test set][game]`."""

    by_model: dict[str, dict[str, dict[str, Metrics]]]
    windows: dict[str, dict[str, dict[str, NDArray[Any]]]]
    """windows[model][test set]: metrics of each window, see `Scores.by_window`."""
    games: tuple[str, ...]
    explorers: tuple[str, ...]
    """Explorers that are compared with random play; the first is the main one."""
    tests: tuple[str, ...]
    horizon: int
    distance_name: str

    def get(self, model: str, test: str = ALL, game: str = ALL) -> Metrics:
        """Return the metrics of a model."""
        return self.by_model[model][test][game]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, without copying."""
        return ("base", "random", *self.explorers)

    @property
    def main(self) -> str:
        """Name of the main explorer."""
        return self.explorers[0]

    def gain(self, explorer: str, test: str, metric: str) -> tuple[float, float, float]:
        """Return what an explorer's data gained over random play: mean and 95 % interval.

        The difference is paired by window; the interval is over episodes.
        """
        return paired_gain([self.windows], explorer, test, metric)


def paired_gain(
    runs: Sequence[dict[str, dict[str, dict[str, NDArray[Any]]]]],
    explorer: str,
    test: str,
    metric: str,
) -> tuple[float, float, float]:
    """Return the mean gain of an explorer's data in the windows of several runs, see `gain`."""
    differences, groups, count = [], [], 0
    for windows in runs:
        mine, other = windows[explorer][test], windows["random"][test]
        difference = mine[metric] - other[metric]
        known = np.isfinite(difference)
        _, group = np.unique(mine["session"], return_inverse=True)
        differences.append(difference[known])
        groups.append(group[known] + count)
        count += int(group.max()) + 1
    values, sessions = (torch.from_numpy(np.concatenate(part)) for part in (differences, groups))
    result = estimate(values, sessions)
    return result.mean, result.low, result.high


def read_results(evaluation: Path, explorers: Sequence[str], tests: Sequence[str]) -> EvalResults:
    """Load the files `<model>-<test set>.json` and `.npz` of the stage `evaluate`."""
    models = ("base", "random", *explorers)
    by_model: dict[str, dict[str, dict[str, Metrics]]] = {name: {} for name in (COPY, *models)}
    windows: dict[str, dict[str, dict[str, NDArray[Any]]]] = {name: {} for name in models}
    distance_name = ""
    for model in models:
        for test in tests:
            with np.load(evaluation / f"{model}-{test}.npz") as arrays:
                windows[model][test] = dict(arrays)
            raw = json.loads((evaluation / f"{model}-{test}.json").read_text())
            distance_name = str(raw["distance_name"] or "Frechet distance")
            sets = {ALL: raw["overall"], **raw["games"]}
            by_model[model][test] = {
                name: _metrics(row, "prediction") for name, row in sets.items()
            }
            # The metrics of copying are the same in the files of all models.
            by_model[COPY][test] = {name: _metrics(row, COPY) for name, row in sets.items()}
    for by_test in by_model.values():
        games = dict.fromkeys(name for test in tests for name in by_test[test])
        by_test[ALL] = {
            name: pool([by_test[test][name] for test in tests if name in by_test[test]])
            for name in games
        }
    together = by_model["base"][ALL]
    played = tuple(name for name in together if name != ALL)
    horizon = len(together[ALL].psnr)
    return EvalResults(
        by_model, windows, played, tuple(explorers), tuple(tests), horizon, distance_name
    )


def _metrics(row: dict[str, Any], side: str) -> Metrics:
    """Return the metrics of a side, prediction or copy, of a SET of `evaluate`."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    steps = row[side]["by_step"]
    psnr, ssim, moving_psnr = (
        tuple(map(number, steps[name])) for name in ("psnr", "ssim", "moving_psnr")
    )
    distance = number(row[side]["distance"])
    metrics = Metrics(row["windows"], psnr, ssim, moving_psnr, distance=distance)
    if side == COPY:  # copying uses neither the tokenizer nor the actions
        return metrics
    return dataclasses.replace(
        metrics,
        reconstruction=number(row["reconstruction"]["psnr"]),
        delta=number(row["delta_psnr"]["mean"]),
        delta_low=number(row["delta_psnr"]["low"]),
        delta_high=number(row["delta_psnr"]["high"]),
    )


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
        f"the last frame {psnr[COPY]:.1f} dB. "
        + _describe_gain(psnr[results.main] - psnr["random"]),
        f"Gains over random play: {'; '.join(gains)}. The seeds of held-out episodes occur in no "
        "training data.",
        _describe_control(results),
    ]


def describe_gain(results: EvalResults, explorer: str, test: str) -> str:
    """Return the gain of an explorer's data over random play in words."""
    psnr, delta = (
        format_gain(results.gain(explorer, test, metric)) for metric in ("psnr", "delta_psnr")
    )
    return f"{explorer} {psnr} dB PSNR, {delta} dB delta-PSNR"


def format_gain(values: Sequence[float | None]) -> str:
    """Return a mean with its interval, if there is one; None is an unknown number."""
    mean, low, high = (math.nan if value is None else value for value in values)
    text = signed(mean, 2)
    return f"{text} [{low:.2f}, {high:.2f}]" if math.isfinite(low) else text


def _describe_gain(gain: float) -> str:
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


def table_columns(results: EvalResults) -> list[Column]:
    """Return the columns of the tables; the last one is the Frechet distance."""
    steps = f"{results.horizon} steps, mean"
    return [
        Column("1 step, PSNR dB", lambda row: row.one_step),
        Column(f"{steps} PSNR dB", lambda row: row.mean_psnr),
        Column("moving pixels, PSNR dB", lambda row: mean(row.moving_psnr)),
        Column(f"{steps} SSIM", lambda row: mean(row.ssim), digits=3),
        Column(
            "delta-PSNR dB", lambda row: row.delta, digits=2, small=lambda row: row.delta_interval
        ),
        Column("reconstruction, PSNR dB", lambda row: row.reconstruction),
        Column(results.distance_name, lambda row: row.distance, better=-1),
    ]


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


def game_title(game: str) -> str:
    """Return a game's name without its console: Kangaroo-Atari2600 -> Kangaroo."""
    return game.rsplit("-", 1)[0]


def read_metric(run: Path, name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one scalar of a run's metrics; empty if it was never logged."""
    rows = [row for row in read_metrics(run) if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]
