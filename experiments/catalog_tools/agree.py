"""Compare what several annotators said, and merge it into one table."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Args:
    """Print how far annotators agree and where they differ; merge their labels with --out."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more files that `autoexplore catalog annotate` wrote; envs/catalog.csv may be one of them."""
    out: Path | None = None
    """File of the merged table, with the columns of envs/catalog.csv."""


def run(args: Args) -> None:
    """Print Cohen's kappa of each pair and column, then each cell that differs; write the merged table."""
    from rich.markup import escape
    from rich.table import Table

    from envs.utils.errors import InputError
    from envs.utils.progress import console
    from experiments.catalog_tools import labels

    if len(args.files) < 2:
        raise InputError("agreement needs two or more files of labels: name them")
    if args.out is not None and args.out.resolve() in [file.resolve() for file in args.files]:
        raise InputError(f"--out {args.out} is one of the annotators' files: give another")
    everyone = labels.load_all(args.files)
    merged, differences = labels.merge(args.files)

    figures = Table("annotators", "column", box=None, header_style="bold")
    for heading in ("games", "equal", "kappa"):
        figures.add_column(heading, justify="right")
    for one in labels.agreement(everyone):
        # Undefined is said as such: a dash where nothing was labelled by both, else everyone used one word.
        equal = f"{one.raw:.1%}" if one.games else "-"
        kappa = f"{one.kappa:.2f}" if one.kappa == one.kappa else ("one word" if one.games else "-")
        figures.add_row(
            escape(" / ".join(one.annotators)), one.column, str(one.games), equal, kappa
        )
    console.print(figures)

    shown = Table("game", "column", "words", "merged", box=None, header_style="bold")
    for cell in differences:
        words = ", ".join(f"{name}: {word}" for name, word in cell.words.items())
        shown.add_row(cell.game, cell.column, escape(words), cell.merged)
    if differences:
        console.print(shown)
    common = set.intersection(*(set(one.rows) for one in everyone))
    console.print(
        f"{len(merged)} games, {len(common)} of them labelled by all; {len(differences)} cells differ"
    )
    if args.out is not None:
        labels.save(args.out, merged)
        console.print(f"{args.out}: merged table")
