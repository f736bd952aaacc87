"""What a replica of the reward service has done: Ray's metrics for dashboards, and a summary for people."""

import time
from collections import deque
from typing import Any

import numpy as np
from ray.serve import metrics

RECENT_S = 10.0
"""Seconds that a rate is taken over."""
KEPT = 4096
"""Requests and batches that percentiles are taken over, at most."""
LATENCIES_MS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0]
BATCHES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


class ServiceMeter:
    """Counts requests, windows and batches. To be made inside a replica, on whose event loop alone it is used."""

    def __init__(self) -> None:
        self._counts = {
            name: metrics.Counter(f"autoexplore_reward_{name}", description=f"Reward service: {about}.")
            for name, about in (
                ("windows", "windows scored"),
                ("requests", "requests answered"),
                ("failures", "batches that failed"),
            )
        }
        self._latency = metrics.Histogram(
            "autoexplore_reward_latency_ms", description="From arrival to answer.", boundaries=LATENCIES_MS
        )
        self._batch = metrics.Histogram(
            "autoexplore_reward_batch_windows", description="Windows in a forward pass.", boundaries=BATCHES
        )
        self._totals = dict.fromkeys(self._counts, 0)
        self._answers: deque[tuple[float, int, float]] = deque(maxlen=KEPT)
        self._batches: deque[int] = deque(maxlen=KEPT)
        self._started = time.monotonic()
        self.waiting = 0
        """Windows that have come and are not answered yet."""

    def answered(self, windows: int, seconds: float) -> None:
        """A request has its answer, `seconds` after it came."""
        self._count("requests", 1)
        self._count("windows", windows)
        self._latency.observe(1_000 * seconds)
        self._answers.append((time.monotonic(), windows, seconds))

    def scored(self, windows: int) -> None:
        """So many windows went through the model together."""
        self._batch.observe(windows)
        self._batches.append(windows)

    def failed(self) -> None:
        """A batch raised something that is not the asker's fault."""
        self._count("failures", 1)

    def summary(self) -> dict[str, Any]:
        """Totals; windows/s of the last 10 s; mean windows in a batch; median, 95th, 99th percentile of latency, ms."""
        now = time.monotonic()
        recent = sum(windows for when, windows, _ in self._answers if now - when <= RECENT_S)
        latencies = [1_000 * seconds for _, _, seconds in self._answers]
        percentiles = np.percentile(latencies, [50, 95, 99]).tolist() if latencies else [float("nan")] * 3
        return {
            **self._totals,
            "waiting": self.waiting,
            "windows_per_second": recent / max(min(RECENT_S, now - self._started), 1e-9),
            "batch_windows": float(np.mean(self._batches)) if self._batches else float("nan"),
            "latency_ms": dict(zip(("p50", "p95", "p99"), percentiles, strict=True)),
        }

    def _count(self, name: str, number: int) -> None:
        self._totals[name] += number
        self._counts[name].inc(number)
