"""Flags of the benchmarks and a row of their table."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.arguments import RayArgs


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Measure speeds and their ratios to baselines of the same run, comparable across machines."""

    out: Path | None = None
    """Folder for benchmark.json."""
    games: tuple[str, ...] = ("Airstriker-Genesis", "Kangaroo-Atari2600")
    """Games to play. By default, stored data are measured on six more."""
    steps: int = 500
    """Number of steps of each episode."""
    repeats: int = 3
    """Number of measurements of each row, of which the median counts."""
    only: tuple[str, ...] = ()
    """Measure only these groups: collect, windows, reward, training, generation."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a rate and its baseline.

    target: the smallest acceptable ratio, if any; the largest if at_most.
    """

    group: str
    name: str
    rate: float
    unit: str
    baseline: str = ""
    baseline_rate: float = float("nan")
    target: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> float:
        """Ratio of the rate to its baseline."""
        return self.rate / self.baseline_rate


def median_of(times: int, measure: Callable[[], float]) -> float:
    """Return the median of several measurements."""
    return statistics.median(measure() for _ in range(times))
