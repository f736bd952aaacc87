"""Ablation of the method: train variants x seeds on one budget, evaluate, compare (Table 4).

Run it again to continue: finished cells are kept, interrupted ones resumed. You may add seeds and
variants.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console, progress
from envs.utils.ray_session import ray_session
from experiments.studies.ablation_runs import (
    AblationGrid,
    Budget,
    cpu_seconds_per_step,
    dynamics_run,
    read_variants,
    run_cell,
    tokenizer_run,
    train_tokenizer,
    variant_config,
)
from experiments.studies.ablation_tables import ablation_markdown, write_ablation
from experiments.studies.arguments import AblationArgs
from experiments.studies.common import check_continues
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.ray_tasks import map_ray_tasks
from worldmodel.training.run_spec import TrainingRun


def run(args: AblationArgs) -> None:
    """Train and evaluate the missing cells, then print the tables and the names of the files."""
    grid = plan_grid(args)
    with ray_session(args.ray_address) if args.parallel > 1 else nullcontext():
        result = run_grid(grid, args.seeds, args.parallel)
    console.print(ablation_markdown(result))
    console.print(f"written to {args.out}: ablation.json, ablation.md, ablation.png")


def plan_grid(args: AblationArgs) -> AblationGrid:
    """Return the grid of the flags, and write its settings to config.json."""
    known = read_variants(args.variants_file)
    unknown = [name for name in args.variants if name not in known]
    if unknown or not args.variants:
        raise InputError(f"--variants {' '.join(unknown)}: choose from {', '.join(known)}")
    if args.parallel < 1 or not args.seeds or not args.modes:
        raise InputError("--parallel, --seeds and --modes: give 1 or more of each")
    variants = {name: known[name] for name in args.variants}
    for variant in variants.values():
        variant_config(args.preset, variant)
    grid = AblationGrid(
        out=args.out.absolute(),
        variants=variants,
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
        precision=args.precision,
    )
    check_continues(grid.out, grid.identity(), "an ablation")
    return grid


def run_grid(grid: AblationGrid, seeds: Sequence[int], parallel: int) -> dict[str, Any]:
    """Return the results of all cells, after computing the missing ones."""
    for uris in (grid.data, grid.test_data):
        if uris:
            ClipDataset(uris, grid.cache, length=2)  # fill the cache once, before the cells read it
    steps = _budget_steps(grid, "tokenizer", grid.tokenizer, tokenizer_run(grid, seeds[0], None))
    with progress("tokenizers", len(seeds)) as bar:
        for _ in _run_calls(train_tokenizer, [(grid, seed, steps) for seed in seeds], parallel):
            bar.advance()
    names = list(dict.fromkeys(grid.cell_owners().values()))
    iterations = {
        name: _budget_steps(grid, name, grid.dynamics, dynamics_run(grid, name, seeds[0], None))
        for name in names
    }
    calls = [(grid, name, seed, iterations[name]) for seed, name in itertools.product(seeds, names)]
    cells: list[dict[str, Any]] = []
    with progress("cells", len(calls)) as bar:
        for number, cell in _run_calls(run_cell, calls, parallel):
            cells.append(cell)
            result = write_ablation(grid, cells)
            bar.advance(note=f"{calls[number][1]}, seed {calls[number][2]}")
    return result


def _run_calls(
    function: Any, calls: Sequence[tuple[Any, ...]], parallel: int
) -> Iterator[tuple[int, Any]]:
    """Yield (number, result) of each call as it ends, with `parallel` calls at a time."""
    if parallel > 1:
        return map_ray_tasks(function, calls, at_a_time=parallel)
    return ((number, function(*call)) for number, call in enumerate(calls))


def _budget_steps(grid: AblationGrid, name: str, budget: Budget, run: TrainingRun) -> int | None:
    """Return the optimizer steps of a budget, None for the preset's.

    The time of a step is measured once and recorded in budget.json.
    """
    if budget.cpu_seconds is None:
        return budget.iterations
    file = grid.out / "budget.json"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    if name not in recorded:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = cpu_seconds_per_step(run)
        torch.set_num_threads(threads)
        iterations = max(1, round(budget.cpu_seconds / seconds))
        recorded[name] = {"seconds_a_step": seconds, "iterations": iterations}
        write_json_atomic(file, recorded)
    return int(recorded[name]["iterations"])
