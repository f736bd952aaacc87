"""Measure how fast the parts are, each against the plain thing it should not be much slower than, in the same run."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from envs.cluster import ray_session
from experiments.common import RayArgs, check_games


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Measure speeds as ratios inside one run, so that they mean the same on any machine."""

    out: Path | None = None
    """Folder for benchmark.json."""
    games: tuple[str, ...] = ("Airstriker-Genesis", "Kangaroo-Atari2600")
    """Games to play. By default stored data are measured on six more."""
    steps: int = 500
    """Steps of each episode that is played."""
    repeats: int = 3
    """Measurements of each row; the middle one counts."""
    only: tuple[str, ...] = ()
    """Measure only these groups: collect, windows, reward, training, generation."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a rate, and what it is compared with.

    target: the least ratio that is wanted, if any; with at_most the largest.
    """

    group: str
    what: str
    rate: float
    unit: str
    against: str = ""
    against_rate: float = float("nan")
    target: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> float:
        return self.rate / self.against_rate


def run(args: Args) -> None:
    """Measure, print the table, and write benchmark.json."""
    from rich.table import Table

    from envs.errors import InputError
    from envs.files import write_json_atomic
    from envs.runs import console
    from experiments.benchmark_data import collecting, windows
    from experiments.benchmark_model import generation, training
    from experiments.benchmark_reward import reward

    groups: dict[str, Callable[[Args, Path], Iterator[Row]]] = {
        "collect": collecting,
        "windows": windows,
        "reward": reward,
        "training": training,
        "generation": generation,
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
    table = Table("", "rate", "against", "its rate", "ratio", "wanted", box=None, header_style="bold")
    for row in rows:
        compared = row.against != ""
        table.add_row(
            row.what,
            f"{row.rate:,.0f} {row.unit}",
            row.against,
            f"{row.against_rate:,.0f}" if compared else "",
            f"{row.ratio:.3f}" if compared else "",
            f"{'<=' if row.at_most else '>='} {row.target:g}" if row.target is not None else "",
        )
    console.print(table)
    if args.out is not None:
        measured = [asdict(row) | ({"ratio": row.ratio} if row.against else {}) for row in rows]
        write_json_atomic(args.out / "benchmark.json", measured)
        console.print(f"written to {args.out / 'benchmark.json'}")


def middle(times: int, measure: Callable[[], float]) -> float:
    """The median of some measurements."""
    return statistics.median(measure() for _ in range(times))
