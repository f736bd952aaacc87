"""Train an agent on a game's own reward and record a test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from envs.games.options import format_env_options
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    ConfigArgs,
    DeviceArgs,
    EnvOptionArgs,
    Preset,
    RunArgs,
    check_at_least,
    check_games,
    check_new_data,
)
from experiments.commands.explore import agent_of_run
from experiments.configuration import default_args, flag_value
from exploration.agent.config import check_exploration
from exploration.config import ExploreConfig, explore_preset


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs, EnvOptionArgs, ConfigArgs, DeviceArgs):
    """Train an expert and record a test set of its play, mixed with random actions."""

    game: tyro.conf.Positional[str]
    """Game to play, e.g. Airstriker-Genesis."""
    out: Path
    """Folder: the training run in agent/, the episodes in data/."""
    preset: Preset = "cpu"
    """Size and schedule of the agent: debug (seconds), cpu (two cores), paper."""
    episodes: int = 10
    """Number of episodes to record; the paper's test sets have 1,000."""
    steps: int = 700
    """Maximum episode length in steps."""
    epsilon: float = 0.15
    """Probability of a random action in the recorded episodes, from 0 to 1."""
    workers: int = 2
    """Number of parallel emulator processes that record."""
    explorer: ExploreConfig


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the preset and the --config file in argv."""
    preset = explore_preset(f"expert-{flag_value(argv, '--preset', 'cpu')}")
    return default_args(Args, argv, translate=from_run, explorer=preset)


def from_run(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of an expert's training as fields of `Args`."""
    values = agent_of_run(recorded)
    if values is recorded:
        return recorded
    values = {"game": values["games"][0], "seed": recorded["seed"], "explorer": values["explorer"]}
    if isinstance(options := recorded.get("env_options"), dict):
        values["env_options"] = format_env_options(options)
    return values


def run(args: Args) -> None:
    """Train, record, and print the folders of both, the mean return and that of random play."""
    (game,) = check_games([args.game])
    options = args.parse_options([game])
    check_at_least(1, episodes=args.episodes, steps=args.steps, workers=args.workers)
    agent, data = args.out / "agent", args.out / "data"
    check_new_data(data, resume=args.resume)
    check_exploration(args.epsilon, 1.0)

    from envs.collect.collector import collect
    from envs.episodes.dataset import EpisodeReader
    from exploration import explore
    from exploration.agent.policy import policy_spec
    from exploration.random_play import compare_with_random, report_depth
    from exploration.reward.factory import RewardConfig

    with ray_session(args.ray_address):
        best = explore(
            [game],
            None,
            agent,
            config=args.explorer,
            reward=RewardConfig("extrinsic"),
            env_options=options,
            resume=args.resume,
            seed=args.seed,
        )
        compared = compare_with_random(
            agent, game, config=args.explorer, seed=args.seed, options=options
        )
        collect(
            [game],
            str(data),
            episodes=args.episodes,
            steps=args.steps,
            policy=policy_spec(f"expert:{best}", epsilon=args.epsilon),
            workers=args.workers,
            seed=args.seed,
            options=options,
        )
    reader = EpisodeReader(data)
    returns = [float(reader[index].rewards.sum()) for index in range(len(reader))]
    mean = sum(returns) / max(len(returns), 1)
    console.print(
        f"{data}: {len(reader)} episodes of {game} with a mean return of {mean:.1f}; "
        f"the expert is {best}"
    )
    report_depth(compared)
