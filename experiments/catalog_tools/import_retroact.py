"""Comparison of RetroAct's published labels with the catalogue's."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.catalog_tools import retroact


@dataclass(frozen=True, kw_only=True)
class Args:
    """Compare RetroAct's labels or controls, in a CSV file, with the catalogue."""

    file: tyro.conf.Positional[Path]
    """CSV file with the columns game,tags or game,RIGHT,LEFT,UP,DOWN,ACTION_JUMP,..."""
    out: Path | None = None
    """CSV file to write RetroAct's labels to, in the words of the catalogue."""


def run(args: Args) -> None:
    """Print differences and agreement. Raises InputError at the end if lines are malformed."""
    imported = retroact.read(args.file)
    differences = imported.differences()
    if differences:
        table = Table("line", "game", "label", "theirs", "ours", box=None, header_style="bold")
        for item in differences:
            table.add_row(str(item.line), item.game, item.column, item.theirs, item.ours)
        console.print(table)
    for column, (same, compared) in imported.agreement().items():
        share = f" ({same / compared:.1%})" if compared else ""
        console.print(f"{column}: {same} of {compared} the same{share}")
    console.print(f"{args.file}: {len(imported.labels)} games, {len(differences)} labels differ")
    if args.out is not None:
        imported.save(args.out)
    for line, reason in imported.malformed.items():
        console.print(f"line {line}: {reason}")
    if imported.malformed:
        lines = ", ".join(str(line) for line in list(imported.malformed)[:5])
        raise InputError(
            f"{args.file}: {len(imported.malformed)} rows could not be read (lines {lines}), "
            "all others were"
        )
