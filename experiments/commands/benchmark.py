"""Benchmark data loading, the model and the reward against simple baselines."""

import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.table import Table

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import check_at_least, check_games
from experiments.benchmarks.common import Args, Row

ON_CPU = ("collect", "windows", "reward", "training", "generation", "runners")
WITHOUT_RAY = ("gpu", "roofline")
GROUPS = ON_CPU + WITHOUT_RAY


def run(args: Args) -> None:
    """Measure, print the table, and write benchmark.json."""
    if unknown := set(args.only) - set(GROUPS):
        raise InputError(f"--only {min(unknown)}: choose among {', '.join(GROUPS)}")
    check_at_least(1, steps=args.steps, repeats=args.repeats)
    check_games(args.games)

    chosen = args.only or (ON_CPU if args.device in ("auto", "cpu") else ("gpu",))

    # These import torch and Ray: wrong arguments are reported first.
    from experiments.benchmarks.accelerator import measure_accelerator
    from experiments.benchmarks.data import measure_collection, measure_loading
    from experiments.benchmarks.model import measure_generation, measure_training
    from experiments.benchmarks.reward import measure_reward
    from experiments.benchmarks.roofline import check_cards, measure_roofline
    from experiments.benchmarks.runners import STORE_BYTES, measure_runners

    check_cards(args.hardware)
    measures = (
        measure_collection,
        measure_loading,
        measure_reward,
        measure_training,
        measure_generation,
        measure_runners,
        measure_accelerator,
        measure_roofline,
    )
    rows: list[Row] = []
    needs_ray = not set(chosen) <= set(WITHOUT_RAY)
    with_ray = partial(ray_session, args.ray_address, store_bytes=STORE_BYTES)
    session = with_ray() if needs_ray else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, session:
        for name, measure in zip(GROUPS, measures, strict=True):
            if name in chosen:
                console.print(f"measuring {name} ...")
                rows += measure(args, Path(scratch))
    console.print(rates_table(rows))
    if args.out is not None:
        measured = [asdict(row) | ({"ratio": row.ratio} if row.baseline else {}) for row in rows]
        write_json_atomic(args.out / "benchmark.json", measured)
        console.print(f"written to {args.out / 'benchmark.json'}")


def rates_table(rows: list[Row]) -> Table:
    """Return a table of the rates, their baselines and the ratios."""
    heads = ("", "rate", "baseline", "its rate", "ratio", "target")
    known = any(row.most_time for row in rows)  # only of predictions
    table = Table(*heads, *["most time in"] * known, box=None, header_style="bold")
    for row in rows:
        compared = row.baseline != ""
        table.add_row(
            row.name,
            f"{row.rate:,.0f} {row.unit}",
            row.baseline,
            f"{row.baseline_rate:,.0f}" if compared else "",
            f"{row.ratio:.3f}" if compared else "",
            f"{'<=' if row.at_most else '>='} {row.target:g}" if row.target is not None else "",
            *[row.most_time] * known,
        )
    return table
