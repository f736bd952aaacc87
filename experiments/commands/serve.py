"""Serve the world model's reward with Ray Serve."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import RayArgs, check_folder
from exploration.reward.scorers import ServeScorer
from worldmodel import load_world_model, serve
from worldmodel.uncertainty import WINDOW


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Serve a world model's uncertainty on a Ray cluster until Ctrl+C. No port is opened."""

    model: tyro.conf.Positional[Path]
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    name: str = "autoexplore-reward"
    """Name of the Serve app, which explorers look up."""
    replicas: int = 1
    """Number of replicas of the model."""
    max_replicas: int | None = None
    """Maximum number of replicas while requests queue. Default: --replicas."""
    max_queued_requests: int = 64
    """Maximum number of queued requests per client; a client retries when the queue is full."""
    gpus: float | None = None
    """GPUs of each replica, e.g. 0.5; 0 runs on CPUs. Default: 1 if the cluster has GPU machines
    for replicas, otherwise 0."""
    threads: int = 1
    """Torch threads of each replica."""
    steps: int = 1
    """MaskGIT steps per reward."""
    duration: float | None = None
    """Seconds after which the app stops. Default: at Ctrl+C."""


def run(args: Args) -> None:
    """Start the app, measure its speed, and show its statistics until the end."""
    check_folder(args.model, "world model", "pipeline")
    if args.threads < 1 or (args.gpus or 0) < 0:
        raise InputError("--threads must be 1 or more, --gpus 0 or more")

    load_world_model(args.model).for_game(
        None
    )  # what is wrong with it is said here, not in a replica's log
    with ray_session(args.ray_address):
        config = serve.ServeConfig(
            app_name=args.name,
            replicas=args.replicas,
            max_replicas=args.max_replicas,
            max_queued_requests=args.max_queued_requests,
            num_gpus=args.gpus,
            threads=args.threads,
            steps=args.steps,
        )
        serve.deploy(args.model, config)
        # A clip of 64 windows, after one of 1 window that warms up the replica.
        noise = np.random.default_rng(0)
        frames = noise.integers(256, size=(WINDOW + 63, 64, 64, 3), dtype=np.uint8)
        actions = noise.integers(5, size=len(frames) - 1)
        scorer = ServeScorer(args.name)
        scorer.submit(frames[:WINDOW], actions[: WINDOW - 1])()
        started = time.monotonic()
        scored = scorer.submit(frames, actions)()
        rate = len(scored.rewards_B) / (time.monotonic() - started)
        console.print(
            f"{args.name}: {count(args.replicas)} started; "
            f"{rate:,.0f} windows a second from one client"
        )
        console.print(
            "Ctrl+C ends it" if args.duration is None else f"it ends in {args.duration:g} s"
        )
        try:
            _show(args)
        finally:
            serve.shutdown(args.name)


def _show(args: Args) -> None:
    """Show the statistics of the replicas: live on a terminal, else a line now and then."""
    end = None if args.duration is None else time.monotonic() + args.duration
    with console.status("") if console.is_terminal else nullcontext() as status:
        while end is None or time.monotonic() < end:
            pause = 2.0 if status is not None else 15.0
            time.sleep(pause if end is None else max(min(pause, end - time.monotonic()), 0.0))
            phrases = describe_load(serve.describe(args.name))
            if status is not None:
                status.update(
                    "\n  ".join(phrases)
                )  # of one line, 80 columns would show only the beginning
            else:
                console.print("; ".join(phrases))


def describe_load(replicas: list[dict[str, Any]]) -> tuple[str, str]:
    """Return load and latency of all replicas as text: summed rates, latency of the slowest.

    A value that no replica has yet is a dash.
    """

    def figure(values: list[float], most: bool = False) -> str:
        known = [value for value in values if not math.isnan(value)]
        return f"{max(known) if most else sum(known) / len(known):,.0f}" if known else "-"

    rate, waiting, failures = (
        sum(r[name] for r in replicas) for name in ("windows_per_second", "waiting", "failures")
    )
    batch = figure([r["batch_windows"] for r in replicas])
    p50, p95, p99 = (
        figure([r["latency_ms"][name] for r in replicas], most=True)
        for name in ("p50", "p95", "p99")
    )
    return (
        f"{count(len(replicas))}: {rate:,.0f} windows/s, {waiting} waiting, "
        f"{batch} a batch, {failures} batches failed",
        f"latency {p50} / {p95} / {p99} ms (50, 95, 99 %)",
    )


def count(replicas: int) -> str:
    """Return `1 replica`, `2 replicas`."""
    return f"{replicas} replica{'s' * (replicas != 1)}"
