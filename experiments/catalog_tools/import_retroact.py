"""Comparison of RetroAct's published labels with the catalogue's."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.catalog_tools import retroact


@dataclass(frozen=True, kw_only=True)
class Args:
    """Compare RetroAct's labels or controls, in a CSV file, with the catalogue."""

    file: tyro.conf.Positional[Path]
    """CSV with the columns game,tags or game,RIGHT,LEFT,UP,DOWN,ACTION_JUMP,..."""
    out: Path | None = None
    """CSV file for RetroAct's labels in the words of the catalogue."""


def run(args: Args) -> None:
    """Print differences and agreement. Raises InputError at the end if lines are malformed."""
    found = retroact.read(args.file)
    differences = found.differences()
    if differences:
        shown = Table("line", "game", "label", "theirs", "ours", box=None, header_style="bold")
        for item in differences:
            shown.add_row(str(item.line), item.game, item.column, item.theirs, item.ours)
        console.print(shown)
    for column, (same, compared) in found.agreement().items():
        console.print(
            f"{column}: {same} of {compared} the same"
            + (f" ({same / compared:.1%})" if compared else "")
        )
    console.print(f"{args.file}: {len(found.labels)} games, {len(differences)} labels differ")
    if args.out is not None:
        import pandas as pd  # here: `autoexplore catalog` answers without it

        table = pd.DataFrame.from_dict(found.labels, orient="index", columns=list(found.columns))
        write_atomic(args.out, table.to_csv(index_label="game").encode())
    for line, why in found.malformed.items():
        console.print(f"line {line}: {why}")
    if found.malformed:
        lines = ", ".join(str(line) for line in list(found.malformed)[:5])
        raise InputError(
            f"{args.file}: {len(found.malformed)} rows could not be read (lines {lines}), "
            "all others were"
        )
