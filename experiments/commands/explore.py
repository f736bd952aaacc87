"""Train an agent that seeks what the world model is unsure of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.utils.ray_session import ray_session
from experiments.arguments import GameArgs, Preset, RunArgs, check_folder


@dataclass(frozen=True, kw_only=True)
class Args(GameArgs, RunArgs):
    """Train an AutoExplore agent: its only reward is the world model's uncertainty, or one to compare it with."""

    model: Path | None = None
    """World model that scores what the agent sees: the `model` folder of `train dynamics`, or one that `export` or the
    pipeline made. The rewards count, random and env need none."""
    out: Path
    """Folder of the run."""
    preset: Literal[Preset, "expert-debug", "expert-cpu", "expert-paper"] = "cpu"
    """Sizes of replay, batches and schedule; expert-*: for --reward env, the game's own reward."""
    reward: Literal["autoexplore", "disagreement", "rf", "vae", "count", "random", "env"] = (
        "autoexplore"
    )
    """What pays: autoexplore, the model's token entropy; disagreement of several heads on the model, which noise does
    not draw; rf or vae, the error of its prediction in random or learnt features (table 6); count of screens; random;
    or env, the game's own reward."""
    reward_data: tuple[str, ...] = ()
    """Folders of episodes that disagreement and vae learn from before the agent begins."""
    scorer: Literal["local", "serve"] = "local"
    """Who computes autoexplore's reward: the model in the process, or replicas of a Ray Serve app; both give the same
    numbers."""
    runners: int | None = None
    """Processes that play, where the preset's number does not fit."""
    envs_per_runner: int | None = None
    """Games that each of them plays at a time; by default as many as the games need."""
    learners: int | None = None
    """Processes that learn and share each batch; 0 learns in this process or, where a cluster has machines with GPUs
    for learners, in one there."""
    epochs: int | None = None
    """Epochs, where the preset's number does not fit."""
    top_fraction: float | None = None
    """Share of a frame's tokens, the most uncertain, whose mean is the reward; the paper's is 0.25."""


SETTINGS = ("runners", "envs_per_runner", "learners", "epochs", "top_fraction")
"""The flags that change a setting of the preset."""


def run(args: Args) -> None:
    """Train and say where the best checkpoint lies."""
    from exploration.config import recipe

    changes = {name: getattr(args, name) for name in SETTINGS}
    recipe(args.preset, **changes)
    games = args.chosen()
    for folder in args.reward_data:
        check_folder(Path(folder), "data folder", "collect")
    if args.model is not None:
        check_folder(args.model, "world model", "pipeline")

    import exploration
    from envs.utils.progress import console

    with ray_session(args.ray_address):
        best = exploration.explore(
            games,
            args.model,
            args.out,
            preset=args.preset,
            reward=args.reward,
            reward_data=args.reward_data,
            scorer=args.scorer,
            resume=args.resume,
            seed=args.seed,
            **changes,
        )
    console.print(
        f"best checkpoint: {best}; play it with `autoexplore collect --policy checkpoint:{best}`"
    )
