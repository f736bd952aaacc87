"""Run the reward service: a world model on Ray Serve that answers how unsure it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from envs.utils.ray_session import ray_session
from experiments.arguments import RayArgs, check_folder


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Serve a world model's uncertainty on a Ray cluster until Ctrl+C. It opens no port."""

    model: tyro.conf.Positional[Path]
    """The world model: the `model` folder of `train dynamics`, or one that `export` or the pipeline made."""
    name: str = "autoexplore-reward"
    """Name of the app, by which explorers find it."""
    replicas: int = 1
    """Copies of the model that answer."""
    max_replicas: int | None = None
    """More copies than that, up to so many, while requests queue; None for a fixed number."""
    max_queued_requests: int = 64
    """Requests that may wait at one explorer; it asks again later for more, so that memory does not grow."""
    gpus: float | None = None
    """Share of a GPU for each replica; 0 computes on CPUs. Default: a whole one where the cluster has machines for
    replicas with GPUs, otherwise 0."""
    threads: int = 1
    """Torch threads of each replica."""
    steps: int = 1
    """MaskGIT passes for each answer."""
    seconds: float | None = None
    """Stop after so long, instead of at Ctrl+C."""


def run(args: Args) -> None:
    """Start the app, ask it once, say how fast it answers, and show what it does until the end."""
    from envs.utils.errors import InputError

    check_folder(args.model, "world model", "pipeline")
    if args.threads < 1 or (args.gpus or 0) < 0:
        raise InputError("--threads must be 1 or more, --gpus 0 or more")

    import time

    import numpy as np

    from envs.utils.progress import console
    from exploration.reward.scorers import ServeScorer
    from worldmodel import load_world_model, serve

    load_world_model(args.model).for_game(None)  # what is wrong with it is said here, not in a replica's log
    with ray_session(args.ray_address):
        serve.run(
            args.model,
            app_name=args.name,
            replicas=args.replicas,
            max_replicas=args.max_replicas,
            max_queued_requests=args.max_queued_requests,
            num_gpus=args.gpus,
            threads=args.threads,
            steps=args.steps,
        )
        noise = np.random.default_rng(0)
        frames = noise.integers(256, size=(64, 5, 64, 64, 3), dtype=np.uint8)
        actions = noise.integers(5, size=(64, 4))
        scorer = ServeScorer(args.name)
        scorer.entropies(frames[:1], actions[:1])
        started = time.monotonic()
        scorer.entropies(frames, actions)
        rate = len(frames) / (time.monotonic() - started)
        console.print(f"{args.name}: {count(args.replicas)} can be asked; {rate:,.0f} windows a second from one client")
        console.print("Ctrl+C ends it" if args.seconds is None else f"it ends in {args.seconds:g} s")
        try:
            _show(args)
        finally:
            serve.stop(args.name)


def _show(args: Args) -> None:
    """Until the time is over: what the replicas do, two lines that change on a terminal, now and then one elsewhere."""
    import time
    from contextlib import nullcontext

    from envs.utils.progress import console
    from worldmodel import serve

    end = None if args.seconds is None else time.monotonic() + args.seconds
    with console.status("") if console.is_terminal else nullcontext() as status:
        while end is None or time.monotonic() < end:
            pause = 2.0 if status is not None else 15.0
            time.sleep(pause if end is None else max(min(pause, end - time.monotonic()), 0.0))
            phrases = told(serve.describe(args.name))
            if status is not None:
                status.update("\n  ".join(phrases))  # of one line, 80 columns would show only the beginning
            else:
                console.print("; ".join(phrases))


def told(replicas: list[dict[str, Any]]) -> tuple[str, str]:
    """What `worldmodel.serve.describe` says: how much, where rates add up over replicas; and how fast, by the slowest.

    A figure that no replica has yet is a dash.
    """
    import math

    def figure(values: list[float], most: bool = False) -> str:
        known = [value for value in values if not math.isnan(value)]
        return f"{max(known) if most else sum(known) / len(known):,.0f}" if known else "-"

    rate, waiting, failures = (sum(r[name] for r in replicas) for name in ("windows_per_second", "waiting", "failures"))
    batch = figure([r["batch_windows"] for r in replicas])
    p50, p95, p99 = (figure([r["latency_ms"][name] for r in replicas], most=True) for name in ("p50", "p95", "p99"))
    return (
        f"{count(len(replicas))}: {rate:,.0f} windows/s, {waiting} waiting, {batch} a batch, {failures} batches failed",
        f"latency {p50} / {p95} / {p99} ms (50, 95, 99 %)",
    )


def count(replicas: int) -> str:
    """1 replica, 2 replicas."""
    return f"{replicas} replica{'s' * (replicas != 1)}"
