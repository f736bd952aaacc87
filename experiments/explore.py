"""Train an agent that seeks what the world model is unsure of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments.common import Preset, RunArgs, check_folder, check_games, ray_session


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Train an AutoExplore agent: its only reward is the world model's uncertainty."""

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games to explore; the environments get them in turn."""
    model: Path
    """World model that scores what the agent sees: a folder that `map` or the pipeline wrote, or `save` of a model."""
    out: Path
    """Folder of the run."""
    preset: Preset = "cpu"
    """Sizes of replay, batches and schedule."""
    scorer: Literal["local", "serve"] = "local"
    """Who computes the reward: the model in the process, or replicas of a Ray Serve app; both give the same numbers."""
    runners: int = 2
    """Processes that play."""
    envs_per_runner: int = 4
    """Games that each of them plays at a time."""
    epochs: int | None = None
    """Epochs, where the preset's number does not fit."""


def run(args: Args) -> None:
    """Train and say where the best checkpoint lies."""
    games = check_games(args.games)
    check_folder(args.model, "world model", "pipeline")

    import exploration
    from envs.runs import console
    from worldmodel import load_world_model

    load_world_model(args.model).for_game(None)  # what is wrong with it is said here, not in the log of a runner
    with ray_session(args.ray_address):
        best = exploration.explore(
            games,
            args.model,
            args.out,
            preset=args.preset,
            scorer=args.scorer,
            runners=args.runners,
            envs_per_runner=args.envs_per_runner,
            epochs=args.epochs,
            resume=args.resume,
            seed=args.seed,
        )
    console.print(f"best checkpoint: {best}; play it with `autoexplore collect --policy checkpoint:{best}`")
