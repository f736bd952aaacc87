"""Throughput of training, and the peak FLOP/s of hardware: from a table of GPUs, or measured.

Peaks are dense bf16 matrix products with fp32 sums, as the makers' data sheets give them.
"""

import ctypes
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.training.flops import TrainCost

PEAKS = {
    "a100": (312e12, 80e9),
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "b200": (2250e12, 192e9),
    "a10": (125e12, 24e9),
    "a6000": (155e12, 48e9),
    "l4": (121e12, 24e9),
    "l40s": (362e12, 48e9),
    "rtx3090": (71e12, 24e9),
    "rtx4090": (165e12, 24e9),
}
"""GPU -> (bf16 FLOP/s, bytes of memory)."""
UTILISATION = 0.4
"""Share of a GPU's peak that predictions assume training to reach."""


@dataclass(frozen=True)
class Hardware:
    """Hardware that a prediction is made for."""

    name: str
    cards: int
    peak: float
    """FLOP/s of one GPU, or of this machine's measured matrix product."""
    memory: float | None
    """Bytes of one GPU; None if unknown."""
    utilisation: float


def hardware(name: str, *, precision: str = "bf16", utilisation: float = UTILISATION) -> Hardware:
    """Look up a GPU and its count, `a100x8` or `l4`, or measure `here`. Raise InputError for an
    unknown GPU.
    """
    if name == "here":
        rate = measured_peak(
            torch.device("cuda" if torch.cuda.is_available() else "cpu"), precision
        )
        return Hardware("this machine, measured", 1, rate, None, 0.6)
    card, separator, count = name.lower().rpartition("x")
    if not (separator and count.isdigit() and card in PEAKS):
        card, count = name.lower(), "1"
    if card not in PEAKS or int(count) < 1:
        raise InputError(
            f"--hardware {name}: choose here or one of {', '.join(PEAKS)}, with a count as "
            "in a100x8"
        )
    peak, memory = PEAKS[card]
    return Hardware(name.lower(), int(count), peak, memory, utilisation)


def device_peak(device: torch.device, precision: str) -> float:
    """Return the peak FLOP/s of a device: from the table for bf16 on a known GPU, else measured."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device).lower().replace(" ", "")
        for card in sorted(PEAKS, key=len, reverse=True):
            if card in name:
                return PEAKS[card][0]
    return measured_peak(device, precision)


@functools.cache
def measured_peak(device: torch.device, precision: str, repeats: int = 4) -> float:
    """Measure the FLOP/s of a matrix product, the best of several."""
    rows, width = (8192, 8192) if device.type == "cuda" else (1024, 512)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (
        torch.ones(rows, width, dtype=dtype, device=device),
        torch.ones(width, width, dtype=dtype, device=device),
    )
    best = float("inf")
    for _ in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * width / best


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees; do nothing with another C library.

    A training step frees gigabytes and asks for them again. Given back in between they come as
    fresh pages, each with a fault: a tenth of a step on a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of options in malloc.h
        mallopt(
            mmap_threshold, 32 << 20
        )  # the most that is allowed; setting either stops both from moving
        mallopt(trim_threshold, -1)  # never


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ThroughputMeter:
    """Sums of the losses of steps, kept on the device until they are logged, and the time of steps.

    `cost` of a clip, where it is known, and `peak`, the FLOP/s of one rank's hardware, make a speed
    of the time.
    """

    def __init__(self, cost: TrainCost | None = None, peak: float = 0.0) -> None:
        self.cost, self.peak = cost, peak
        self.clear()

    def speed(self, batch_size: int, ranks: int) -> dict[str, float]:
        """Return clips and tokens per second, FLOP/s of all ranks, utilisation, and the share of
        waiting.
        """
        clips = self.steps * batch_size / self.seconds
        metrics = {"clips_per_second": clips, "data_wait": self.waited / self.seconds}
        if self.cost is not None:
            achieved = clips * self.cost.flops
            metrics["flops_per_second"] = achieved
            if self.cost.tokens:
                metrics["tokens_per_second"] = clips * self.cost.tokens
            if self.peak:
                metrics["flops_utilisation"] = achieved / (self.peak * ranks)
        return metrics

    def clear(self) -> None:
        """Reset sums and times."""
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.waited = self.worked = 0.0

    @property
    def seconds(self) -> float:
        """Time of steps and of waiting for data, without validation and checkpoints."""
        return self.waited + self.worked

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time of waiting for a batch."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    @contextmanager
    def working(self) -> Iterator[None]:
        """Measure the time of a step."""
        started = time.perf_counter()
        yield
        self.worked += time.perf_counter() - started

    def add(self, parts: dict[str, Tensor]) -> None:
        """Count a step and add its losses."""
        for name, value in parts.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
