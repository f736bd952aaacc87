"""Compare RetroAct's published labels with the catalogue's, row by row."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Args:
    """Read RetroAct's labels or controls from a CSV file, in our words, and say where they differ."""

    file: tyro.conf.Positional[Path]
    """CSV with the columns game,tags or game,RIGHT,LEFT,UP,DOWN,ACTION_JUMP,ACTION_SECONDARY,transition,..."""
    out: Path | None = None
    """Write what the file says, in our words, to this CSV."""


def run(args: Args) -> None:
    """Print differences and agreement. Raises InputError that names the lines that could not be read, at the end."""
    from rich.table import Table

    from envs.utils.atomic_io import write_atomic
    from envs.utils.errors import InputError
    from envs.utils.progress import console
    from experiments.catalog_tools import retroact

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
        import pandas as pd

        table = pd.DataFrame.from_dict(found.labels, orient="index", columns=list(found.columns))
        write_atomic(args.out, table.to_csv(index_label="game").encode())
    for line, why in found.malformed.items():
        console.print(f"line {line}: {why}")
    if found.malformed:
        lines = ", ".join(str(line) for line in list(found.malformed)[:5])
        raise InputError(
            f"{args.file}: {len(found.malformed)} rows could not be read (lines {lines}); the rest was"
        )
