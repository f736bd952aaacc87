"""Record episodes of games with a random, scripted or trained policy."""

from dataclasses import dataclass

import tyro

from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import RunArgs, check_at_least, check_games, check_new_data


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Record episodes of games with a random, scripted or trained policy."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games to play, e.g. Airstriker-Genesis Kangaroo-Atari2600; a subset, e.g. platformers-50; or
    Counting and CoinRun, which need no ROM."""
    out: str
    """Episode folder or URI (s3://bucket/prefix)."""
    policy: str = "random"
    """random; sticky:P, which repeats an action with probability P; dirichlet:ALPHA, whose episodes
    each draw action probabilities (0.3 goes far); zipf:EXPONENT, bursts of one action; hold:ACTION,
    one button with 15 % random actions; checkpoint:FOLDER, an agent that `autoexplore explore`
    wrote; expert:FOLDER, the same for test sets."""
    episodes: int = 4
    """Number of episodes of each game."""
    steps: int = 500
    """Maximum episode length in steps; one step is four emulator frames."""
    workers: int = 2
    """Number of parallel emulator processes; on a cluster, more join as cores become free."""
    epsilon: float | None = None
    """Probability of a random action of a trained agent, from 0 to 1. Default: 0, and 0.15 for an
    expert."""
    temperature: float = 1.0
    """Sampling temperature of a trained agent, 0 or more; 0 takes its best action."""
    timeout: float | None = None
    """Seconds after which the emulator of an episode counts as hung and is killed. Default: 60 +
    steps / 10."""


def run(args: Args) -> None:
    """Collect, then print the number of stored episodes and the speed."""
    check_at_least(1, episodes=args.episodes, steps=args.steps, workers=args.workers)
    games = check_games(args.games, partial=True)
    check_new_data(args.out, resume=args.resume)

    # These import Ray and torch: wrong arguments are reported first.
    from envs.collect.policies import builtin_policy

    if args.policy.startswith(("checkpoint:", "expert:")):
        from exploration.agent.policy import policy_spec

        policy = policy_spec(args.policy, epsilon=args.epsilon, temperature=args.temperature)
    else:
        policy = builtin_policy(args.policy)
    from envs.collect.collector import collect

    with ray_session(args.ray_address):
        summary = collect(
            games,
            args.out,
            episodes=args.episodes,
            steps=args.steps,
            policy=policy,
            workers=args.workers,
            seed=args.seed,
            timeout=args.timeout,
        )
    rate = summary.played_frames / max(summary.seconds, 1e-9)
    console.print(
        f"{args.out}: {summary.episodes} episodes, {summary.frames:,} frames; "
        f"{summary.played_frames:,} of them played in this run, "
        f"in {summary.seconds:.0f} s ({rate:,.0f} frames/s)"
    )
