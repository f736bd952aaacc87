"""Train a tokenizer, latent action model, dynamics model or upscaler."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.table import Table

from envs.utils.errors import InputError
from envs.utils.progress import console, format_duration
from envs.utils.ray_session import ray_session
from envs.utils.storage import is_remote
from experiments.arguments import Preset, RayArgs, check_folder, default_threads
from experiments.configuration import Flat, default_args, flag_value
from worldmodel import WorldModelConfig, preset
from worldmodel.checkpoint import best_checkpoint
from worldmodel.loading import build_world_model
from worldmodel.training.config import COMPONENT_NAMES, TrainConfig, find_recipe, train_preset
from worldmodel.training.flops import TrainCost, cost_of
from worldmodel.training.throughput import Hardware, hardware
from worldmodel.training.train import TrainingRun, train

RECORDED = {"config": "model", "recipe": "training", "pairs": "high_res_data"}
"""Keys of a run's config.json, and the arguments that they are."""
PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
STEP_BYTES = 16
"""Bytes of a trained parameter: weight, gradient and AdamW's two moments, all fp32."""


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
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
    config: Path | None = None
    """YAML or JSON file of settings over the preset's, e.g. the config.json of a run."""
    recipe: str | None = None
    """One of the paper's runs. tokenizer: base, finetune (decoder only). dynamics: g200
    (pretraining), g50, finetune, scratch. upscaler: small-16k, small-50k, large-50k. Default: the
    first. g50 and finetune need --init."""
    tokenizer: Path | None = None
    """For dynamics: run folder or checkpoint of the trained tokenizer."""
    lam: Path | None = None
    """For dynamics: use the actions of this latent action model instead of the recorded ones."""
    joint_lam: bool = False
    """For dynamics: train the latent action model at the same time, that of --lam or a new one."""
    decoder_only: bool = False
    """For tokenizer with --init: train the decoder only, so that token ids stay the same."""
    high_res_data: str | None = None
    """For upscaler: the episodes of --data at 256x256, written by `autoexplore data rerender`."""
    init: Path | None = None
    """Start from the weights of this run folder or checkpoint (fine-tuning)."""
    workers: int = 0
    """Ray Train workers; 0 trains in this process."""
    dry_run: bool = False
    """Print parameters, FLOPs, memory and time of the run on --hardware instead of training."""
    hardware: str = "here"
    """For --dry-run: here (this machine, measured) or a card and their number, e.g. a100x8, l4."""
    training: Flat[TrainConfig]
    model: WorldModelConfig


def defaults(argv: Sequence[str]) -> Args:
    """Return the arguments of the component's recipe at the preset, and the --config file in
    argv."""
    size, name = flag_value(argv, "--preset", "cpu"), flag_value(argv, "--recipe", "") or None
    component = chosen_component(argv) or COMPONENT_NAMES[0]
    return default_args(
        Args,
        argv,
        translate=from_run,
        decoder_only=find_recipe(component, name).decoder_only,
        training=train_preset(component, size, name),
        model=preset(size),
    )


def chosen_component(argv: Sequence[str]) -> str | None:
    """Return the first word of argv that names a component."""
    return next((word for word in argv if word in COMPONENT_NAMES), None)


def from_run(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a run as fields of `Args`."""
    names = {name: name for name in recorded} | (RECORDED if "pairs" in recorded else {})
    return {names[name]: value for name, value in recorded.items()}


def run(args: Args) -> None:
    """Train and print where the newest checkpoint lies."""
    settings = args.training.on_this_machine()
    if settings.num_threads == 0:
        threads = max(1, default_threads() // max(args.workers, 1))
        settings = dataclasses.replace(settings, num_threads=threads)
    check_model_flags(args)
    if args.dry_run:
        show_cost(args, settings)
        return
    check(args)
    assert args.out is not None
    with ray_session(args.ray_address) if args.workers else nullcontext():
        newest = train(
            TrainingRun(
                args.component,
                config=args.model,
                recipe=settings,
                data=args.data,
                out=args.out,
                init=args.init,
                tokenizer=args.tokenizer,
                lam=args.lam,
                joint_lam=args.joint_lam,
                decoder_only=args.decoder_only,
                pairs=args.high_res_data,
            ),
            workers=args.workers,
            resume=args.resume,
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
            console.print(
                "world model, for evaluate, generate, play, explore and serve: "
                f"{args.out / 'model'}"
            )


def check_model_flags(args: Args) -> None:
    """Raise InputError for a changed setting of a part of the model that is not trained."""
    if args.config is not None:
        return  # a whole configuration was given back
    parts = {
        "tokenizer": ["tokenizer"],
        "lam": ["lam"],
        "dynamics": ["tokenizer", "lam", "dynamics"],
    }
    usual = preset(args.preset)
    for part in ("tokenizer", "lam", "dynamics"):
        here, there = getattr(args.model, part), getattr(usual, part)
        if part not in parts.get(args.component, []) and here != there:
            name = next(name for name in vars(here) if getattr(here, name) != getattr(there, name))
            raise InputError(
                f"--model.{part}.{name.replace('_', '-')} has no effect on {args.component}: "
                "leave it out"
            )


def check(args: Args) -> None:
    """Raise InputError for what is missing, before anything starts."""
    if not args.data or args.out is None:
        missing = "--out" if args.data else "--data"
        raise InputError(f"train {args.component} needs {missing}; see --help")
    for folder in (*args.data, *((args.high_res_data,) if args.high_res_data else ())):
        if not is_remote(folder):
            check_folder(Path(folder), "data folder", "collect")
    if find_recipe(args.component, args.recipe).needs_init and args.init is None:
        raise InputError(
            f"--recipe {args.recipe} starts from a trained {args.component}: give it with --init"
        )
    for checkpoint in (args.tokenizer, args.lam, args.init):
        if checkpoint is not None:
            check_folder(checkpoint, "checkpoint", "train")


# --dry-run


def show_cost(args: Args, settings: TrainConfig) -> None:
    """Print what the run will take. Raises InputError for hardware that is not in the table."""
    latent = args.component == "dynamics" and (args.lam is not None or args.joint_lam)
    cost = cost_of(
        args.component,
        args.model.with_latent_actions() if latent else args.model,
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


def cost_lines(cost: TrainCost, recipe: TrainConfig, machine: Hardware) -> dict[str, str]:
    """Return the lines of the prediction by their labels."""
    step = cost.flops * recipe.batch_size
    again = 4 / 3 if recipe.activation_checkpointing else 1
    seconds = step * again / (machine.peak * machine.utilisation * machine.cards)
    clips = recipe.batch_size / machine.cards / recipe.grad_accum_steps
    fixed = model_bytes(cost, recipe, machine.cards)
    memory = fixed + cost.activations * clips
    lines = {
        "parameters": f"{cost.parameters / 1e6:,.1f} M, trained {cost.trained / 1e6:,.1f} M",
        "steps": f"{recipe.iterations:,} of {recipe.batch_size} clips "
        f"of {recipe.clip_length} frames"
        + (f", {recipe.batch_size * cost.tokens:,} tokens a step" if cost.tokens else ""),
        "a clip": f"{count(cost.flops)}FLOP, forward and backward"
        + (
            ""
            if not recipe.activation_checkpointing
            else ", and a third more to compute activations again"
        ),
        "a step": f"{count(step)}FLOP",
        "the run": f"{count(step * recipe.iterations)}FLOP",
        "hardware": f"{machine.cards} x {count(machine.peak)}FLOP/s in {recipe.precision}, "
        f"assumed to reach {machine.utilisation:.0%} of it",
        "memory of the model": f"{fixed / 1e9:,.2f} GB each: weights, gradients, AdamW's moments"
        + (", moving average" if recipe.ema else "")
        + (" and the low-precision copy of the weights" if recipe.precision == "bf16" else ""),
        "memory of activations": f"about {cost.activations * clips / 1e9:,.2f} GB each "
        f"for {clips:g} clips at a time ({cost.activations / 1e9:,.2f} GB a clip)",
        "time of a step": f"{seconds:,.3g} s",
        "time of the run": f"{format_duration(seconds * recipe.iterations)}, "
        "without data, validation and checkpoints",
    }
    if machine.memory is not None and memory > machine.memory:
        parts = memory_parts(cost, recipe, machine)
        advice = (
            f"--grad-accum-steps {parts}"
            if parts
            else "--activation-checkpointing, or more cards with --parallelism fsdp"
        )
        lines["does not fit"] = (
            f"{memory / 1e9:,.0f} GB into {machine.memory / 1e9:,.0f} GB: try {advice}"
        )
    return lines


def model_bytes(cost: TrainCost, recipe: TrainConfig, cards: int) -> float:
    """Return the bytes on one card of weights, gradients, moments and copies of the weights."""
    each = (STEP_BYTES + (4 if recipe.ema else 0)) * cost.trained + 4 * (
        cost.parameters - cost.trained
    )
    low = 2 * cost.parameters if recipe.precision == "bf16" else 0
    return each / (cards if recipe.parallelism == "fsdp" else 1) + low


def memory_parts(cost: TrainCost, recipe: TrainConfig, machine: Hardware) -> int | None:
    """Return the smallest number of micro-batches that fits into memory, None where one clip does
    not."""
    assert machine.memory is not None
    share = recipe.batch_size // machine.cards
    room = machine.memory - model_bytes(cost, recipe, machine.cards)
    fitting = [
        parts
        for parts in range(1, share + 1)
        if share % parts == 0 and cost.activations * share / parts < room
    ]
    return fitting[0] if fitting else None


def count(number: float) -> str:
    """Return a number with its prefix: 2.6e12 -> `2.6 T`."""
    prefix, size = next(((prefix, size) for prefix, size in PREFIXES if number >= size), ("", 1.0))
    return f"{number / size:,.4g} {prefix}"
