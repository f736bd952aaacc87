"""Record episodes of games with a random, sticky or trained policy."""

from dataclasses import dataclass

import tyro

from envs.episodes import manifest
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from envs.utils.storage import parse_uri
from experiments.arguments import RunArgs, check_at_least, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Play games with a random or a trained agent and record the episodes."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games to play, e.g. Airstriker-Genesis Kangaroo-Atari2600; a subset, e.g. platformers-50; or
    Counting and CoinRun, which need no ROM."""
    out: str
    """Episode folder or URI (s3://bucket/prefix)."""
    policy: str = "random"
    """random; sticky:P, which repeats an action with probability P; checkpoint:FOLDER with an agent
    that `autoexplore explore` wrote; expert:FOLDER, the same for test sets."""
    episodes: int = 4
    """Episodes of each game."""
    steps: int = 500
    """Maximum episode length in steps; one step is four emulator frames."""
    workers: int = 2
    """Parallel emulator processes; on a cluster, more join as cores become free."""
    epsilon: float | None = None
    """Probability of a random action for a trained agent. Default: 0, and 0.15 for an expert."""
    temperature: float = 1.0
    """Sampling temperature of a trained agent."""
    timeout: float | None = None
    """Seconds after which an episode's emulator counts as hung and is killed. Default: 60 + steps /
    10."""


def run(args: Args) -> None:
    """Collect, then print what was stored and how fast. --resume keeps the episodes in --out."""
    check_at_least(1, episodes=args.episodes, steps=args.steps, workers=args.workers)
    games = check_games(args.games, partial=True)
    if (parse_uri(args.out) / manifest.NAME).exists() and not args.resume:
        raise InputError(
            f"{args.out} already holds episodes: --resume completes the set, "
            "another --out begins a new one"
        )

    # These load Ray and torch: wrong arguments are reported before.
    from envs.collect.collector import collect
    from exploration.agent.policy import policy_spec

    policy = policy_spec(args.policy, epsilon=args.epsilon, temperature=args.temperature)
    with ray_session(args.ray_address):
        done = collect(
            games,
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
