"""Prediction of what a pipeline's stages need, for `pipeline --dry-run`."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from envs.utils.progress import console, format_duration
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.games_apart import of_one_game
from experiments.pipeline.rounds import Service, rounds_table
from experiments.pipeline.runner import Stage
from experiments.pipeline.stages import stage_table
from experiments.training_cost import settings_on, step_seconds
from worldmodel.training.config import TrainConfig
from worldmodel.training.flops import TrainCost, cost_of
from worldmodel.training.memory import memory_advice, needed_bytes
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.throughput import Hardware, hardware


@dataclass(frozen=True)
class TrainingPrediction:
    """Prediction of a training on a card."""

    recipe: TrainConfig
    """Settings, with the precision decided."""
    machine: Hardware
    cost: TrainCost
    seconds: float


def predict_training(run: TrainingRun, card: str) -> TrainingPrediction:
    """Predict a training on a card. Raises InputError for an unknown one."""
    recipe = settings_on(run.recipe, card)
    machine = hardware(card, precision=recipe.precision)
    cost = cost_of(
        run.component,
        run.config,
        recipe,
        decoder_only=run.decoder_only,
        cached=recipe.token_cache,
    )
    seconds = step_seconds(cost, recipe, machine) * recipe.iterations
    return TrainingPrediction(recipe, machine, cost, seconds)


def print_prediction(c: PipelineConfig, rounds: int, card: str) -> None:
    """Print the stages of a pipeline, with time and memory of those that train on a card.

    Of games with pipelines of their own the stages of the first are printed. Raises InputError for
    an unknown card.
    """
    one = of_one_game(c, c.games[0]) if c.games_apart else c
    stages = rounds_table(one, rounds, Service(one)) if rounds else stage_table(one)
    games = f" for each of {len(c.games)} games" if c.games_apart else ""
    print_stages(stages, f"pipeline {c.preset} of {', '.join(c.games)}", card, games)


def print_stages(stages: Sequence[Stage], what: str, card: str, times: str = "") -> None:
    """Print stages, with time and memory of those that train on a card.

    `times` says how often the stages are run. Raises InputError for an unknown card.
    """
    table = Table(
        "stage", "what it does", "steps of clips", "time", "memory", box=None, header_style="bold"
    )
    total, machine, advice = 0.0, None, []
    for stage in stages:
        run = stage.training
        if run is None:
            table.add_row(stage.name, stage.description)
            continue
        predicted = predict_training(run, card)
        recipe, machine, cost = predicted.recipe, predicted.machine, predicted.cost
        memory = needed_bytes(cost, recipe, machine.cards)
        total += predicted.seconds
        steps = f"{recipe.iterations:,} of {recipe.batch_size}"
        size = f"{memory / 1e9:,.1f} GB"
        time = format_duration(predicted.seconds)
        table.add_row(stage.name, stage.description, steps, time, size)
        if machine.memory is not None and memory > machine.memory:
            change = memory_advice(cost, recipe, machine.cards, machine.memory)
            advice.append(
                f"{stage.name} needs more than the {machine.memory / 1e9:,.0f} GB of the card: "
                f"train it with {change}"
            )
    console.print(f"{what} on {machine.name if machine else card}: nothing is run")
    console.print(table)
    if machine is None:
        console.print("Nothing is trained.")
        return
    console.print(
        f"Training takes {format_duration(total)}{times} at {machine.utilisation:.0%} of the peak, "
        "without data, validation and checkpoints. Playing, exploring and evaluating come on top; "
        "they are not predicted."
    )
    for line in advice:
        console.print(line)
