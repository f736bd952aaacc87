"""Train a component of the world model on recorded episodes, through Ray Train."""

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from envs.utils.ray_session import ray_session
from experiments.arguments import Preset, RunArgs, check_folder, default_threads

if TYPE_CHECKING:
    from worldmodel import WorldModelConfig


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Train one component of the world model."""

    component: tyro.conf.Positional[Literal["tokenizer", "lam", "dynamics", "upscaler"]]
    """What to train. dynamics needs --tokenizer; with --lam or --joint-lam it is GenieRedux's, on latent actions.
    upscaler needs --pairs."""
    data: tuple[str, ...] = ()
    """Folders of episodes, or places like s3://bucket/prefix, made by `autoexplore collect`; several are united."""
    out: Path | None = None
    """Folder of the run."""
    preset: Preset = "cpu"
    """Sizes of the model and of its training: debug (seconds), cpu (minutes on two cores), paper."""
    recipe: str | None = None
    """Which of the paper's runs. tokenizer: base, finetune (its decoder alone). dynamics: g200 (pretraining), g50,
    finetune, scratch. upscaler: small-16k, small-50k, large-50k. Default: the first. g50 and finetune need --init."""
    tokenizer: Path | None = None
    """For dynamics: the run folder or checkpoint of the trained tokenizer."""
    lam: Path | None = None
    """For dynamics: take the actions that this latent action model reads from the frames, not the recorded ones."""
    joint_lam: bool = False
    """For dynamics: train the latent action model at the same time, that of --lam or a new one."""
    label_fraction: float | None = None
    """For lam, and dynamics with --joint-lam: share of each game's episodes, rounded up, whose recorded actions the
    latent action model may see, e.g. 0.05, so that its codes stand for buttons. Default: none."""
    objective: Literal["masked", "masked_frames", "clean_past"] | None = None
    """For dynamics, where the preset's does not fit: masked (the paper's, one ratio for all frames of a clip),
    masked_frames (a ratio for each, knows most of the frame that the reward asks about) or clean_past (generates best
    at cpu size)."""
    pairs: str | None = None
    """For upscaler: the episodes of --data at 256x256, made by `autoexplore data replay`."""
    init: Path | None = None
    """Start from the weights of this run folder or checkpoint (fine-tuning)."""
    workers: int = 0
    """Ray Train workers; 0 trains in this process."""
    iterations: int | None = None
    """Optimizer steps, where the recipe's number does not fit."""
    batch_size: int | None = None
    """Clips a step, where the recipe's number does not fit."""
    lr: float | None = None
    """Highest learning rate, where the recipe's does not fit; the lowest changes in proportion."""
    grad_accum_steps: int | None = None
    """Parts that a worker's share of a batch is computed in, one after the other, where it does not fit into memory."""
    activation_checkpointing: bool = False
    """Compute each part of each block again backward instead of keeping what is inside it: less memory, more time."""
    compile: bool = False
    """Compile what is not a matrix product (torch.compile); on a CPU that takes a C++ compiler."""
    parallelism: Literal["ddp", "fsdp"] | None = None
    """How several workers hold the model: ddp (each a copy) or fsdp (each a share)."""
    ema: float | None = None
    """Decay of a moving average of the weights, e.g. 0.999, which is then validated and exported."""
    streaming_buffer: int | None = None
    """Stream the data instead of copying it to the local disk: how many compressed sessions a worker holds in memory,
    e.g. 10000. For data sets larger than the disk."""
    num_threads: int | None = None
    """Torch threads of a worker. Default: the cores that this process may use, shared among the workers."""
    dry_run: bool = False
    """Train nothing: print parameters, FLOPs, memory and time of the run on --hardware."""
    hardware: str = "here"
    """For --dry-run: here (this machine, measured) or a card and how many of them, e.g. a100x8, h100x8, l4."""


SETTINGS = (
    "iterations",
    "batch_size",
    "lr",
    "label_fraction",
    "grad_accum_steps",
    "activation_checkpointing",
    "compile",
    "parallelism",
    "ema",
    "streaming_buffer",
    "num_threads",
)
"""The flags that change a setting of the recipe."""


def run(args: Args) -> None:
    """Train and say where the newest checkpoint lies. Raises InputError for what does not fit together."""
    from worldmodel.training.config import find_recipe, train_preset

    changes = {name: value for name in SETTINGS if (value := getattr(args, name)) not in (None, False)}
    changes.setdefault("num_threads", max(1, default_threads() // max(args.workers, 1)))
    chosen = find_recipe(args.component, args.recipe)
    settings = train_preset(args.component, args.preset, args.recipe, seed=args.seed, **changes)
    config = model_config(args)
    if args.dry_run:
        from experiments.dry_run import show

        options = {"decoder_only": chosen.decoder_only, "joint_lam": args.joint_lam}
        show(args.component, args.preset, config, settings, args.hardware, **options)
        return
    check(args, needs_init=chosen.needs_init)

    from envs.utils.progress import console
    from worldmodel.checkpoint import best_checkpoint
    from worldmodel.loading import build_world_model
    from worldmodel.training.train import train

    assert args.out is not None
    with ray_session(args.ray_address) if args.workers else nullcontext():
        newest = train(
            args.component,
            config=config,
            recipe=settings,
            data=args.data,
            out=args.out,
            workers=args.workers,
            resume=args.resume,
            init=args.init,
            tokenizer=args.tokenizer,
            lam=args.lam,
            joint_lam=args.joint_lam,
            decoder_only=chosen.decoder_only,
            pairs=args.pairs,
        )
    console.print(f"newest checkpoint: {newest}")
    best = best_checkpoint(args.out)
    if best is not None and best.name != newest.name:
        console.print(f"lowest validation loss: {best}")
    if args.component == "dynamics" and args.tokenizer is not None:
        if args.lam is not None or args.joint_lam:
            console.print("`autoexplore export` makes a world model of it")
        else:
            build_world_model(args.tokenizer, args.out).save(args.out / "model")
            console.print(f"world model, for evaluate, generate, play, explore and serve: {args.out / 'model'}")


def model_config(args: Args) -> "WorldModelConfig":
    """The preset's model, with the objective and the kind of actions that were asked for.

    Raises InputError for an objective of a component that has none.
    """
    from envs.utils.errors import InputError
    from worldmodel import preset

    config = preset(args.preset)
    if args.component == "dynamics" and (args.lam is not None or args.joint_lam):
        config = config.with_latent_actions()
    if args.objective is None:
        return config
    if args.component != "dynamics":
        raise InputError(f"--objective {args.objective} is one of dynamics, not of {args.component}: leave it out")
    return dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, objective=args.objective))


def check(args: Args, *, needs_init: bool) -> None:
    """Refuse what is missing or not there, before anything starts."""
    from envs.utils.errors import InputError
    from envs.utils.storage import is_remote

    if not args.data or args.out is None:
        raise InputError(f"train {args.component} needs {'--out' if args.data else '--data'}; see --help")
    for folder in (*args.data, *((args.pairs,) if args.pairs else ())):
        if not is_remote(folder):
            check_folder(Path(folder), "data folder", "collect")
    if needs_init and args.init is None:
        raise InputError(f"--recipe {args.recipe} goes on from a trained {args.component}: give it with --init")
    for folder_or_none in (args.tokenizer, args.lam, args.init):
        if folder_or_none is not None:
            check_folder(folder_or_none, "checkpoint", "train")
