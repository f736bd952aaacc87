"""Train an exploration agent on the world model's uncertainty."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import exploration
from envs.games.options import format_env_options
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    ConfigArgs,
    DeviceArgs,
    EnvOptionArgs,
    GameArgs,
    Preset,
    RunArgs,
    check_at_least,
    check_data,
    check_model,
)
from experiments.configuration import Flat, default_args, flag_value
from exploration.config import ExploreConfig, explore_preset

Reward = Literal[
    "token-entropy", "disagreement", "random-features", "vae", "count-bonus", "random", "extrinsic"
]


@dataclass(frozen=True, kw_only=True)
class Args(GameArgs, RunArgs, EnvOptionArgs, ConfigArgs, DeviceArgs):
    """Train an AutoExplore agent. Its only reward is the world model's uncertainty, or a
    baseline."""

    model: Path | None = None
    """World model that scores the agent's frames: the `model` folder of `train dynamics`, `export`
    or `pipeline`. The rewards count-bonus, random and extrinsic need none."""
    out: Path
    """Folder of the run."""
    preset: Literal[Preset, "expert-debug", "expert-cpu", "expert-gpu", "expert-paper"] = "cpu"
    """Size and schedule of the agent: debug (seconds), cpu (two cores), gpu (one GPU), paper;
    expert-* are for the reward extrinsic."""
    reward: Reward = "token-entropy"
    """Intrinsic reward. token-entropy: the paper's; disagreement: ensemble disagreement, robust to
    noise; random-features, vae: prediction error in feature space (Table 6); count-bonus: rarely
    seen screens; random: a baseline; extrinsic: the game's own reward."""
    reward_data: tuple[str, ...] = ()
    """Episode folders on which disagreement and vae are trained before the agent starts."""
    archive: Path | None = None
    """Folder of `collect --policy archive`: a share of the episodes begin at its savestates."""
    reference_data: tuple[str, ...] = ()
    """Episode folders that the world model was trained on: reports how far from them the agent
    goes."""
    reward_backend: Literal["auto", "local", "serve"] = "auto"
    """Compute token-entropy in each env runner (local) or in replicas of a Ray Serve app (serve);
    both give the same numbers. auto: serve if Ray has GPUs or nodes to serve, else local."""
    reward_app: str | None = None
    """Name of a reward service that `autoexplore serve MODEL --name NAME` runs on the same
    --ray-address: it scores the frames instead of one that this command starts, and keeps running.
    """
    reward_max_replicas: int | None = None
    """Maximum number of replicas of the service that this command starts, while requests queue.
    Default: --replicas."""
    explorer: Flat[ExploreConfig]


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the preset and the --config file in argv."""
    preset = explore_preset(flag_value(argv, "--preset", "cpu"))
    return default_args(Args, argv, translate=from_run, explorer=preset)


def from_run(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of an exploration run as fields of `Args`."""
    values = dict(recorded)
    if isinstance(reward := values.get("reward"), dict):
        values |= {"reward": reward["name"], "reward_data": reward["data"]}
        # Not the app, which need not be running any more.
        values["reward_backend"] = reward["scorer"]
        values["reward_max_replicas"] = reward.get("max_replicas")
    if isinstance(options := values.get("env_options"), dict):
        values["env_options"] = format_env_options(options)
    return values


def run(args: Args) -> None:
    """Train and print the path of the best checkpoint."""
    games = args.select()
    options = args.parse_options(games)
    check_data(args.reward_data)
    check_data(args.reference_data)
    if args.model is not None:
        check_model(args.model)

    # This imports torch: wrong paths are reported first, and wrong rewards before Ray starts.
    from exploration.reward.factory import RewardConfig

    reward = RewardConfig(
        args.reward,
        args.reward_backend,
        args.reward_data,
        app=args.reward_app,
        max_replicas=args.reward_max_replicas,
    )
    reward.check(args.model)
    config = args.explorer
    check_at_least(config.replicas, reward_max_replicas=args.reward_max_replicas)
    if config.envs_per_runner == explore_preset(args.preset).envs_per_runner:
        config = config.with_envs_for(len(games))  # the flag is not set
    with ray_session(args.ray_address):
        best = exploration.explore(
            games,
            args.model,
            args.out,
            config=config,
            reward=reward,
            archive=args.archive,
            reference_data=args.reference_data,
            env_options=options,
            resume=args.resume,
            seed=args.seed,
        )
    console.print(
        f"best checkpoint: {best}; play it with `autoexplore collect --policy checkpoint:{best}`"
    )


def agent_of_run(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return games, model and explorer of an exploration run's config.json.

    The settings of any other file are returned unchanged.
    """
    if not isinstance(recorded.get("reward"), dict):
        return recorded
    settings = {field.name for field in dataclasses.fields(ExploreConfig)}
    explorer = {name: value for name, value in recorded.items() if name in settings}
    return {"games": recorded["games"], "model": recorded["model"], "explorer": explorer}
