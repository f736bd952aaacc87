"""Ablation of the method: train variants x seeds on one budget, measure, compare (Table 4).

Run it again to continue: finished cells are kept, interrupted ones resumed. More seeds and variants
may be added.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console, progress
from envs.utils.ray_session import ray_session
from experiments.arguments import Preset, RayArgs, check_folder
from experiments.studies.ablation_runs import (
    DEFAULT,
    AblationGrid,
    Budget,
    Variant,
    configuration,
    cpu_seconds_a_step,
    distinct,
    dynamics_job,
    read_variants,
    run_cell,
    run_tokenizer,
    tokenizer_job,
)
from experiments.studies.ablation_tables import tell, write
from experiments.studies.common import Mode
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.ray_tasks import map_ray_tasks
from worldmodel.training.run_spec import TrainingRun


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Write ablation.json, ablation.md and ablation.png to --out, again after each cell."""

    data: tuple[Path, ...]
    """Episode folders to train on."""
    out: Path
    """Folder of the study."""
    test_data: tuple[Path, ...] = ()
    """Episode folders to measure on. Default: the validation split of --data."""
    preset: Preset = "cpu"
    """Size of the model and of its training."""
    variants: tuple[str, ...] = DEFAULT
    """Rows of the table; differences are relative to the first. A wrong name lists all."""
    variants_file: Path | None = None
    """JSON file of more variants: {"name": {"label": "...", "dynamics": {field: value}, "recipe":
    {field: value}}}."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, each of a tokenizer and of all variants on it."""
    iterations: int | None = None
    """Optimizer steps of each dynamics run. Default: the preset's."""
    cpu_seconds: float | None = None
    """CPU-seconds of each dynamics run on one thread, instead of --iterations; a step of each
    variant is timed first."""
    tokenizer_iterations: int | None = None
    """Optimizer steps of each tokenizer. Default: the preset's."""
    tokenizer_seconds: float | None = None
    """CPU-seconds of each tokenizer, instead of --tokenizer-iterations."""
    modes: tuple[Mode, ...] = ("one_pass", "autoregressive")
    """Sampling modes in which each model is measured."""
    sampling_steps: int = 25
    """MaskGIT steps."""
    horizon: int = 10
    """Number of predicted frames, after 2 given ones."""
    stride: int = 20
    """Frames between the starts of two windows."""
    limit: int | None = 24
    """Maximum number of windows of each game; `None` for all."""
    parallel: int = 1
    """Cells at a time, each in its own process with one torch thread; 1 runs them in this
    process."""


def run(args: Args) -> None:
    """Train and measure the missing cells, then print the table and where it lies."""
    grid, variants, owners = plan(args)
    if args.parallel > 1:
        with ray_session(args.ray_address):
            cells = run_grid(grid, variants, owners, args.seeds, args.parallel)
    else:
        cells = run_grid(grid, variants, owners, args.seeds, 1)
    console.print(tell(grid, variants, owners, cells))
    console.print(f"written to {args.out}: ablation.json, ablation.md, ablation.png")


def plan(args: Args) -> tuple[AblationGrid, dict[str, Variant], dict[str, str]]:
    """Return the checked grid, its rows, and the owner of the cells of each row."""
    for folder in (*args.data, *args.test_data):
        check_folder(folder, "data folder", "collect")
    known = read_variants(args.variants_file)
    unknown = [name for name in args.variants if name not in known]
    if unknown or not args.variants:
        raise InputError(f"--variants {' '.join(unknown)}: choose from {', '.join(known)}")
    if args.parallel < 1 or not args.seeds or not args.modes:
        raise InputError("--parallel, --seeds and --modes: give 1 or more of each")
    variants = {name: known[name] for name in args.variants}
    for variant in variants.values():
        configuration(args.preset, variant)
    grid = AblationGrid(
        out=args.out.absolute(),
        data=tuple(str(folder.absolute()) for folder in args.data),
        test_data=tuple(str(folder.absolute()) for folder in args.test_data),
        preset=args.preset,
        tokenizer=Budget(args.tokenizer_iterations, args.tokenizer_seconds),
        dynamics=Budget(args.iterations, args.cpu_seconds),
        modes=args.modes,
        evaluate={
            "steps": args.sampling_steps,
            "horizon": args.horizon,
            "stride": args.stride,
            "limit": args.limit,
            "distance": False,
        },
    )
    check_continues(grid)
    write_json_atomic(grid.out / "config.json", grid.identity())
    return grid, variants, distinct(args.preset, variants)


def check_continues(grid: AblationGrid) -> None:
    """Raise InputError where `out` holds another study, naming the difference, or something
    else."""
    file = grid.out / "config.json"
    if not file.exists():
        if grid.out.exists() and any(grid.out.iterdir()):
            raise InputError(
                f"{grid.out} holds something else than an ablation: give another --out"
            )
        return
    there, here = json.loads(file.read_text()), grid.identity()
    for name, value in here.items():
        if there.get(name) != value:
            raise InputError(
                f"{grid.out} holds an ablation whose {name} is {there.get(name)}, not {value}: "
                "give another --out"
            )


def run_grid(
    grid: AblationGrid,
    variants: dict[str, Variant],
    owners: dict[str, str],
    seeds: Sequence[int],
    parallel: int,
) -> list[dict[str, Any]]:
    """Return the results of all cells; missing ones are computed, the variants of a seed in
    parallel."""
    for uris in (grid.data, grid.test_data):
        if uris:
            ClipDataset(uris, grid.cache, length=2)  # staged once, before many ask for it
    steps = budget(grid, "tokenizer", grid.tokenizer, tokenizer_job(grid, seeds[0], None))
    with progress("tokenizers", len(seeds)) as bar:
        for _ in calls(run_tokenizer, [(grid, seed, steps) for seed in seeds], parallel):
            bar.advance()
    names = list(dict.fromkeys(owners.values()))
    allowed = {name: dynamics_steps(grid, name, variants[name], seeds[0]) for name in names}
    todo = [
        (grid, name, variants[name], seed, allowed[name])
        for seed, name in itertools.product(seeds, names)
    ]
    cells: list[dict[str, Any]] = []
    with progress("cells", len(todo)) as bar:
        for number, figures in calls(run_cell, todo, parallel):
            cells.append(figures)
            write(grid, variants, owners, cells)
            bar.advance(note=f"{todo[number][1]}, seed {todo[number][3]}")
    return cells


def calls(function: Any, arguments: Sequence[tuple[Any, ...]], parallel: int) -> Any:
    """Yield (number, result) of each call as it ends: one after the other, or `parallel` at a
    time."""
    if parallel > 1:
        return map_ray_tasks(function, arguments, at_a_time=parallel)
    return ((number, function(*call)) for number, call in enumerate(arguments))


def dynamics_steps(grid: AblationGrid, name: str, variant: Variant, seed: int) -> int | None:
    """Return the optimizer steps of a variant's runs, the same for each seed."""
    return budget(grid, name, grid.dynamics, dynamics_job(grid, name, variant, seed, None))


def budget(grid: AblationGrid, name: str, allowed: Budget, job: TrainingRun) -> int | None:
    """Return the optimizer steps of a budget, None for the preset's; timed once, for
    budget.json."""
    if allowed.cpu_seconds is None:
        return allowed.iterations
    file = grid.out / "budget.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if name not in known:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = cpu_seconds_a_step(job)
        torch.set_num_threads(threads)
        known[name] = {
            "seconds_a_step": seconds,
            "iterations": max(1, round(allowed.cpu_seconds / seconds)),
        }
        write_json_atomic(file, known)
    return int(known[name]["iterations"])
