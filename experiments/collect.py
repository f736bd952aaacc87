"""Play games and record the episodes: seeded, resumable, one emulator a process."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.common import RunArgs, ray_session


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Play games with a random or a trained agent and record the episodes."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games to play, e.g. Airstriker-Genesis Kangaroo-Atari2600, or Counting and CoinRun, which need no ROM."""
    out: Path
    """Folder of the episodes."""
    policy: str = "random"
    """Who plays: random, or checkpoint:FOLDER with what `autoexplore explore` wrote."""
    episodes: int = 4
    """Episodes of each game."""
    steps: int = 500
    """Longest episode in steps; a step is four emulator frames."""
    workers: int = 2
    """Emulator processes at a time."""
    epsilon: float = 0.0
    """Share of random actions mixed into a checkpoint's own."""
    temperature: float = 1.0
    """Above 1 a checkpoint chooses more evenly, below 1 more surely."""


def run(args: Args) -> None:
    """Collect, then say what was stored and how fast. Episodes that are already there are kept with --resume."""
    from envs.collect import collect
    from envs.errors import InputError
    from envs.runs import console

    if args.out.exists() and any(args.out.iterdir()) and not args.resume:
        raise InputError(
            f"{args.out} already holds episodes: --resume completes the set, another --out begins a new one"
        )
    with ray_session(args.ray_address):
        done = collect(
            args.games,
            str(args.out),
            episodes=args.episodes,
            steps=args.steps,
            policy=args.policy,
            workers=args.workers,
            seed=args.seed,
            epsilon=args.epsilon,
            temperature=args.temperature,
        )
    rate = done.played_frames / max(done.seconds, 1e-9)
    console.print(
        f"{args.out}: {done.episodes} episodes, {done.frames:,} frames; "
        f"{done.played_frames:,} of them played now, in {done.seconds:.0f} s ({rate:,.0f} a second)"
    )
