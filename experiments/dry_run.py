"""What a training run will take, printed without running it: parameters, FLOPs, memory, time on given hardware."""

from envs.utils.progress import format_duration
from experiments.arguments import Preset
from worldmodel.config import WorldModelConfig
from worldmodel.training.config import TrainConfig
from worldmodel.training.flops import TrainCost, cost_of
from worldmodel.training.throughput import Hardware, hardware

PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
STEP_BYTES = 16
"""Of a trained parameter: weight, gradient and AdamW's two moments, all fp32."""


def show(
    component: str,
    preset: Preset,
    config: WorldModelConfig,
    recipe: TrainConfig,
    on: str,
    *,
    decoder_only: bool = False,
    joint_lam: bool = False,
) -> None:
    """Print the prediction for `config`, what is left of `preset`. Raises InputError for hardware not in the table."""
    from rich.table import Table

    from envs.utils.errors import InputError
    from envs.utils.progress import console

    cost = cost_of(component, config, recipe, decoder_only=decoder_only, cached=recipe.token_cache, joint_lam=joint_lam)
    if cost is None:
        raise InputError(f"--dry-run: the cost of training {component} is not known beforehand")
    machine = hardware(on, precision=recipe.precision)
    table = Table(box=None, show_header=False)
    for name, value in figures(cost, recipe, machine).items():
        table.add_row(name, value)
    console.print(f"train {component}, preset {preset}, on {machine.name}: nothing is run")
    console.print(table)


def figures(cost: TrainCost, recipe: TrainConfig, machine: Hardware) -> dict[str, str]:
    """The lines of the prediction, by what they are about."""
    step = cost.flops * recipe.batch_size
    again = 4 / 3 if recipe.activation_checkpointing else 1
    seconds = step * again / (machine.peak * machine.utilisation * machine.cards)
    clips = recipe.batch_size / machine.cards / recipe.grad_accum_steps
    fixed = model_bytes(cost, recipe, machine.cards)
    memory = fixed + cost.activations * clips
    lines = {
        "parameters": f"{cost.parameters / 1e6:,.1f} M, trained {cost.trained / 1e6:,.1f} M",
        "steps": f"{recipe.iterations:,} of {recipe.batch_size} clips of {recipe.clip_length} frames"
        + (f", {recipe.batch_size * cost.tokens:,} tokens a step" if cost.tokens else ""),
        "a clip": f"{count(cost.flops)}FLOP, forward and backward"
        + ("" if not recipe.activation_checkpointing else ", and a third more to compute activations again"),
        "a step": f"{count(step)}FLOP",
        "the run": f"{count(step * recipe.iterations)}FLOP",
        "hardware": f"{machine.cards} x {count(machine.peak)}FLOP/s in {recipe.precision}, "
        f"assumed to reach {machine.utilisation:.0%} of it",
        "memory of the model": f"{fixed / 1e9:,.2f} GB each: weights, gradients, AdamW's moments"
        + (", moving average" if recipe.ema else "")
        + (" and the low-precision copy of the weights" if recipe.precision == "bf16" else ""),
        "memory of activations": f"about {cost.activations * clips / 1e9:,.2f} GB each for {clips:g} clips at a time "
        f"({cost.activations / 1e9:,.2f} GB a clip)",
        "time of a step": f"{seconds:,.3g} s",
        "time of the run": f"{format_duration(seconds * recipe.iterations)}, without data, validation and checkpoints",
    }
    if machine.memory is not None and memory > machine.memory:
        parts = memory_parts(cost, recipe, machine)
        advice = f"--grad-accum-steps {parts}" if parts else "--activation-checkpointing, or more cards with --parallelism fsdp"
        lines["does not fit"] = f"{memory / 1e9:,.0f} GB into {machine.memory / 1e9:,.0f} GB: try {advice}"
    return lines


def model_bytes(cost: TrainCost, recipe: TrainConfig, cards: int) -> float:
    """Bytes of weights, gradients, moments and what else goes with the parameters, on one card."""
    each = (STEP_BYTES + (4 if recipe.ema else 0)) * cost.trained + 4 * (cost.parameters - cost.trained)
    low = 2 * cost.parameters if recipe.precision == "bf16" else 0
    return each / (cards if recipe.parallelism == "fsdp" else 1) + low


def memory_parts(cost: TrainCost, recipe: TrainConfig, machine: Hardware) -> int | None:
    """The least number of parts of a batch in which it fits into memory, None where a single clip does not."""
    assert machine.memory is not None
    share = recipe.batch_size // machine.cards
    room = machine.memory - model_bytes(cost, recipe, machine.cards)
    fitting = [parts for parts in range(1, share + 1) if share % parts == 0 and cost.activations * share / parts < room]
    return fitting[0] if fitting else None


def count(number: float) -> str:
    """2.6e12 -> `2.6 T`."""
    prefix, size = next(((prefix, size) for prefix, size in PREFIXES if number >= size), ("", 1.0))
    return f"{number / size:,.4g} {prefix}"
