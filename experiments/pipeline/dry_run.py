"""Prediction of what a pipeline's stages need, for `pipeline --dry-run`."""

import dataclasses
from collections.abc import Sequence

from rich.table import Table

from envs.utils.progress import console, format_duration
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage
from experiments.training_cost import step_seconds
from worldmodel.training.config import TrainConfig
from worldmodel.training.flops import cost_of
from worldmodel.training.memory import activation_bytes, memory_advice, model_bytes
from worldmodel.training.throughput import Hardware


def print_prediction(c: PipelineConfig, stages: Sequence[Stage], machine: Hardware) -> None:
    """Print the stages of a pipeline of one or several games, with the cost of those that train."""
    table = Table(
        "stage", "what it does", "steps of clips", "time", "memory", box=None, header_style="bold"
    )
    total, advice = 0.0, []
    for stage in stages:
        if stage.training is None:
            table.add_row(stage.name, stage.description)
            continue
        run = stage.training
        recipe = run.recipe.on_this_machine() if machine.memory is None else _on_a_gpu(run.recipe)
        cost = cost_of(run.component, run.config, recipe, decoder_only=run.decoder_only)
        seconds = step_seconds(cost, recipe, machine) * recipe.iterations
        memory = model_bytes(cost, recipe, machine.cards)
        memory += activation_bytes(cost, recipe, machine.cards)
        total += seconds
        steps = f"{recipe.iterations:,} of {recipe.batch_size}"
        size = f"{memory / 1e9:,.1f} GB"
        table.add_row(stage.name, stage.description, steps, format_duration(seconds), size)
        if machine.memory is not None and memory > machine.memory:
            change = memory_advice(cost, recipe, machine.cards, machine.memory)
            advice.append(
                f"{stage.name} needs more than the {machine.memory / 1e9:,.0f} GB of the card: "
                f"train it with {change}"
            )
    console.print(f"pipeline {c.preset} of {', '.join(c.games)} on {machine.name}: nothing is run")
    console.print(table)
    games = f" for each of {len(c.games)} games" if c.games_apart else ""
    console.print(
        f"Training takes {format_duration(total)}{games} at {machine.utilisation:.0%} of the peak, "
        "without data, validation and checkpoints. Playing, exploring and evaluating come on top; "
        "they are not predicted."
    )
    for line in advice:
        console.print(line)


def _on_a_gpu(recipe: TrainConfig) -> TrainConfig:
    """Return the settings with precision `auto` replaced by that of the cards in the table."""
    if recipe.precision != "auto":
        return recipe
    return dataclasses.replace(recipe, precision="bf16")
