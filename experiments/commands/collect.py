"""Play games and record the episodes: seeded, resumable, one emulator a process."""

from dataclasses import dataclass

import tyro

from envs.utils.ray_session import ray_session
from experiments.arguments import RunArgs


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Play games with a random or a trained agent and record the episodes."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games to play, e.g. Airstriker-Genesis Kangaroo-Atari2600; a list of them, platformers-50; or Counting and
    CoinRun, which need no ROM."""
    out: str
    """Folder of the episodes, or a place like s3://bucket/prefix."""
    policy: str = "random"
    """Who plays: random; sticky:P, which repeats an action with probability P; checkpoint:FOLDER with what
    `autoexplore explore` wrote; expert:FOLDER, the same for test sets."""
    episodes: int = 4
    """Episodes of each game."""
    steps: int = 500
    """Longest episode in steps; a step is four emulator frames."""
    workers: int = 2
    """Emulator processes at a time; those that a cluster has no core for yet join when it has."""
    epsilon: float | None = None
    """Share of random actions mixed into an agent's own; by default 0, and 0.15 for an expert."""
    temperature: float = 1.0
    """Above 1 an agent chooses more evenly, below 1 more surely."""
    timeout: float | None = None
    """Seconds an episode may take before its emulator counts as hung and is killed; by default 60 + steps / 10."""


def run(args: Args) -> None:
    """Collect, then say what was stored and how fast. Episodes that are already there are kept with --resume."""
    from envs.collect.collector import collect
    from envs.episodes import manifest
    from envs.utils.errors import InputError
    from envs.utils.progress import console
    from envs.utils.storage import parse_uri
    from exploration.agent.policy import policy_spec

    if (parse_uri(args.out) / manifest.NAME).exists() and not args.resume:
        raise InputError(
            f"{args.out} already holds episodes: --resume completes the set, another --out begins a new one"
        )
    policy = policy_spec(args.policy, epsilon=args.epsilon, temperature=args.temperature)
    with ray_session(args.ray_address):
        done = collect(
            args.games,
            args.out,
            episodes=args.episodes,
            steps=args.steps,
            policy=policy,
            workers=args.workers,
            seed=args.seed,
            timeout=args.timeout,
        )
    rate = done.played_frames / max(done.seconds, 1e-9)
    console.print(
        f"{args.out}: {done.episodes} episodes, {done.frames:,} frames; "
        f"{done.played_frames:,} of them played now, in {done.seconds:.0f} s ({rate:,.0f} a second)"
    )
