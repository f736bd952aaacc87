"""Making of an item: its stages for each seed, then its results over all seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import default_threads
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.dry_run import print_stages
from experiments.pipeline.runner import Context, Stage, run_stages
from experiments.pipeline.stages import check_settings, model_config
from experiments.reproduction.figures import FIGURES, figure_stages
from experiments.reproduction.items import Item
from experiments.reproduction.plans import table_plan
from experiments.reproduction.results import write_table
from experiments.reproduction.settings_tables import settings_rows, settings_table
from experiments.reproduction.stages import plan_stages
from worldmodel.config import SamplingConfig
from worldmodel.training.config import train_preset

SETTINGS = "config.json"
"""File of the settings that all items of a folder share."""


def seed_folder(out: Path, seed: int) -> Path:
    """Return the folder of a seed."""
    return out / f"seed-{seed}"


def item_stages(name: str, c: PipelineConfig, test: str) -> list[Stage]:
    """Return the stages of an item with one seed, in order."""
    if name in FIGURES:
        return figure_stages(name, c, test)
    return plan_stages(c, table_plan(name, c), test)


def run_item(out: Path, name: str, c: PipelineConfig, test: str) -> list[str]:
    """Run the missing stages of an item with one seed; return their names."""
    torch.set_num_threads(c.threads or default_threads())
    return run_stages(item_stages(name, c, test), Context(seed_folder(out, c.seed), c))


def describe_settings(
    c: PipelineConfig, preset: str, seeds: Sequence[int], test: str
) -> dict[str, Any]:
    """Return the settings of a result as JSON data."""
    shared = {"preset": preset, "test": test, "pipeline": asdict(replace(c, seed=0))}
    return {**dict(json.loads(json.dumps(shared))), "seeds": list(seeds)}


def check_continues(out: Path, c: PipelineConfig, preset: str, test: str) -> None:
    """Write config.json, or raise InputError if `out` holds results with other settings."""
    check_settings(c)
    settings = describe_settings(c, preset, (), test)
    file = out / SETTINGS
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out} holds something else: give another --out")
        write_json_atomic(file, settings)
        return
    recorded = json.loads(file.read_text())
    flat = [{**part, **part["pipeline"]} for part in (recorded, settings)]
    for name in (name for name in flat[1] if name != "pipeline"):
        # Threads change how fast results come, not what they are.
        if name != "threads" and flat[0].get(name) != flat[1][name]:
            raise InputError(
                f"{out} holds results whose {name} is {flat[0].get(name)}, not {flat[1][name]}: "
                "give another --out"
            )


def write_item(out: Path, item: Item, c: PipelineConfig, settings: Mapping[str, Any]) -> list[str]:
    """Write the results of an item; return what to print."""
    roots = [seed_folder(out, seed) for seed in settings["seeds"]]
    if item.name in FIGURES:
        records = [
            json.loads((root / "stages" / f"{item.name}.json").read_text()) for root in roots
        ]
        return [line for record in records for line in record["result"]["lines"]]
    write_table(out, item, table_plan(item.name, c), roots, settings)
    return [(out / f"{item.name}.md").read_text()]


def write_settings(out: Path, item: Item, c: PipelineConfig) -> None:
    """Write a table of settings as JSON and Markdown, and print it."""
    recipe = train_preset("dynamics" if item.name == "table8" else "tokenizer", c.preset)
    sampling = SamplingConfig()
    values = {"steps": sampling.steps, "temperature": sampling.temperature}
    rows = settings_rows(item.name, model_config(c), recipe, values)
    write_json_atomic(out / f"{item.name}.json", {"item": item.name, "rows": rows})
    table = settings_table(rows, c.preset).markdown()
    write_atomic(out / f"{item.name}.md", f"# {item.name}: {item.title}\n\n{table}\n".encode())
    console.print(table, markup=False)


def print_plan(item: Item, c: PipelineConfig, test: str, card: str) -> None:
    """Print the stages of an item with one seed, and what those that train need."""
    if item.kind == "settings":
        console.print(f"{item.name} reads settings: nothing is trained")
        return
    stages = item_stages(item.name, c, test)
    print_stages(stages, f"{item.name} at preset {c.preset}, one seed", card)
