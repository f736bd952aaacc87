"""Train a tokenizer, latent action model, dynamics model or upscaler."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.table import Table

from envs.episodes.dataset import recorded_actions
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import (
    ConfigArgs,
    DeviceArgs,
    Preset,
    RayArgs,
    check_at_least,
    check_data,
    check_folder,
    default_threads,
)
from experiments.configuration import Flat, default_args, flag_value
from worldmodel import WorldModelConfig, preset
from worldmodel.training.config import COMPONENT_NAMES, TrainConfig, find_recipe, train_preset

RECORDED = {"config": "model", "recipe": "training", "pairs": "high_res_data"}
"""Keys of a run's config.json whose argument has another name."""
TRAINED_PARTS = {"tokenizer": ["tokenizer"], "lam": ["lam"], "upscaler": []}
"""Parts of the model configuration that matter for a component; for dynamics all do."""


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs, ConfigArgs, DeviceArgs):
    """Train one component of the world model."""

    component: tyro.conf.Positional[Literal["tokenizer", "lam", "dynamics", "upscaler"]]
    """Component to train. dynamics needs --tokenizer; with --lam or --joint-lam it becomes the
    dynamics of GenieRedux, on latent actions. upscaler needs --high-res-data."""
    data: tuple[str, ...] = ()
    """Episode folders or URIs (s3://bucket/prefix) written by `autoexplore collect`; several are
    concatenated."""
    out: Path | None = None
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out."""
    preset: Preset = "cpu"
    """Sizes of the model and of its training: debug (seconds), cpu (minutes on two cores),
    paper."""
    recipe: str | None = None
    """One of the paper's runs. tokenizer: base, finetune (decoder only). dynamics: g200
    (pretraining), g50, finetune, scratch. upscaler: small-16k, small-50k, large-50k. Default: the
    first. g50 and finetune need --init."""
    tokenizer: Path | None = None
    """For dynamics: run folder or checkpoint of the trained tokenizer."""
    lam: Path | None = None
    """For dynamics: run folder or checkpoint of a latent action model, whose actions replace the
    recorded ones."""
    joint_lam: bool = False
    """For dynamics: train the latent action model at the same time, that of --lam or a new one."""
    decoder_only: bool = False
    """For tokenizer with --init: train the decoder only, so that token ids stay the same."""
    high_res_data: str | None = None
    """For upscaler: the episodes of --data at 256x256, written by `autoexplore data rerender`."""
    priority_model: Path | None = None
    """For --prioritised: saved world model whose uncertainty chooses the clips."""
    init: Path | None = None
    """Start from the weights of this run folder or checkpoint (fine-tuning)."""
    workers: int = 0
    """Number of Ray Train workers; 0 trains in this process."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory and time of the run on --hardware instead of training."""
    hardware: str = "here"
    """For --dry-run: here (this machine, measured) or a card and their number, e.g. a100x8, l4."""
    training: Flat[TrainConfig]
    model: WorldModelConfig


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the recipe, the preset and the --config file in argv."""
    size, recipe = flag_value(argv, "--preset", "cpu"), flag_value(argv, "--recipe", "") or None
    component = next((word for word in argv if word in COMPONENT_NAMES), COMPONENT_NAMES[0])
    return default_args(
        Args,
        argv,
        translate=from_run,
        decoder_only=find_recipe(component, recipe).decoder_only,
        training=train_preset(component, size, recipe),
        model=preset(size),
    )


def from_run(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a run as fields of `Args`."""
    names = RECORDED if "pairs" in recorded else {}
    return {names.get(name, name): value for name, value in recorded.items()}


def run(args: Args) -> None:
    """Train and print the path of the newest checkpoint."""
    check_at_least(0, workers=args.workers)
    check_model_flags(args)
    settings = args.training
    if settings.num_threads == 0:
        threads = max(1, default_threads() // max(args.workers, 1))
        settings = dataclasses.replace(settings, num_threads=threads)
    if args.dry_run:
        print_cost(args, settings)
        return
    out = check_inputs(args)

    # These import torch: wrong arguments are reported first.
    from worldmodel.checkpoint import best_checkpoint
    from worldmodel.loading import build_world_model
    from worldmodel.training.train import TrainingRun, train

    specification = TrainingRun(
        args.component,
        config=args.model,
        recipe=settings,
        data=args.data,
        out=out,
        init=args.init,
        tokenizer=args.tokenizer,
        lam=args.lam,
        joint_lam=args.joint_lam,
        decoder_only=args.decoder_only,
        pairs=args.high_res_data,
        priority_model=args.priority_model,
    )
    specification.check_inputs()  # wrong flags are reported before the data are read
    config = match_actions(args.model, args.data)
    specification = dataclasses.replace(specification, config=config)
    with ray_session(args.ray_address) if args.workers else nullcontext():
        newest = train(specification, workers=args.workers, resume=args.resume)
    console.print(f"newest checkpoint: {newest}")
    best = best_checkpoint(out)
    if best is not None and best.name != newest.name:
        console.print(f"lowest validation loss: {best}")
    if args.component != "dynamics" or args.tokenizer is None:
        return
    if has_latent_actions(args):
        console.print("`autoexplore export` makes a world model of it")
    else:
        build_world_model(args.tokenizer, out).save(out / "model")
        console.print(
            f"world model, for evaluate, generate, play, explore and serve: {out / 'model'}"
        )


def has_latent_actions(args: Args) -> bool:
    """Return True if a dynamics model is trained on latent actions."""
    return args.component == "dynamics" and (args.lam is not None or args.joint_lam)


def match_actions(model: WorldModelConfig, data: Sequence[str]) -> WorldModelConfig:
    """Return the model with the actions of the data.

    A number that was given as a flag, other than the default, stays.
    """
    if model.actions != WorldModelConfig.actions:
        return model
    return model.with_actions(recorded_actions(data))


def check_model_flags(args: Args) -> None:
    """Raise InputError for a changed setting of a part of the model that is not trained."""
    if args.config is not None:
        return  # a file may hold the whole configuration
    parts = ("tokenizer", "lam", "dynamics")
    defaults = preset(args.preset)
    for part in parts:
        value, default = getattr(args.model, part), getattr(defaults, part)
        if part not in TRAINED_PARTS.get(args.component, parts) and value != default:
            name = next(n for n in vars(value) if getattr(value, n) != getattr(default, n))
            raise InputError(
                f"--model.{part}.{name.replace('_', '-')} has no effect on {args.component}: "
                "leave it out"
            )


def check_inputs(args: Args) -> Path:
    """Return the folder of the run. Raises InputError for missing flags and missing inputs."""
    if not args.data or args.out is None:
        missing = "--out" if args.data else "--data"
        raise InputError(f"train {args.component} needs {missing}; see --help")
    check_data([*args.data, *([args.high_res_data] if args.high_res_data else [])])
    if find_recipe(args.component, args.recipe).needs_init and args.init is None:
        raise InputError(
            f"--recipe {args.recipe} starts from a trained {args.component}: give it with --init"
        )
    for checkpoint in (args.tokenizer, args.lam, args.init):
        if checkpoint is not None:
            check_folder(checkpoint, "checkpoint", "train")
    return args.out


# --dry-run


def print_cost(args: Args, settings: TrainConfig) -> None:
    """Print the cost of the run. Raises InputError for unknown hardware."""
    from experiments.training_cost import cost_lines, settings_on
    from worldmodel.training.flops import cost_of
    from worldmodel.training.throughput import hardware

    settings = settings_on(settings, args.hardware)
    cost = cost_of(
        args.component,
        args.model.with_latent_actions() if has_latent_actions(args) else args.model,
        settings,
        decoder_only=args.decoder_only,
        cached=settings.token_cache,
        joint_lam=args.joint_lam,
    )
    machine = hardware(args.hardware, precision=settings.precision)
    table = Table(box=None, show_header=False)
    for name, value in cost_lines(cost, settings, machine).items():
        table.add_row(name, value)
    console.print(
        f"train {args.component}, preset {args.preset}, on {machine.name}: nothing is run"
    )
    console.print(table)
