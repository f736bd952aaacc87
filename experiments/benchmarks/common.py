"""Flags of the benchmarks, a row of their table, and timers."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.arguments import DeviceArgs, Preset, RayArgs


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs, DeviceArgs):
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
    """Measure only these groups: collect, windows, reward, training, generation, runners, gpu,
    roofline (predictions for --hardware). Default: gpu with --device cuda or mps, otherwise the
    others but roofline."""
    preset: Preset = "paper"
    """Size of the models of groups gpu and roofline."""
    hardware: tuple[str, ...] = ("a100", "h100", "h200", "rtx4090")
    """Cards of group roofline, none of which need be at hand."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a rate and its baseline."""

    group: str
    name: str
    rate: float
    unit: str
    baseline: str = ""
    baseline_rate: float = float("nan")
    target: float | None = None
    """Smallest acceptable ratio, or the largest if `at_most`."""
    at_most: bool = False
    most_time: str = ""
    """Kinds of work that take the most time, where they are known."""

    @property
    def ratio(self) -> float:
        """Ratio of the rate to its baseline."""
        return self.rate / self.baseline_rate


def median_of(times: int, measure: Callable[[], float]) -> float:
    """Return the median of several measurements."""
    return statistics.median(measure() for _ in range(times))


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU-seconds of a call in this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def wall_seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of a call on the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
