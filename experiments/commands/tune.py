"""Change the settings of an agent while it learns: by hand, or by training a population of agents (PBT)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from envs.utils.ray_session import ray_session
from experiments.arguments import Preset, RunArgs, check_folder, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """`tune GAME... --model M --out RUN` trains a population of agents, in which the worse copy the better and vary
    their learning rate, entropy bonus, epsilon, temperature and top fraction. `tune set RUN NAME=VALUE...` changes the
    same settings of a running `explore` from its next epoch on."""

    what: tyro.conf.Positional[tuple[str, ...]]
    """Games to explore; or `set`, the folder of a running `explore`, and changes such as entropy_coeff=0.002."""
    model: Path | None = None
    """World model that scores what the agents see: the `model` folder of `train dynamics`, or one that `export` or the
    pipeline made."""
    out: Path | None = None
    """Folder of the run."""
    preset: Preset = "cpu"
    """Sizes of replay, batches and schedule of each agent."""
    scorer: Literal["local", "serve"] = "serve"
    """Who computes the rewards: one reward service for all agents, or the model in every process that plays."""
    trials: int = 4
    """Agents in the population."""
    epochs: int | None = None
    """Epochs of each agent, where the preset's number does not fit."""
    every: int | None = None
    """Epochs after which the worse agents copy the better. Default: the preset's epochs between evaluations."""
    runners: int = 1
    """Processes that play, for each agent."""
    envs_per_runner: int = 4
    """Games that each of them plays at a time."""


def run(args: Args) -> None:
    """Set, or train; then say where to look."""
    if args.what[:1] == ("set",):
        set_values(args.what[1:])
        return
    train(args)


def set_values(words: tuple[str, ...]) -> None:
    """`tune set RUN NAME=VALUE...`"""
    from envs.utils.errors import InputError
    from envs.utils.progress import console
    from exploration.agent.checkpoint import complete_checkpoints
    from exploration.mutable_settings import request

    if len(words) < 2:
        raise InputError("tune set needs a run's folder and changes: autoexplore tune set RUN entropy_coeff=0.002")
    folder = Path(words[0])
    checkpoints = complete_checkpoints(folder)
    done = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    values = request(folder, words[1:], epochs_done=done)
    told = ", ".join(f"{name}={value:g}" for name, value in values.items())
    console.print(f"{folder}: {told} from its next epoch on")


def train(args: Args) -> None:
    """`tune GAME...`"""
    from envs.utils.errors import InputError
    from envs.utils.progress import console
    from experiments.reports.tune_report import build

    if args.model is None or args.out is None:
        raise InputError("tune needs --model, the world model that scores, and --out, the folder of the run")
    games = check_games(args.what)
    check_folder(args.model, "world model", "pipeline")

    from exploration.tune import tune
    from worldmodel import load_world_model

    load_world_model(args.model).for_game(None)  # what is wrong with it is said here, not in the log of a runner
    with ray_session(args.ray_address):
        tune(
            games,
            args.model,
            args.out,
            preset=args.preset,
            scorer=args.scorer,
            trials=args.trials,
            epochs=args.epochs,
            every=args.every,
            runners=args.runners,
            envs_per_runner=args.envs_per_runner,
            resume=args.resume,
            seed=args.seed,
        )
    for line in build(args.out, args.out / "report"):
        console.print(line)
    console.print(f"Report: {(args.out / 'report' / 'index.html').resolve()}")
