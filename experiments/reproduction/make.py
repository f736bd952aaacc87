"""Making of an item: its stages for each seed, then its results over all seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from envs.utils.atomic_io import read_json, write_atomic, write_json_atomic
from envs.utils.progress import console
from experiments.arguments import default_threads
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.dry_run import predict_training, print_stages
from experiments.pipeline.runner import Context, Stage, run_stages
from experiments.pipeline.stages import check_settings, model_config
from experiments.reproduction.data_sets_table import data_sets_rows, data_sets_table
from experiments.reproduction.figures import figure_stages
from experiments.reproduction.items import Item
from experiments.reproduction.registry import FIGURES, table_plan
from experiments.reproduction.results import write_table
from experiments.reproduction.settings_tables import settings_rows, settings_table
from experiments.reproduction.stages import plan_stages
from experiments.studies.common import check_continues
from worldmodel.config import SamplingConfig
from worldmodel.training.config import train_preset


def seed_folder(out: Path, seed: int) -> Path:
    """Return the folder of a seed."""
    return out / f"seed-{seed}"


def item_stages(
    name: str, c: PipelineConfig, test: str, peers: tuple[Path, ...] = ()
) -> list[Stage]:
    """Return the stages of an item with one seed, in order.

    `peers`: folders of another model's predictions, for an item that needs them.
    """
    if name in FIGURES:
        more = {"peers": peers} if peers else {}
        return figure_stages(name, FIGURES[name](c, **more), c, test)
    return plan_stages(c, table_plan(name, c), test)


def run_item(
    out: Path, name: str, c: PipelineConfig, test: str, peers: tuple[Path, ...] = ()
) -> list[str]:
    """Run the missing stages of an item with one seed; return their names."""
    torch.set_num_threads(c.threads or default_threads())
    return run_stages(item_stages(name, c, test, peers), Context(seed_folder(out, c.seed), c))


def check_folder_of(out: Path, c: PipelineConfig, test: str) -> None:
    """Check the settings that all items of a folder share, and write them to config.json.

    Raises InputError for unknown settings, or if `out` holds other results.
    """
    check_settings(c)
    # How many work at a time decides how fast results come, not what they are.
    ignored = ("seed", "threads", "workers")
    check_continues(out, {"test": test, **asdict(c)}, "results of `reproduce`", ignored)


def write_item(
    out: Path, item: Item, c: PipelineConfig, seeds: Sequence[int], test: str
) -> list[str]:
    """Write the results of an item over all seeds; return what to print."""
    roots = [seed_folder(out, seed) for seed in seeds]
    if item.name in FIGURES:
        records = [read_json(root / "stages" / f"{item.name}.json") for root in roots]
        return [line for record in records for line in record["result"]["lines"]]
    settings = {"test": test, "seeds": list(seeds), **asdict(c)}
    del settings["seed"]
    return [write_table(out, item, table_plan(item.name, c), roots, settings)]


def write_settings(out: Path, item: Item, c: PipelineConfig) -> None:
    """Write a table of settings or data sets as JSON and Markdown, and print it."""
    if item.name == "table1":
        rows = data_sets_rows()
        table = data_sets_table(rows).markdown()
    else:
        recipe = train_preset("dynamics" if item.name == "table8" else "tokenizer", c.preset)
        sampling = SamplingConfig()
        values = {"steps": sampling.steps, "temperature": sampling.temperature}
        rows = settings_rows(item.name, model_config(c), recipe, values)
        table = settings_table(rows, c.preset).markdown()
    write_json_atomic(out / f"{item.name}.json", {"item": item.name, "rows": rows})
    write_atomic(out / f"{item.name}.md", f"# {item.name}: {item.title}\n\n{table}\n".encode())
    console.print(table, markup=False)


def predicted_training_minutes(name: str, c: PipelineConfig, test: str, card: str) -> float:
    """Return the minutes that all training of an item with one seed takes on a card."""
    runs = [stage.training for stage in item_stages(name, c, test)]
    return sum(predict_training(run, card).seconds for run in runs if run is not None) / 60


def print_plan(item: Item, c: PipelineConfig, test: str, card: str) -> None:
    """Print the stages of an item with one seed, and what those that train need."""
    if item.kind == "settings":
        console.print(f"{item.name} is read from the presets or the catalogue: nothing is run")
        return
    stages = item_stages(item.name, c, test)
    print_stages(stages, f"{item.name} at preset {c.preset}, one seed", card)
