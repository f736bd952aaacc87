"""Throughput of training, and the peak FLOP/s of hardware: from a table of GPUs, or measured.

Peaks are those of dense bf16 matrix products with fp32 sums in the makers' data sheets.
"""

import ctypes
import functools
import re
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
    "a100-40gb": (312e12, 40e9),
    "h100": (989e12, 80e9),
    "h100-pcie": (756e12, 80e9),
    "h100-nvl": (835e12, 94e9),
    "h200": (989e12, 141e9),
    "b200": (2250e12, 192e9),
    "a10": (125e12, 24e9),
    "a10g": (70e12, 24e9),
    "a6000": (155e12, 48e9),
    "l4": (121e12, 24e9),
    "l40": (181e12, 48e9),
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


def hardware(name: str, *, precision: str = "bf16") -> Hardware:
    """Look up a GPU and its count (`a100x8`, `l4`), or measure this machine (`here`).

    Raise InputError for an unknown GPU.
    """
    if name == "here":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Hardware(
            "this machine, measured", 1, measured_peak(device, precision), None, utilisation=0.6
        )
    card, separator, count = name.lower().rpartition("x")
    if not (separator and count.isdigit() and card in PEAKS):
        card, count = name.lower(), "1"
    if card not in PEAKS or int(count) < 1:
        raise InputError(
            f"--hardware {name}: choose here or one of {', '.join(PEAKS)}, with a count as "
            "in a100x8"
        )
    peak, memory = PEAKS[card]
    return Hardware(name.lower(), int(count), peak, memory, UTILISATION)


def device_peak(device: torch.device, precision: str) -> float:
    """Return the peak FLOP/s of a device: from the table for bf16 on a known GPU, else measured."""
    if device.type == "cuda" and precision == "bf16":
        card = named_card(torch.cuda.get_device_name(device))
        if card is not None:
            return PEAKS[card][0]
    return measured_peak(device, precision)


def named_card(name: str) -> str | None:
    """Return the entry of PEAKS for the name that a driver gives a GPU; None if there is none.

    All words of a card must be in it: an A10G is no A10, and an H100 PCIe slower than an H100.
    """
    words = {*re.findall(r"[a-z0-9]+", re.sub(r"rtx (?=\d)", "rtx", name.lower()))}
    known = [card for card in PEAKS if {*card.split("-")} <= words]
    return max(known, key=len, default=None)


@functools.cache
def measured_peak(device: torch.device, precision: str, repeats: int = 4) -> float:
    """Measure the FLOP/s of a matrix product, the best of several."""
    rows, width = (8192, 8192) if device.type == "cuda" else (1024, 512)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(rows, width, dtype=dtype, device=device)
    b = torch.ones(width, width, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * width / best


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees; do nothing with another C library.

    A training step frees gigabytes and allocates them again. If they went back to the system in
    between, page faults would take a tenth of a step on a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names of options in malloc.h
        # The largest allowed value; setting either option also stops glibc from adapting both.
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, -1)  # never


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is done; a CPU always is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ThroughputMeter:
    """Sums of losses and times of steps since the last log line.

    The sums stay on the device until they are logged. `cost` is that of a clip; `peak` is the
    FLOP/s of one rank's hardware, 0 if unknown.
    """

    def __init__(self, cost: TrainCost, peak: float) -> None:
        self.cost, self.peak = cost, peak
        self.clear()

    def speed(self, batch_size: int, ranks: int) -> dict[str, float]:
        """Return clips, tokens and FLOPs per second of all ranks, utilisation, and the share of
        time spent waiting for data.
        """
        clips = self.steps * batch_size / self.seconds
        flops = clips * self.cost.flops
        metrics = {
            "clips_per_second": clips,
            "data_wait": self.waited / self.seconds,
            "flops_per_second": flops,
        }
        if self.cost.tokens:
            metrics["tokens_per_second"] = clips * self.cost.tokens
        if self.peak:
            metrics["flops_utilisation"] = flops / (self.peak * ranks)
        return metrics

    def clear(self) -> None:
        """Reset sums and times."""
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        # `seconds` is the time of steps, waiting included, without validation and checkpoints.
        self.seconds = self.waited = 0.0

    @contextmanager
    def measure(self, *, waiting: bool = False) -> Iterator[None]:
        """Measure the time of a step, or of waiting for its batch."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        self.waited += elapsed * waiting

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count a step and add its losses."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
