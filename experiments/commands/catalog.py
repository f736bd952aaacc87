"""List games, their labels and which ROMs are installed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from envs import catalog
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.catalog_tools import agree, annotate, import_retroact, probe
from experiments.catalog_tools.retroact import PUBLISHED_COUNTS

if TYPE_CHECKING:  # pandas takes a second to import, and --help and --names do not need it
    import pandas as pd

TOOLS = (probe, annotate, agree, import_retroact)


@dataclass(frozen=True)
class Listing:
    """List the games that match the flags before it; the default action."""


Action = (
    Annotated[
        Listing, tyro.conf.subcommand("list", description="List the games that match the flags.")
    ]
    | Annotated[probe.Args, tyro.conf.subcommand("probe", description=probe.__doc__)]
    | Annotated[annotate.Args, tyro.conf.subcommand("annotate", description=annotate.__doc__)]
    | Annotated[agree.Args, tyro.conf.subcommand("agree", description=agree.__doc__)]
    | Annotated[
        import_retroact.Args, tyro.conf.subcommand("import", description=import_retroact.__doc__)
    ]
)


@dataclass(frozen=True)
class Args:
    """List the games of stable-retro. A filter with several words matches any of them."""

    console: tuple[str, ...] = ()
    """Only games of these consoles, e.g. Atari2600, Genesis, Nes, Snes, Sms, GameBoy, 32x."""
    view: tuple[str, ...] = ()
    """Only games with this view."""
    axis: tuple[str, ...] = ()
    """Only games controlled along this axis."""
    motion: tuple[str, ...] = ()
    """Only games of this motion style."""
    right: tuple[str, ...] = ()
    """Only games with this function of the right button."""
    left: tuple[str, ...] = ()
    """Only games with this function of the left button."""
    up: tuple[str, ...] = ()
    """Only games with this function of the up button, e.g. climb none."""
    down: tuple[str, ...] = ()
    """Only games with this function of the down button, e.g. crouch."""
    jump: tuple[str, ...] = ()
    """Only games with this function of the jump button."""
    secondary: tuple[str, ...] = ()
    """Only games with this function of the second button, e.g. shoot strike."""
    transition: tuple[str, ...] = ()
    """Only games whose start state needs a button or a wait before play: yes, no, unknown."""
    scrolling: tuple[str, ...] = ()
    """Only games with a scrolling background: yes, no, unknown."""
    min_confidence: float = 0.0
    """Minimum confidence of the labels, from 0 to 1."""
    subset: str | None = None
    """Only games of this subset: platformers-200 or platformers-50."""
    playable: bool = False
    """Only games whose ROM is installed."""
    limit: int | None = None
    """Maximum number of games. Default: all."""
    names: bool = False
    """Print only names, one per line, for other commands."""
    counts: bool = False
    """Print the number of games with each label instead of the games."""
    plot: Path | None = None
    """Draw these numbers as a bar chart into this file, e.g. labels.png."""
    action: Action = field(default_factory=Listing)


def run(args: Args) -> None:
    """Run the action: list games, or start one of the catalogue's tools."""
    for tool in TOOLS:
        if isinstance(args.action, tool.Args):
            tool.run(args.action)
            return

    labels = ("console", "view", "axis", "motion", *catalog.CONTROLS, "transition", "scrolling")
    names = catalog.games(
        **{label: getattr(args, label) or None for label in labels},
        playable=True if args.playable else None,
        limit=args.limit,
        subset=args.subset,
        min_confidence=args.min_confidence,
    )
    if args.names:
        print("\n".join(names))
        return
    rows = catalog.table().set_index("game").loc[names]
    if args.plot is not None:
        plot_counts(rows, args.plot)
        console.print(f"{args.plot}: labels of {len(names)} games")
    if args.counts:
        print_counts(rows)
    elif args.plot is None:
        print_games(rows)
    playable = int(rows["playable"].sum())
    console.print(f"{len(names)} games, {playable} of them with an installed ROM")


def print_games(rows: "pd.DataFrame") -> None:
    """Print one line per game."""
    columns = ("console", "view", "axis", "motion", "up", "down", "jump", "secondary")
    table = Table("game", "ROM", *columns, box=None, header_style="bold")
    for name, row in rows.iterrows():
        cells = (row[column] for column in columns)
        table.add_row(str(name), "yes" if row["playable"] else "-", *cells)
    console.print(table)


def label_counts(rows: "pd.DataFrame") -> "dict[str, pd.Series[int]]":
    """Return the number of games with each label; controls are counted among platformers only."""
    platformers = rows[rows["motion"] == "platformer"]
    columns = ("view", "axis", "motion", "console")
    counts = {column: rows[column].value_counts() for column in columns}
    return counts | {column: platformers[column].value_counts() for column in catalog.CONTROLS}


def captions(column: str, counts: "pd.Series[int]") -> list[str]:
    """Return the count of each label, followed by RetroAct's in brackets if it is published."""
    published = PUBLISHED_COUNTS.get(column)
    if not published:
        return [str(count) for count in counts]
    return [f"{count} ({published.get(str(label), 0)})" for label, count in counts.items()]


def print_counts(rows: "pd.DataFrame") -> None:
    """Print one line per column: its labels with their counts."""
    table = Table("label", "games", box=None, header_style="bold")
    for column, counts in label_counts(rows).items():
        pairs = zip(counts.index, captions(column, counts), strict=True)
        table.add_row(column, ", ".join(f"{label} {caption}" for label, caption in pairs))
    console.print(table)
    console.print("controls: platformers only; in brackets: of RetroAct's 974 games")


def plot_counts(rows: "pd.DataFrame", path: Path) -> None:
    """Draw the counts as bars. Right and left are omitted: they are the same in almost all games.

    Raises InputError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    counts = label_counts(rows)
    del counts["right"], counts["left"]
    figure = Figure(figsize=(13, 8), layout="constrained")
    for axes, (column, values) in zip(figure.subplots(2, 4).flat, counts.items(), strict=True):
        values = values.head(15)[::-1]
        bars = axes.barh([str(label) for label in values.index], values.to_numpy(), color="#2b6cb0")
        axes.bar_label(bars, captions(column, values), padding=2, fontsize=7)
        axes.set_title(column, loc="left", fontweight="bold")
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(labelsize=8, left=False, bottom=False, labelbottom=False)
        axes.margins(x=0.2)
    title = f"Labels of {len(rows)} games; controls: platformers only; in brackets: RetroAct"
    figure.suptitle(title, x=0.01, ha="left")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path}: {error}") from error
