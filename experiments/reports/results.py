"""What a pipeline's run measured, in the form that the report shows, and what it says in words.

The words are derived from the numbers, good or bad: nobody has to believe a caption.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
CHANCE_DB = 0.5
"""Differences below this many dB are called what they may be, with one seed: chance."""
EQUAL_DB = 0.1
"""PSNRs closer than this many dB are called equal."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one model, or of copying, on one set of windows. PSNR in dB; lists run over the horizon."""

    windows: int
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    moving: tuple[float, ...]
    reconstruction: float = math.nan
    distance: float = math.nan
    delta: float = math.nan
    delta_low: float = math.nan
    delta_high: float = math.nan

    @property
    def one_step(self) -> float:
        return self.psnr[0]

    @property
    def whole(self) -> float:
        """Mean over the horizon."""
        return mean(self.psnr)


def mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def pooled(parts: Sequence[Figures]) -> Figures:
    """Figures of the union of sets of windows: means weighted by windows.

    A Frechet distance is no mean over windows and is left out. Delta-PSNR's interval is that of independent sets.
    """
    total = sum(part.windows for part in parts)
    shares = [part.windows / total for part in parts]

    def over(values: Sequence[float]) -> float:
        known = [
            (share, value)
            for share, value in zip(shares, values, strict=True)
            if math.isfinite(value)
        ]
        return (
            sum(share * value for share, value in known) / sum(share for share, _ in known)
            if known
            else math.nan
        )

    def along(lists: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(over(values) for values in zip(*lists, strict=True))

    delta = over([part.delta for part in parts])
    halves = [(part.delta_high - part.delta_low) / 2 for part in parts]
    half = math.sqrt(sum((share * side) ** 2 for share, side in zip(shares, halves, strict=True)))
    return Figures(
        total,
        along([part.psnr for part in parts]),
        along([part.ssim for part in parts]),
        along([part.moving for part in parts]),
        over([part.reconstruction for part in parts]),
        math.nan,
        delta,
        delta - half,
        delta + half,
    )


@dataclass(frozen=True)
class EvalResults:
    """All figures of a run: `of[model][test set][game]`, with game "all" for all games and test set "both" for both."""

    of: dict[str, dict[str, dict[str, Figures]]]
    games: tuple[str, ...]
    horizon: int
    distance_name: str

    def get(self, model: str, test: str = "both", game: str = "all") -> Figures:
        return self.of[model][test][game]


def read_measured(evaluation: Path) -> EvalResults:
    """Read what the stage `evaluate` wrote: `<model>-<test set>.json`."""
    of: dict[str, dict[str, dict[str, Figures]]] = {}
    raw: dict[str, Any] = {}
    for model in MODELS:
        of[model] = {}
        for test in TESTS:
            raw = json.loads((evaluation / f"{model}-{test}.json").read_text())
            sets = {"all": raw["overall"], **raw["games"]}
            of[model][test] = {
                game: _figures(values, "prediction") for game, values in sets.items()
            }
            if model == MODELS[0]:
                of.setdefault(COPY, {})[test] = {
                    game: _figures(values, "copy") for game, values in sets.items()
                }
    for sets_of in of.values():
        names = list(dict.fromkeys(name for test in TESTS for name in sets_of[test]))
        sets_of["both"] = {
            name: pooled([sets_of[test][name] for test in TESTS if name in sets_of[test]])
            for name in names
        }
    games = tuple(name for name in of["base"]["both"] if name != "all")
    horizon = len(of["base"]["both"]["all"].psnr)
    return EvalResults(of, games, horizon, str(raw["distance_name"] or "Frechet distance"))


def _figures(values: dict[str, Any], side: str) -> Figures:
    """One set of `worldmodel.evaluation.evaluate.evaluate`; side: `prediction`, or `copy`, which has no actions and no tokens."""

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    by_step = values[side]["by_step"]
    psnr, ssim, moving = (
        tuple(map(known, by_step[name])) for name in ("psnr", "ssim", "moving_psnr")
    )
    distance = known(values[side]["distance"])
    if side == "copy":
        return Figures(values["windows"], psnr, ssim, moving, distance=distance)
    delta = values["delta_psnr"]
    return Figures(
        values["windows"],
        psnr,
        ssim,
        moving,
        known(values["reconstruction"]["psnr"]),
        distance,
        known(delta["mean"]),
        known(delta["low"]),
        known(delta["high"]),
    )


def verdict(measured: EvalResults) -> list[str]:
    """Plain sentences that say what the comparison shows, derived from the figures."""
    copy, base = measured.get(COPY), measured.get("base")
    random, explored = measured.get("random"), measured.get("explored")
    sentences = [
        f"Over {measured.horizon} predicted frames of held-out play, the model fine-tuned on what the explorer brought "
        f"back reaches {explored.whole:.1f} dB; the same model fine-tuned alike on as much random play reaches "
        f"{random.whole:.1f} dB, the base model {base.whole:.1f} dB, and copying the last frame {copy.whole:.1f} dB. "
        + _compared(explored.whole - random.whole, "Explored play", "more random play")
    ]
    halves = []
    for test in TESTS:
        gain = measured.get("explored", test).whole - measured.get("random", test).whole
        halves.append(f"{signed(gain)} dB on {TEST_NAMES[test]} episodes")
    sentences.append(
        f"Explored against random, by who played the held-out episodes: {' and '.join(halves)}. "
        "Half of the test set comes from each agent, with seeds that no training data has."
    )
    sentences.append(_control(measured))
    return sentences


def _compared(gain: float, one: str, other: str) -> str:
    if not math.isfinite(gain):
        return "The two could not be compared."
    if abs(gain) < EQUAL_DB:
        return f"{one} made no difference to {other} beyond {EQUAL_DB} dB."
    better, worse = (one, other) if gain > 0 else (other, one)
    words = f"{better[0].upper() + better[1:]} was worth {abs(gain):.1f} dB more than {worse[0].lower() + worse[1:]}."
    return words + (
        " One run with one seed: so small a difference may be chance."
        if abs(gain) < CHANCE_DB
        else ""
    )


def _control(measured: EvalResults) -> str:
    """What delta-PSNR says about who obeys the controls, with its interval."""
    parts = []
    for model in MODELS:
        figures = measured.get(model)
        parts.append(f"{IN_WORDS[model]} {figures.delta:.2f} dB{interval_words(figures)}")
    sure = [model for model in MODELS if measured.get(model).delta_low > 0]
    told = {
        0: "it is surely above zero for none of them",
        len(MODELS): "it is surely above zero for all three",
    }
    words = told.get(
        len(sure),
        f"it is surely above zero for {' and '.join(IN_WORDS[model] for model in sure)} only",
    )
    return f"How much the true actions help over random ones (delta-PSNR): {', '.join(parts)}; {words}."


def signed(value: float, digits: int = 1) -> str:
    """+1.3, -0.2, 0.0; never -0.0."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def headline(measured: EvalResults) -> list[str]:
    """The run's main figures in five lines, for the terminal."""
    copy, best = measured.get(COPY), measured.get("explored")
    games = ", ".join(
        f"{short_name(game)} {measured.get('base', game=game).reconstruction:.1f}"
        for game in measured.games
    )
    return [
        f"Reconstruction PSNR in dB: {games}",
        f"One step ahead: {best.one_step:.1f} dB (copying {copy.one_step:.1f}), explored fine-tuning",
        f"{measured.horizon} steps ahead, mean: {best.whole:.1f} dB (copying {copy.whole:.1f}), "
        f"random fine-tuning {measured.get('random').whole:.1f}, base {measured.get('base').whole:.1f}",
        f"Delta-PSNR: {best.delta:.2f} dB{interval_words(best)}",
    ]


def interval_words(figures: Figures) -> str:
    """The interval of delta-PSNR; nothing where too few episodes leave it unknown."""
    if not math.isfinite(figures.delta_low):
        return ""
    return f" (95 % interval {figures.delta_low:.2f} to {figures.delta_high:.2f})"


def short_name(game: str) -> str:
    """Kangaroo-Atari2600 -> Kangaroo."""
    return game.rsplit("-", 1)[0]


def read_metric(run: Path, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one scalar of a run's metrics; empty where it was never logged."""
    from envs.utils.run_dir import read_metrics

    rows = [row for row in read_metrics(run) if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]
