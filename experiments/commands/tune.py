"""Tune explorers while they learn: by hand, or by population-based training."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    ConfigArgs,
    DeviceArgs,
    Preset,
    RunArgs,
    check_at_least,
    check_games,
    check_model,
)
from experiments.configuration import Flat, default_args, flag_value
from exploration.config import ExploreConfig, explore_preset


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs, ConfigArgs, DeviceArgs):
    """`tune GAME... --model M --out RUN` trains a population of agents: the worse ones copy the
    better ones and vary their learning rate, entropy bonus, epsilon, temperature and top fraction.
    `tune set RUN NAME=VALUE...` changes the same settings of a running `explore` from its next
    epoch on."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games to explore; or `set`, the folder of a running `explore`, and changes such as
    entropy_coeff=0.002."""
    model: Path | None = None
    """World model that scores the agents' frames: the `model` folder of `train dynamics`, `export`
    or `pipeline`."""
    out: Path | None = None
    """Folder of the run."""
    preset: Preset = "cpu"
    """Size and schedule of each agent: debug (seconds), cpu (two cores), paper."""
    reward_backend: Literal["local", "serve"] = "serve"
    """Compute rewards in one Ray Serve app for all agents (serve) or in each process that plays
    (local)."""
    trials: int = 4
    """Number of agents in the population."""
    perturbation_interval: int | None = None
    """Epochs between two perturbations. Default: --evaluate-every."""
    explorer: Flat[ExploreConfig]


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the preset and the --config file in argv; each agent has one
    runner."""
    preset = explore_preset(flag_value(argv, "--preset", "cpu"), runners=1, envs_per_runner=4)
    return default_args(Args, argv, translate=from_run, explorer=preset)


def from_run(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a run as fields of `Args`."""
    if not isinstance(recorded.get("tune"), dict):
        return recorded
    values = dict(recorded["tune"])
    return values | {"reward_backend": values.pop("scorer")}


def run(args: Args) -> None:
    """Run `tune set` or `tune GAME...`, and print where the result is."""
    if args.games[:1] == ("set",):
        request_changes(args.games[1:])
    else:
        train_population(args)


def request_changes(words: tuple[str, ...]) -> None:
    """Run `tune set RUN NAME=VALUE...`."""
    from exploration.agent.checkpoint import complete_checkpoints
    from exploration.mutable_settings import request_change

    if len(words) < 2:
        raise InputError(
            "tune set needs a run's folder and changes: "
            "autoexplore tune set RUN entropy_coeff=0.002"
        )
    folder = Path(words[0])
    checkpoints = complete_checkpoints(folder)
    epochs = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    values = request_change(folder, words[1:], epochs_done=epochs)
    changes = ", ".join(f"{name}={value:g}" for name, value in values.items())
    console.print(f"{folder}: {changes} from its next epoch on")


def train_population(args: Args) -> None:
    """Run `tune GAME...`."""
    if args.model is None or args.out is None:
        raise InputError(
            "tune needs --model, the world model that scores, and --out, the folder of the run"
        )
    games = check_games(args.games)
    check_model(args.model)
    check_at_least(1, perturbation_interval=args.perturbation_interval)

    from experiments.reports.tune_report import build_tune_report
    from exploration.tune import tune
    from worldmodel import load_world_model

    load_world_model(args.model).for_game(None)  # report a bad model here, not in a runner's log
    config = args.explorer
    if args.perturbation_interval is not None:
        config = dataclasses.replace(config, evaluate_every=args.perturbation_interval)
    with ray_session(args.ray_address):
        tune(
            games,
            args.model,
            args.out,
            config=config,
            scorer=args.reward_backend,
            trials=args.trials,
            resume=args.resume,
            seed=args.seed,
        )
    for line in build_tune_report(args.out, args.out / "report"):
        console.print(line)
    console.print(f"Report: {(args.out / 'report' / 'index.html').resolve()}")
