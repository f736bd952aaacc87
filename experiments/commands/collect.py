"""Record episodes of games with a random, scripted or trained policy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from envs.controls import ACTIONS, parse_action_names
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    EnvOptionArgs,
    PrecisionArgs,
    RunArgs,
    check_at_least,
    check_data,
    check_games,
    check_model,
    check_new_data,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envs.collect import CollectSummary
    from envs.collect.policies import PolicySpec
    from envs.games.base import EnvOptions


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs, EnvOptionArgs, PrecisionArgs):
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
    wrote; expert:FOLDER, the same for test sets; my_package.module:Policy, the import path of a
    class or function of yours (see docs/recipes.md); rllib:FOLDER, a checkpoint of an Algorithm or
    RLModule of RLlib, which is a pickle: loading it runs the code in it, so give only one that you
    trust; archive:POLICY, which plays on with POLICY
    (archive alone: dirichlet:0.3) from savestates of which the world model knows little."""
    model: Path | None = None
    """World model that scores the savestates of an archive."""
    reward: Literal["token-entropy", "disagreement", "count-bonus", "extrinsic"] = "token-entropy"
    """Score of a savestate: the world model's uncertainty; visits alone; the game's own reward."""
    reward_data: tuple[str, ...] = ()
    """Episode folders on which disagreement is trained."""
    episodes: int = 4
    """Number of episodes of each game."""
    actions: tuple[str, ...] = ()
    """Actions instead of the games' own five, e.g. right left jump jump+right none: each holds
    buttons, named right, left, up, down, jump, secondary or as on the console. An agent plays with
    those that it was trained with."""
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
    check_data(args.reward_data)
    args = replace(args, actions=parse_action_names(args.actions))
    options = args.parse_options(games)

    # The functions below import Ray, and torch for agents: wrong arguments are reported first.
    archive, _, name = args.policy.partition(":")
    if archive == "archive":
        if args.model is not None:
            check_model(args.model)
        policy = build_policy(name or "dirichlet:0.3", args)
        summary = run_archive(games, policy, args, options)
    else:
        policy = build_policy(args.policy, args)
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
                actions=args.actions,
                options=options,
            )
    rate = summary.played_frames / max(summary.seconds, 1e-9)
    console.print(
        f"{args.out}: {summary.episodes} episodes, {summary.frames:,} frames; "
        f"{summary.played_frames:,} of them played in this run, "
        f"in {summary.seconds:.0f} s ({rate:,.0f} frames/s)"
    )


def build_policy(name: str, args: Args) -> "PolicySpec":
    """Return the policy of a name. Only that of an agent imports torch."""
    from envs.collect.imported_policy import named_policy

    if not name.startswith(("checkpoint:", "expert:", "rllib:")):
        return named_policy(name, args.actions or ACTIONS)
    kind, _, folder = name.partition(":")
    if kind == "rllib":
        from exploration.agent.rllib_policy import rllib_policy

        return rllib_policy(folder, epsilon=args.epsilon, temperature=args.temperature)
    from exploration.agent.policy import policy_spec

    return policy_spec(name, epsilon=args.epsilon, temperature=args.temperature)


def run_archive(
    games: "Sequence[str]", policy: "PolicySpec", args: Args, options: "EnvOptions"
) -> "CollectSummary":
    """Collect episodes that begin at savestates."""
    from exploration import archive
    from exploration.reward.factory import RewardConfig

    reward = RewardConfig(args.reward, data=args.reward_data)
    reward.check(args.model)
    config = archive.ArchiveConfig(
        episodes=args.episodes, steps=args.steps, policy=policy, precision=args.precision
    )
    with ray_session(args.ray_address):
        return archive.play_from_archive(
            games,
            args.model,
            args.out,
            config,
            reward,
            workers=args.workers,
            seed=args.seed,
            timeout=args.timeout,
            actions=args.actions,
            options=options,
        )
