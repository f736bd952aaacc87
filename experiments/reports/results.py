"""Results of a pipeline's run, and the sentences that the report derives from them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.utils.run_dir import read_metrics

COPY = "copy"
MODELS = ("base", "random", "explored")
MODEL_NAMES = {
    COPY: "Copy the last frame",
    "base": "Base model",
    "random": "+ more random play",
    "explored": "+ explored play",
}
IN_WORDS = {
    "base": "the base model",
    "random": "the one with more random play",
    "explored": "the one with explored play",
}
TESTS = ("random", "explored")
TEST_NAMES = {
    "both": "all held-out episodes",
    "random": "the random agent's",
    "explored": "the explorer's",
}
NOISE_DB = 0.5
"""Difference in dB below which the report says that it may be chance, with one seed."""
EQUAL_DB = 0.1
"""Difference in dB below which two PSNRs are called equal."""


@dataclass(frozen=True)
class Metrics:
    """Metrics of one model, or of copying, on one set of windows.

    PSNR is in dB. Tuples run over the steps of the horizon. delta_low and delta_high are the 95 %
    interval of delta-PSNR.
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


def mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def pool(parts: Sequence[Metrics]) -> Metrics:
    """Return the metrics of the union of sets of windows: means weighted by windows.

    A Frechet distance is no mean over windows and is left out. The interval of delta-PSNR is that
    of independent sets.
    """
    total = sum(part.windows for part in parts)
    shares = [part.windows / total for part in parts]

    def over(values: Sequence[float]) -> float:
        pairs = zip(shares, values, strict=True)
        known = [(share, value) for share, value in pairs if math.isfinite(value)]
        if not known:
            return math.nan
        return sum(share * value for share, value in known) / sum(share for share, _ in known)

    def by_step(lists: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(over(values) for values in zip(*lists, strict=True))

    delta = over([part.delta for part in parts])
    halves = [(part.delta_high - part.delta_low) / 2 for part in parts]
    half = math.sqrt(sum((share * side) ** 2 for share, side in zip(shares, halves, strict=True)))
    return Metrics(
        windows=total,
        psnr=by_step([part.psnr for part in parts]),
        ssim=by_step([part.ssim for part in parts]),
        moving_psnr=by_step([part.moving_psnr for part in parts]),
        reconstruction=over([part.reconstruction for part in parts]),
        delta=delta,
        delta_low=delta - half,
        delta_high=delta + half,
    )


@dataclass(frozen=True)
class EvalResults:
    """All metrics of a run, `by_model[model][test set][game]`.

    Game "all" stands for all games, and test set "both" for both.
    """

    by_model: dict[str, dict[str, dict[str, Metrics]]]
    games: tuple[str, ...]
    horizon: int
    distance_name: str

    def get(self, model: str, test: str = "both", game: str = "all") -> Metrics:
        """Return the metrics of a model."""
        return self.by_model[model][test][game]


def read_results(evaluation: Path) -> EvalResults:
    """Load the files `<model>-<test set>.json` of the stage `evaluate`."""
    by_model: dict[str, dict[str, dict[str, Metrics]]] = {name: {} for name in (COPY, *MODELS)}
    distance_name = ""
    for model in MODELS:
        for test in TESTS:
            raw = json.loads((evaluation / f"{model}-{test}.json").read_text())
            distance_name = str(raw["distance_name"] or "Frechet distance")
            by_game = {"all": raw["overall"], **raw["games"]}
            by_model[model][test] = {game: _model_metrics(row) for game, row in by_game.items()}
            # Copying is the same next to every model.
            by_model[COPY][test] = {game: _copy_metrics(row) for game, row in by_game.items()}
    for by_test in by_model.values():
        names = dict.fromkeys(name for test in TESTS for name in by_test[test])
        by_test["both"] = {
            name: pool([by_test[test][name] for test in TESTS if name in by_test[test]])
            for name in names
        }
    both = by_model[MODELS[0]]["both"]
    games = tuple(name for name in both if name != "all")
    return EvalResults(by_model, games, len(both["all"].psnr), distance_name)


def _copy_metrics(row: dict[str, Any]) -> Metrics:
    """Return the metrics of copying from an evaluation; it has neither actions nor tokens."""
    copy = row["copy"]
    by_step = {name: tuple(map(_known, values)) for name, values in copy["by_step"].items()}
    psnr, ssim, moving_psnr = by_step["psnr"], by_step["ssim"], by_step["moving_psnr"]
    return Metrics(row["windows"], psnr, ssim, moving_psnr, distance=_known(copy["distance"]))


def _model_metrics(row: dict[str, Any]) -> Metrics:
    """Return the metrics of the model from an evaluation."""
    model, delta = row["prediction"], row["delta_psnr"]
    by_step = {name: tuple(map(_known, values)) for name, values in model["by_step"].items()}
    return Metrics(
        windows=row["windows"],
        psnr=by_step["psnr"],
        ssim=by_step["ssim"],
        moving_psnr=by_step["moving_psnr"],
        reconstruction=_known(row["reconstruction"]["psnr"]),
        distance=_known(model["distance"]),
        delta=_known(delta["mean"]),
        delta_low=_known(delta["low"]),
        delta_high=_known(delta["high"]),
    )


def _known(value: float | None) -> float:
    """Return a value of an evaluation, NaN for null."""
    return math.nan if value is None else value


def verdict(results: EvalResults) -> list[str]:
    """Return sentences that say what the comparison shows."""
    copy, base = results.get(COPY), results.get("base")
    random, explored = results.get("random"), results.get("explored")
    gain = explored.mean_psnr - random.mean_psnr
    gains = []
    for test in TESTS:
        side = results.get("explored", test).mean_psnr - results.get("random", test).mean_psnr
        gains.append(f"{signed(side)} dB on {TEST_NAMES[test]} episodes")
    return [
        f"Over {results.horizon} predicted frames of held-out play, the model fine-tuned on the "
        f"explorer's play reaches {explored.mean_psnr:.1f} dB; the same model fine-tuned in the "
        f"same way on as much random play reaches {random.mean_psnr:.1f} dB, the base model "
        f"{base.mean_psnr:.1f} dB, and copying the last frame {copy.mean_psnr:.1f} dB. "
        + _compare(gain, "Explored play", "more random play"),
        f"Explored against random play, by the agent that played the held-out episodes: "
        f"{' and '.join(gains)}. Half of the test set comes from each agent, with seeds that no "
        "training data has.",
        _describe_control(results),
    ]


def _compare(gain: float, one: str, other: str) -> str:
    if not math.isfinite(gain):
        return "The two could not be compared."
    if abs(gain) < EQUAL_DB:
        return f"{one} made no difference to {other} beyond {EQUAL_DB} dB."
    better, worse = (one, other) if gain > 0 else (other, one)
    words = f"{better[0].upper() + better[1:]} was worth {abs(gain):.1f} dB more than "
    words += f"{worse[0].lower() + worse[1:]}."
    if abs(gain) < NOISE_DB:
        words += " One run with one seed: so small a difference may be chance."
    return words


def _describe_control(results: EvalResults) -> str:
    """Return a sentence about delta-PSNR and its interval, by model."""
    parts = []
    for model in MODELS:
        metrics = results.get(model)
        parts.append(f"{IN_WORDS[model]} {metrics.delta:.2f} dB{interval_words(metrics)}")
    above = [IN_WORDS[model] for model in MODELS if results.get(model).delta_low > 0]
    if not above:
        words = "for none of them"
    elif len(above) == len(MODELS):
        words = "for all three"
    else:
        words = f"for {' and '.join(above)} only"
    return (
        f"How much the true actions help over random ones (delta-PSNR): {', '.join(parts)}; "
        f"the interval lies above zero {words}."
    )


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign: +1.3, -0.2, 0.0; never -0.0."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def headline(results: EvalResults) -> list[str]:
    """Return the main results in four lines, for the terminal."""
    copy, best = results.get(COPY), results.get("explored")
    random, base = results.get("random").mean_psnr, results.get("base").mean_psnr
    rebuilt = ", ".join(
        f"{short_name(game)} {results.get('base', game=game).reconstruction:.1f}"
        for game in results.games
    )
    return [
        f"Reconstruction PSNR in dB: {rebuilt}",
        f"One step ahead: {best.one_step:.1f} dB (copying {copy.one_step:.1f}), "
        "explored fine-tuning",
        f"{results.horizon} steps ahead, mean: {best.mean_psnr:.1f} dB "
        f"(copying {copy.mean_psnr:.1f}), random fine-tuning {random:.1f}, base {base:.1f}",
        f"Delta-PSNR: {best.delta:.2f} dB{interval_words(best)}",
    ]


def interval_words(metrics: Metrics) -> str:
    """Return the interval of delta-PSNR in words; nothing where too few episodes leave it open."""
    if not math.isfinite(metrics.delta_low):
        return ""
    return f" (95 % interval {metrics.delta_low:.2f} to {metrics.delta_high:.2f})"


def short_name(game: str) -> str:
    """Return a game's name without its console: Kangaroo-Atari2600 -> Kangaroo."""
    return game.rsplit("-", 1)[0]


def read_metric(run: Path, name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one scalar of a run's metrics; empty where it was never logged."""
    rows = [row for row in read_metrics(run) if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]
