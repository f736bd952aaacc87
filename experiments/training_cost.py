"""Prediction of the time and the memory of a training run, for `--dry-run`."""

from dataclasses import replace

from envs.utils.progress import format_duration
from worldmodel.training.config import TrainConfig
from worldmodel.training.flops import TrainCost
from worldmodel.training.memory import activation_bytes, memory_advice, model_bytes
from worldmodel.training.throughput import Hardware

PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "": 1.0}


def settings_on(recipe: TrainConfig, card: str) -> TrainConfig:
    """Return the settings with precision `auto` decided for `here`, or a card of the table."""
    if card == "here":
        return recipe.on_this_machine()
    return replace(recipe, precision="bf16") if recipe.precision == "auto" else recipe


def step_seconds(cost: TrainCost, recipe: TrainConfig, machine: Hardware) -> float:
    """Predict the seconds of an optimizer step on a machine, without data and checkpoints."""
    # Recomputing the activations costs another forward pass, a third of forward and backward.
    recomputed = 4 / 3 if recipe.activation_checkpointing else 1
    speed = machine.peak * machine.utilisation * machine.cards
    return cost.flops * recipe.batch_size * recomputed / speed


def cost_lines(cost: TrainCost, recipe: TrainConfig, machine: Hardware) -> dict[str, str]:
    """Return the lines of the prediction by their labels."""
    batch, step = recipe.batch_size, cost.flops * recipe.batch_size
    recomputed = recipe.activation_checkpointing
    seconds = step_seconds(cost, recipe, machine)
    clips = batch / machine.cards / recipe.grad_accum_steps
    fixed = model_bytes(cost, recipe, machine.cards)
    activations = activation_bytes(cost, recipe, machine.cards)
    tokens = f", {batch * cost.tokens:,} tokens per step" if cost.tokens else ""
    ema = ", moving average" if recipe.ema else ""
    low_precision = ", bf16 copy of the weights" if recipe.precision == "bf16" else ""
    lines = {
        "parameters": f"{cost.parameters / 1e6:,.1f} M, trained {cost.trained / 1e6:,.1f} M",
        "steps": f"{recipe.iterations:,} of {batch} clips of {recipe.clip_length} frames{tokens}",
        "one clip": f"{si_prefix(cost.flops)}FLOP, forward and backward"
        + (", and a third more to recompute activations" if recomputed else ""),
        "one step": f"{si_prefix(step)}FLOP",
        "the run": f"{si_prefix(step * recipe.iterations)}FLOP",
        "hardware": f"{machine.cards} x {si_prefix(machine.peak)}FLOP/s in {recipe.precision}, "
        f"assumed utilisation {machine.utilisation:.0%}",
        "memory of the model": f"{fixed / 1e9:,.2f} GB per card: weights, gradients, "
        f"AdamW's moments{ema}{low_precision}",
        "memory of activations": f"about {activations / 1e9:,.2f} GB per card "
        f"for {clips:g} clips at a time ({cost.activations / 1e9:,.2f} GB per clip)",
        "time of a step": f"{seconds:,.3g} s",
        "time of the run": f"{format_duration(seconds * recipe.iterations)}, "
        "without data, validation and checkpoints",
    }
    if machine.memory is not None and fixed + activations > machine.memory:
        lines["does not fit"] = (
            f"{(fixed + activations) / 1e9:,.0f} GB into {machine.memory / 1e9:,.0f} GB: "
            f"try {memory_advice(cost, recipe, machine.cards, machine.memory)}"
        )
    return lines


def si_prefix(number: float) -> str:
    """Return a number with its prefix: 2.6e12 -> `2.6 T`."""
    prefix = next((prefix for prefix, size in PREFIXES.items() if number >= size), "")
    return f"{number / PREFIXES[prefix]:,.4g} {prefix}"
