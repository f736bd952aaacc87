"""Agreement of several annotators and merging of their labels."""

import math
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.markup import escape
from rich.table import Table

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.catalog_tools import labels


@dataclass(frozen=True, kw_only=True)
class Args:
    """Print the agreement of annotators and their differences; merge their labels with --out."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more files of `autoexplore catalog annotate`; envs/catalog.csv may be one of them."""
    out: Path | None = None
    """File of the merged table, with the columns of envs/catalog.csv."""


def run(args: Args) -> None:
    """Print Cohen's kappa of each pair and column and each differing cell; write the table."""
    if len(args.files) < 2:
        raise InputError("agreement needs two or more files of labels: name them")
    if args.out is not None and args.out.resolve() in [file.resolve() for file in args.files]:
        raise InputError(f"--out {args.out} is one of the annotators' files: give another")
    annotators = labels.load_all(args.files)
    merged, conflicts = labels.merge(annotators)
    console.print(agreement_table(labels.pairwise_agreement(annotators)))
    if conflicts:
        table = Table("game", "column", "words", "merged", box=None, header_style="bold")
        for cell in conflicts:
            words = ", ".join(f"{name}: {word}" for name, word in cell.words.items())
            table.add_row(cell.game, cell.column, escape(words), cell.merged)
        console.print(table)
    common = set.intersection(*(set(annotator.rows) for annotator in annotators))
    console.print(
        f"{len(merged)} games, {len(common)} of them labelled by all; {len(conflicts)} cells differ"
    )
    if args.out is not None:
        labels.save(args.out, merged)
        console.print(f"{args.out}: merged table")


def agreement_table(agreements: list[labels.Agreement]) -> Table:
    """Return one row per pair of annotators and column."""
    table = Table("annotators", "column", box=None, header_style="bold")
    for heading in ("games", "equal", "kappa"):
        table.add_column(heading, justify="right")
    for item in agreements:
        # An undefined kappa: a dash if no game was labelled by both, else both used one word.
        equal = f"{item.raw:.1%}" if item.games else "-"
        kappa = f"{item.kappa:.2f}"
        if math.isnan(item.kappa):
            kappa = "one word" if item.games else "-"
        names = escape(" / ".join(item.annotators))
        table.add_row(names, item.column, str(item.games), equal, kappa)
    return table
