"""Run the reward service: a world model on Ray Serve that answers how unsure it is."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.common import RayArgs, check_folder, ray_session


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Serve a world model's uncertainty on a Ray cluster until Ctrl+C. It opens no port."""

    model: tyro.conf.Positional[Path]
    """The world model: a folder that `map`, the pipeline or `save` wrote."""
    name: str = "autoexplore-reward"
    """Name of the app, by which explorers find it."""
    replicas: int = 1
    """Copies of the model that answer."""
    gpus: float = 0.0
    """Share of a GPU for each replica; 0 computes on CPUs."""
    threads: int = 1
    """Torch threads of each replica."""
    steps: int = 1
    """MaskGIT passes for each answer."""
    seconds: float | None = None
    """Stop after so long, instead of at Ctrl+C."""


def run(args: Args) -> None:
    """Start the app, ask it once, say how fast it answers, and wait."""
    from envs.errors import InputError

    check_folder(args.model, "world model", "pipeline")
    if args.replicas < 1 or args.threads < 1 or args.steps < 1 or args.gpus < 0:
        raise InputError("--replicas, --threads and --steps must be 1 or more, --gpus 0 or more")

    import threading
    import time

    import numpy as np

    from envs.runs import console
    from exploration.scorers import ServeScorer
    from worldmodel import load_world_model, serve

    load_world_model(args.model).for_game(None)  # what is wrong with it is said here, not in a replica's log
    with ray_session(args.ray_address):
        serve.run(
            args.model,
            app_name=args.name,
            replicas=args.replicas,
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
        console.print(f"{args.name}: {args.replicas} replicas answer, {rate:,.0f} windows a second from one client")
        console.print("Ctrl+C ends it" if args.seconds is None else f"it ends in {args.seconds:g} s")
        try:
            threading.Event().wait(args.seconds)
        finally:
            serve.stop(args.name)
