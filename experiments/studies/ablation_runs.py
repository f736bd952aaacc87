"""The cells of an ablation: each trains one variant with one seed and measures it. What varies is a
table, not code.

A cell's folder holds its training run, the finished model, and `cell.json`, which is written last:
a cell that has it is never computed again, one that was cut off goes on from its newest checkpoint.

    <out>/tokenizers/seed-0/            the tokenizer that all variants of a seed share
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
from worldmodel import WorldModelConfig, preset
from worldmodel import preset as preset_of
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.loading import build_world_model
from worldmodel.training.config import TrainConfig, train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.setup import build_objective, build_trainer, open_data
from worldmodel.training.train import train


@dataclass(frozen=True)
class Variant:
    """One row of the result. What is not named stays as the preset has it."""

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
    "never_all_masked": Variant("clean past, no chunk all masked", {**_FULL, "all_masked": 0.0}),
    "single_frames": Variant(
        "clean past, frames predicted one at a time", {**_FULL, "chunk_lengths": [1]}
    ),
    "whole_clips": Variant(
        "clean past, frames predicted all at once", {**_FULL, "chunk_lengths": [0]}
    ),
}
"""The first six are table 4 of the paper and the choice of the objective; the others take single
parts away."""
DEFAULT = ("base", "token_input", "tdce", "masked", "masked_frames", "clean_past")


@dataclass(frozen=True)
class Budget:
    """Length of a run: optimizer steps, or those that a number of CPU-seconds allows; the preset's
    with neither."""

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
    """Settings of all cells of an ablation. Paths are absolute, since cells run in processes of
    their own."""

    out: Path
    data: tuple[str, ...]
    test_data: tuple[str, ...]
    """Empty for the validation split of `data`."""
    preset: str
    tokenizer: Budget
    dynamics: Budget
    modes: tuple[str, ...]
    evaluate: Mapping[str, Any]
    """Arguments of `worldmodel.evaluation.evaluate.evaluate`."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that must stay the same when the study continues, as JSON data."""
        plain = dataclasses.asdict(self)
        del plain["out"]
        return dict(json.loads(json.dumps(plain, default=str)))

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    def tokenizer_run(self, seed: int) -> Path:
        """Return the folder of a seed's tokenizer."""
        return self.out / "tokenizers" / f"seed-{seed}"

    def cell(self, name: str, seed: int) -> Path:
        """Return the folder of a cell."""
        return self.out / "cells" / f"{name}-seed-{seed}"


def configuration(preset: str, variant: Variant) -> WorldModelConfig:
    """Return the preset's model with a variant's changes. Raises InputError for an unknown
    field."""
    config = preset_of(preset)
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
    """Return VARIANTS and, over them, those of a JSON file: {name: {"label", "dynamics": {...},
    "recipe": {...}}}."""
    if file is None:
        return dict(VARIANTS)
    try:
        plain = json.loads(file.read_text())
        return VARIANTS | {
            name: Variant(**{"label": name, **values}) for name, values in plain.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: no table of variants ({error}): see autoexplore study ablation --help"
        ) from error


def distinct(preset: str, variants: Mapping[str, Variant]) -> dict[str, str]:
    """Return the owner of the cells of each variant: itself, or an earlier one that the preset
    makes the same."""
    owners: dict[str, str] = {}
    return {
        name: owners.setdefault(repr((configuration(preset, variant), dict(variant.recipe))), name)
        for name, variant in variants.items()
    }


def tokenizer_job(grid: AblationGrid, seed: int, iterations: int | None) -> TrainingRun:
    """Return the run that trains a seed's tokenizer."""
    return _job(
        grid, "tokenizer", preset(grid.preset), seed, iterations, {}, grid.tokenizer_run(seed)
    )


def dynamics_job(
    grid: AblationGrid, name: str, variant: Variant, seed: int, iterations: int | None
) -> TrainingRun:
    """Return the run that trains a cell's dynamics model."""
    config = configuration(grid.preset, variant)
    return _job(
        grid,
        "dynamics",
        config,
        seed,
        iterations,
        variant.recipe,
        grid.cell(name, seed) / "dynamics",
    )


def _job(
    grid: AblationGrid,
    component: str,
    config: WorldModelConfig,
    seed: int,
    iterations: int | None,
    changes: Mapping[str, Any],
    out: Path,
) -> TrainingRun:
    plain = {"num_threads": 1, "validate_every": 0, "keep_last": 1, "seed": seed, **changes}
    if iterations is not None:
        plain["iterations"] = iterations
    plan: TrainConfig = train_preset(component, grid.preset, **plain)
    tokenizer = grid.tokenizer_run(seed) if component == "dynamics" else None
    return TrainingRun(component, config, plan, grid.data, out, grid.cache, tokenizer=tokenizer)


def run_job(job: TrainingRun) -> None:
    """Train, or go on from the newest checkpoint; a run that is complete is left as it is."""
    train(job, resume=True)


def run_tokenizer(grid: AblationGrid, seed: int, iterations: int | None) -> None:
    """Train a seed's tokenizer."""
    run_job(tokenizer_job(grid, seed, iterations))


def run_cell(
    grid: AblationGrid, name: str, variant: Variant, seed: int, iterations: int | None
) -> dict[str, Any]:
    """Train and measure one cell; its figures, which `cell.json` keeps. A finished cell is read.

    Raises InputError where the folder holds a finished cell of other settings.
    """
    job, folder = dynamics_job(grid, name, variant, seed, iterations), grid.cell(name, seed)
    asked = {
        "config": job.config.to_dict(),
        "recipe": json.loads(json.dumps(dataclasses.asdict(job.recipe))),
    }
    file = folder / "cell.json"
    if file.exists():
        found = dict(json.loads(file.read_text()))
        if found["asked"] != asked:
            raise InputError(
                f"{folder}: a finished cell of other settings: give another --out, or delete it"
            )
        return found
    run_job(job)
    model = build_world_model(grid.tokenizer_run(seed), job.out)
    model.save(folder / "model")
    measured = {
        mode: evaluate(
            model,
            grid.test_data or grid.data,
            split=None if grid.test_data else "val",
            mode=mode,
            cache_dir=grid.cache,
            **grid.evaluate,
        )
        for mode in grid.modes
    }
    figures = {
        "cell": name,
        "seed": seed,
        "iterations": job.recipe.iterations,
        "parameters": {
            part: sum(p.numel() for p in getattr(model, part).parameters())
            for part in ("tokenizer", "dynamics")
        },
        "asked": asked,
        "measured": measured,
    }
    write_json_atomic(file, figures)
    return figures


def cpu_seconds_a_step(job: TrainingRun, *, warm: int = 4, steps: int = 16) -> float:
    """Return the CPU time of a training step on one thread, loading included; no file is kept.

    Time of the process, not of the clock, so that what else the machine does hardly counts.
    Measured in the middle of the run, where a quantiser that is switched on late is on.
    """
    device = torch.device("cpu")
    objective = build_objective(job, device)
    windows, _ = open_data(job, objective, device)
    trainer = build_trainer(job, objective, windows, None, Worker(device))
    trainer.step = job.recipe.iterations // 2
    objective.train()
    started = 0.0
    try:
        for step in range(warm + steps):
            if step == warm:
                started = time.process_time()
            trainer.train_step(next(trainer.loader))
        return (time.process_time() - started) / steps
    finally:
        trainer.loader.close()
