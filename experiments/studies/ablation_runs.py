"""Runs of an ablation. Each cell of the table trains one variant with one seed and evaluates it.

A cell's folder holds its training run, the model, and `cell.json`, which is written last. A cell
with this file is not computed again; an interrupted one resumes from its newest checkpoint.

    <out>/tokenizers/seed-0/            tokenizer of all variants with this seed
    <out>/cells/<variant>-seed-0/       dynamics/  model/  cell.json
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from worldmodel import WorldModelConfig, load_world_model, preset
from worldmodel.config import Precision
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.loading import build_world_model
from worldmodel.training.config import train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.setup import build_objective, build_trainer, open_data
from worldmodel.training.train import train


@dataclass(frozen=True)
class Variant:
    """One row of the table: changes to the preset."""

    label: str
    """Name in the table."""
    dynamics: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of `DynamicsConfig`."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of `TrainConfig` of the dynamics run."""


_BASE = {"token_input": False, "tdce_weight": 0.0}
_INPUT = {"token_input": True, "tdce_weight": 0.0}
_FULL = {"token_input": True, "tdce_weight": 3.0}

VARIANTS: dict[str, Variant] = {
    "base": Variant("base: no token input, plain cross-entropy", _BASE),
    "token_input": Variant("+ token input", _INPUT),
    "tdce": Variant("+ TDCE", _FULL),
    "masked": Variant(
        "all, masked past, one ratio a clip (the paper's objective)",
        {**_FULL, "objective": "masked"},
    ),
    "masked_frames": Variant(
        "all, masked past, a ratio for each frame", {**_FULL, "objective": "masked_frames"}
    ),
    "clean_past": Variant("all, clean past", {**_FULL, "objective": "clean_past"}),
    "masked_base": Variant("base, masked past", {**_BASE, "objective": "masked"}),
    "masked_token_input": Variant("+ token input, masked past", {**_INPUT, "objective": "masked"}),
    "never_all_masked": Variant("clean past, no fully masked chunks", {**_FULL, "all_masked": 0.0}),
    "single_frames": Variant(
        "clean past, frames predicted one at a time", {**_FULL, "chunk_lengths": [1]}
    ),
    "whole_clips": Variant(
        "clean past, frames predicted all at once", {**_FULL, "chunk_lengths": [0]}
    ),
}
"""The first six are table 4 of the paper and the choice of the objective. The others remove or
change single parts."""


@dataclass(frozen=True)
class Budget:
    """Length of a run in optimizer steps or CPU-seconds; without either, the preset's length."""

    iterations: int | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.iterations is not None and self.cpu_seconds is not None:
            raise InputError(
                "a budget is a number of iterations or of CPU-seconds: give one of them"
            )
        for name, value in dataclasses.asdict(self).items():
            if value is not None and value <= 0:
                raise InputError(f"{name.replace('_', '-')} {value}: must be more than 0")


@dataclass(frozen=True)
class AblationGrid:
    """Settings of all cells of an ablation.

    Paths are absolute, since the processes of the cells have other working directories.
    """

    out: Path
    variants: Mapping[str, Variant]
    """Rows of the table."""
    data: tuple[str, ...]
    test_data: tuple[str, ...]
    """Empty for the validation split of `data`."""
    preset: str
    tokenizer: Budget
    dynamics: Budget
    modes: tuple[str, ...]
    evaluate: Mapping[str, Any]
    """Arguments of `worldmodel.evaluation.evaluate.evaluate`."""
    precision: Precision = "auto"
    """Precision of training and evaluation; with auto that of the preset and of the device."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that must stay the same when the study continues, as JSON data."""
        plain = dataclasses.asdict(self)
        del plain["out"], plain["variants"]
        if self.precision == "auto":  # as in studies that had no such setting
            del plain["precision"]
        return dict(json.loads(json.dumps(plain, default=str)))

    @property
    def cache(self) -> Path:
        """Folder of local copies of episodes and tokens, shared by all runs."""
        return self.out / "cache"

    def tokenizer_folder(self, seed: int) -> Path:
        """Return the folder of a seed's tokenizer."""
        return self.out / "tokenizers" / f"seed-{seed}"

    def cell_folder(self, name: str, seed: int) -> Path:
        """Return the folder of a cell."""
        return self.out / "cells" / f"{name}-seed-{seed}"

    def cell_owners(self) -> dict[str, str]:
        """Return the variant whose cells each variant uses.

        This is the variant itself, or an earlier one with the same settings at this preset.
        """
        owners: dict[str, str] = {}
        return {
            name: owners.setdefault(
                repr((variant_config(self.preset, variant), dict(variant.recipe))), name
            )
            for name, variant in self.variants.items()
        }


def variant_config(preset_name: str, variant: Variant) -> WorldModelConfig:
    """Return the preset's model with a variant's changes. Raises InputError for unknown fields."""
    config = preset(preset_name)
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in variant.dynamics.items()
    }
    try:
        return dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, **changes))
    except TypeError as error:
        raise InputError(
            f"variant {variant.label!r}: {str(error).split('() ')[-1]} of the dynamics model"
        ) from error


def read_variants(file: Path | None) -> dict[str, Variant]:
    """Return VARIANTS and those of a JSON file.

    {name: {"label": ..., "dynamics": {...}, "recipe": {...}}}
    """
    if file is None:
        return VARIANTS
    try:
        plain = json.loads(file.read_text())
        return VARIANTS | {
            name: Variant(**{"label": name, **values}) for name, values in plain.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: no table of variants ({error}): see autoexplore study ablation --help"
        ) from error


def tokenizer_run(grid: AblationGrid, seed: int, iterations: int | None) -> TrainingRun:
    """Return the specification of a seed's tokenizer run."""
    changes = _recipe_changes(grid, seed, iterations)
    recipe = train_preset("tokenizer", grid.preset, **changes)
    out = grid.tokenizer_folder(seed)
    return TrainingRun("tokenizer", preset(grid.preset), recipe, grid.data, out, grid.cache)


def dynamics_run(grid: AblationGrid, name: str, seed: int, iterations: int | None) -> TrainingRun:
    """Return the specification of a cell's dynamics run."""
    variant = grid.variants[name]
    changes = {**_recipe_changes(grid, seed, None), **variant.recipe}
    if iterations is not None:
        changes["iterations"] = iterations
    return TrainingRun(
        "dynamics",
        variant_config(grid.preset, variant),
        train_preset("dynamics", grid.preset, **changes),
        grid.data,
        grid.cell_folder(name, seed) / "dynamics",
        grid.cache,
        tokenizer=grid.tokenizer_folder(seed),
    )


def _recipe_changes(grid: AblationGrid, seed: int, iterations: int | None) -> dict[str, Any]:
    changes: dict[str, Any] = {"num_threads": 1, "validate_every": 0, "keep_last": 1, "seed": seed}
    if grid.precision != "auto":
        changes["precision"] = grid.precision
    return changes if iterations is None else {**changes, "iterations": iterations}


def train_tokenizer(grid: AblationGrid, seed: int, iterations: int | None) -> None:
    """Train a seed's tokenizer."""
    train(tokenizer_run(grid, seed, iterations), resume=True)


def run_cell(grid: AblationGrid, name: str, seed: int, iterations: int | None) -> dict[str, Any]:
    """Train and evaluate one cell; return the content of its `cell.json`.

    A finished cell is only read. Raises InputError if its settings were different.
    """
    run, folder = dynamics_run(grid, name, seed, iterations), grid.cell_folder(name, seed)
    recipe = json.loads(json.dumps(dataclasses.asdict(run.recipe)))
    settings = {"config": run.config.to_dict(), "recipe": recipe}
    file = folder / "cell.json"
    if file.exists():
        finished = dict(json.loads(file.read_text()))
        if finished["asked"] != settings:
            raise InputError(
                f"{folder}: a finished cell with other settings: give another --out, or delete it"
            )
        return finished
    train(run, resume=True)  # a complete run is left as it is
    model = build_world_model(grid.tokenizer_folder(seed), run.out)
    model.save(folder / "model")
    on_device = load_world_model(folder / "model", "auto", grid.precision)
    measured = {
        mode: evaluate(
            on_device,
            grid.test_data or grid.data,
            split=None if grid.test_data else "val",
            mode=mode,
            cache_dir=grid.cache,
            **grid.evaluate,
        )
        for mode in grid.modes
    }
    cell = {
        "cell": name,
        "seed": seed,
        "iterations": run.recipe.iterations,
        "parameters": {
            part: sum(p.numel() for p in getattr(model, part).parameters())
            for part in ("tokenizer", "dynamics")
        },
        "asked": settings,
        "measured": measured,
    }
    write_json_atomic(file, cell)
    return cell


def cpu_seconds_per_step(run: TrainingRun, *, warmup: int = 4, steps: int = 16) -> float:
    """Return the CPU time of a training step on one thread, with loading. No file is kept.

    The time is that of the process, so that other processes hardly influence it. The step is one
    from the middle of the run, when a quantizer that starts late is active.
    """
    device = torch.device("cpu")
    objective = build_objective(run, device)
    worker = Worker(device)
    windows, _ = open_data(run, objective, worker)
    trainer = build_trainer(run, objective, windows, None, worker)
    trainer.step = run.recipe.iterations // 2
    objective.train()
    started = 0.0
    try:
        for step in range(warmup + steps):
            if step == warmup:
                started = time.process_time()
            trainer.train_step(next(trainer.loader))
        return (time.process_time() - started) / steps
    finally:
        trainer.loader.close()
