"""Benchmark data loading, the model and the reward against simple baselines."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session
from experiments.arguments import check_games
from experiments.benchmarks.common import Args, Row
from experiments.benchmarks.data import measure_collection, measure_loading
from experiments.benchmarks.model import measure_generation, measure_training
from experiments.benchmarks.reward import measure_reward


def run(args: Args) -> None:
    """Measure, print the table, and write benchmark.json."""
    groups: dict[str, Callable[[Args, Path], Iterator[Row]]] = {
        "collect": measure_collection,
        "windows": measure_loading,
        "reward": measure_reward,
        "training": measure_training,
        "generation": measure_generation,
    }
    unknown = set(args.only) - set(groups)
    if unknown:
        raise InputError(f"--only {sorted(unknown)[0]}: choose among {', '.join(groups)}")
    check_games(args.games)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, ray_session(args.ray_address):
        for name, measure in groups.items():
            if not args.only or name in args.only:
                console.print(f"measuring {name} ...")
                rows += measure(args, Path(scratch))
    table = Table(
        "", "rate", "baseline", "its rate", "ratio", "target", box=None, header_style="bold"
    )
    for row in rows:
        compared = row.baseline != ""
        table.add_row(
            row.name,
            f"{row.rate:,.0f} {row.unit}",
            row.baseline,
            f"{row.baseline_rate:,.0f}" if compared else "",
            f"{row.ratio:.3f}" if compared else "",
            f"{'<=' if row.at_most else '>='} {row.target:g}" if row.target is not None else "",
        )
    console.print(table)
    if args.out is not None:
        measured = [asdict(row) | ({"ratio": row.ratio} if row.baseline else {}) for row in rows]
        write_json_atomic(args.out / "benchmark.json", measured)
        console.print(f"written to {args.out / 'benchmark.json'}")
