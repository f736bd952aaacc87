"""Sums of what training steps return, and the time that they take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from worldmodel.cost import Cost


class Meter:
    """Sums of what steps return, kept on the device until a line of metrics is due, and the time that steps took.

    `cost` of a clip, where it is known, and `peak`, the FLOP/s of one rank's hardware, make a speed of the time.
    """

    def __init__(self, cost: Cost | None = None, peak: float = 0.0) -> None:
        self.cost, self.peak = cost, peak
        self.clear()

    def speed(self, batch_size: int, ranks: int) -> dict[str, float]:
        """Clips and tokens a second, achieved FLOP/s of all ranks and their share of the peak, time without data."""
        clips = self.steps * batch_size / self.seconds
        figures = {"clips_per_second": clips, "data_wait": self.waited / self.seconds}
        if self.cost is not None:
            achieved = clips * self.cost.flops
            figures["flops_per_second"] = achieved
            if self.cost.tokens:
                figures["tokens_per_second"] = clips * self.cost.tokens
            if self.peak:
                figures["flops_utilisation"] = achieved / (self.peak * ranks)
        return figures

    def clear(self) -> None:
        """Begin anew."""
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.waited = self.worked = 0.0

    @property
    def seconds(self) -> float:
        """Waiting for data and working; validation and checkpoints are not in it."""
        return self.waited + self.worked

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which the next batch is waited for."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time of a step."""
        started = time.perf_counter()
        yield
        self.worked += time.perf_counter() - started

    def add(self, parts: dict[str, Tensor]) -> None:
        """Count a step and add up what it returned."""
        for name, value in parts.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
