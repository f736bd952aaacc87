"""Serve the world model's reward with Ray Serve."""

import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import CompiledModelArgs, RayArgs, check_at_least, check_model

TERMINAL_PAUSE, LOG_PAUSE = 2.0, 15.0
"""Seconds between two updates of the statistics, on a terminal and in a log."""
PROBE_WINDOWS = 64
"""Maximum number of windows with which the speed is measured at the start."""
PROBE_SECONDS = 1.0
"""Duration of an answer that is long enough to measure the speed."""


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs, CompiledModelArgs):
    """Serve a world model's uncertainty on a Ray cluster until Ctrl+C. No port is opened."""

    model: tyro.conf.Positional[Path]
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    name: str = "autoexplore-reward"
    """Name of the Serve app, by which `explore --reward-app` finds it on the same cluster."""
    replicas: int = 1
    """Number of replicas of the model."""
    max_replicas: int | None = None
    """Maximum number of replicas while requests queue. Default: --replicas."""
    max_queued_requests: int = 64
    """Maximum number of queued requests per client; a client retries when the queue is full."""
    gpus: float | None = None
    """GPUs of each replica, e.g. 0.5; 0 runs on CPUs. Default: one if there are several, half of an
    only one, which an explorer may share."""
    threads: int = 1
    """Torch threads of each replica."""
    steps: int = 1
    """MaskGIT steps per reward."""
    duration: float | None = None
    """Seconds after which the app stops. Default: at Ctrl+C."""


def run(args: Args) -> None:
    """Start the app, measure its speed, and show its statistics until the end."""
    check_model(args.model)
    check_at_least(1, replicas=args.replicas, threads=args.threads, steps=args.steps)
    check_at_least(0, gpus=args.gpus, duration=args.duration)

    # These import torch: wrong arguments are reported first.
    from exploration.reward.scorers import ServeScorer
    from worldmodel import load_world_model, serve

    load_world_model(args.model).for_game(None)  # report a bad model here, not in a replica's log
    with ray_session(args.ray_address):
        config = serve.ServeConfig(
            app_name=args.name,
            replicas=args.replicas,
            max_replicas=args.max_replicas,
            max_queued_requests=args.max_queued_requests,
            num_gpus=args.gpus,
            threads=args.threads,
            precision=args.precision,
            compile=args.compiles,
            cuda_graphs=args.cuda_graphs,
            steps=args.steps,
        )
        serve.deploy(args.model, config)
        rate = windows_per_second(ServeScorer(args.name))
        console.print(
            f"{args.name}: {replica_count(args.replicas)} started; "
            f"{short(rate)} windows a second from one client"
        )
        end = "Ctrl+C ends it" if args.duration is None else f"it ends in {args.duration:g} s"
        console.print(end)
        try:
            show_load(args)
        finally:
            serve.shutdown(args.name)


def windows_per_second(scorer: Any) -> float:
    """Return the speed at which a scorer answers one client."""
    import numpy as np

    from worldmodel.config import WINDOW

    noise = np.random.default_rng(0)
    frames = noise.integers(256, size=(PROBE_WINDOWS + WINDOW - 1, 64, 64, 3), dtype=np.uint8)
    actions = noise.integers(5, size=len(frames) - 1)

    def seconds(windows: int) -> float:
        last = windows + WINDOW - 1
        started = time.monotonic()
        scorer.submit(frames[:last], actions[: last - 1])()
        return time.monotonic() - started

    seconds(1)  # warms up the replica
    # Few windows first: a large model on a CPU takes minutes for all, longer than a client waits.
    windows = 1
    while (needed := seconds(windows)) < PROBE_SECONDS and windows < PROBE_WINDOWS:
        windows = min(4 * windows, PROBE_WINDOWS)
    return windows / needed


def short(rate: float) -> str:
    """Return a rate with two digits or more: 0.25, 1,234."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def show_load(args: Args) -> None:
    """Show the statistics of the replicas, updated in place on a terminal, until the end."""
    from worldmodel import serve

    end = math.inf if args.duration is None else time.monotonic() + args.duration
    pause = TERMINAL_PAUSE if console.is_terminal else LOG_PAUSE
    with console.status("") if console.is_terminal else nullcontext() as status:
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            phrases = describe_load(serve.describe(args.name))
            if status is None:
                console.print("; ".join(phrases))
            else:
                status.update("\n  ".join(phrases))  # one line would be cut at 80 columns


def describe_load(replicas: list[dict[str, Any]]) -> tuple[str, str]:
    """Return load and latency of all replicas as text: summed rates, latency of the slowest.

    A value that no replica has yet is a dash.
    """
    rate, waiting, failures = (
        sum(replica[name] for replica in replicas)
        for name in ("windows_per_second", "waiting", "failures")
    )
    batches = _known(replica["batch_windows"] for replica in replicas)
    batch = f"{sum(batches) / len(batches):,.0f}" if batches else "-"
    latencies = [
        _known(replica["latency_ms"][name] for replica in replicas)
        for name in ("p50", "p95", "p99")
    ]
    shown = " / ".join(f"{max(values):,.0f}" if values else "-" for values in latencies)
    return (
        f"{replica_count(len(replicas))}: {short(rate)} windows/s, {waiting} waiting, "
        f"{batch} a batch, {failures} batches failed",
        f"latency {shown} ms (50, 95, 99 %)",
    )


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def replica_count(replicas: int) -> str:
    """Return `1 replica`, `2 replicas`."""
    return f"{replicas} replica{'s' * (replicas != 1)}"
