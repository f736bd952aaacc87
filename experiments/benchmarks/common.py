"""Flags of the benchmarks, and a row of their table."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.arguments import RayArgs


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Measure speeds as ratios inside one run, so that they mean the same on any machine."""

    out: Path | None = None
    """Folder for benchmark.json."""
    games: tuple[str, ...] = ("Airstriker-Genesis", "Kangaroo-Atari2600")
    """Games to play. By default stored data are measured on six more."""
    steps: int = 500
    """Steps of each episode that is played."""
    repeats: int = 3
    """Measurements of each row; the middle one counts."""
    only: tuple[str, ...] = ()
    """Measure only these groups: collect, windows, reward, training, generation."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a rate, and what it is compared with.

    target: the least ratio that is wanted, if any; with at_most the largest.
    """

    group: str
    what: str
    rate: float
    unit: str
    against: str = ""
    against_rate: float = float("nan")
    target: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> float:
        return self.rate / self.against_rate


def median_of(times: int, measure: Callable[[], float]) -> float:
    """The median of some measurements."""
    return statistics.median(measure() for _ in range(times))
