"""Results of a pipeline's run."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.utils.run_dir import read_metrics
from worldmodel.statistics import Estimate, paired_estimate

COPY = "copy"
ALL = "all"
"""Name of all games, and of all test sets, together."""


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
    distance_name: str | None
    """Name of the Frechet distance; None if it was not measured."""
    far: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Test set -> game -> mean distance of its windows from the base model's data, in grey levels;
    only of test sets of which the farthest windows were chosen."""

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

    def gain(self, explorer: str, test: str, metric: str) -> Estimate:
        """Estimate what an explorer's data gained over random play, paired by window."""
        return paired_gain([self], explorer, test, metric)


def paired_gain(runs: Sequence[EvalResults], explorer: str, test: str, metric: str) -> Estimate:
    """Estimate the gain of an explorer's data in the windows of several runs."""
    pairs = [(run.windows[explorer][test], run.windows["random"][test]) for run in runs]
    return paired_estimate(pairs, metric)


def read_results(evaluation: Path, explorers: Sequence[str], tests: Sequence[str]) -> EvalResults:
    """Load the files `<model>-<test set>.json` and `.npz` of the stage `evaluate`."""
    models = ("base", "random", *explorers)
    by_model: dict[str, dict[str, dict[str, Metrics]]] = {name: {} for name in (COPY, *models)}
    windows: dict[str, dict[str, dict[str, NDArray[Any]]]] = {name: {} for name in models}
    distance_name: str | None = None
    far: dict[str, dict[str, float]] = {}
    for model in models:
        for test in tests:
            with np.load(evaluation / f"{model}-{test}.npz") as arrays:
                windows[model][test] = dict(arrays)
            raw = json.loads((evaluation / f"{model}-{test}.json").read_text())
            distance_name = raw["distance_name"]
            sets = {ALL: raw["overall"], **raw["games"]}
            if raw["far"]:
                far[test] = raw["far"]
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
        by_model, windows, played, tuple(explorers), tuple(tests), horizon, distance_name, far
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


def game_title(game: str) -> str:
    """Return a game's name without its console: Kangaroo-Atari2600 -> Kangaroo."""
    return game.rsplit("-", 1)[0]


def read_metric(run: Path, name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one scalar of a run's metrics; empty if it was never logged."""
    rows = [row for row in read_metrics(run) if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]
