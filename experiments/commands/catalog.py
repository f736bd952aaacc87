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

if TYPE_CHECKING:  # pandas takes a second, which --help and --names do without
    import pandas as pd


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
    """Function of the right button."""
    left: tuple[str, ...] = ()
    """Function of the left button."""
    up: tuple[str, ...] = ()
    """Function of the up button, e.g. climb none."""
    down: tuple[str, ...] = ()
    """Function of the down button, e.g. crouch."""
    jump: tuple[str, ...] = ()
    """Function of the jump button."""
    secondary: tuple[str, ...] = ()
    """Function of the second button, e.g. shoot strike."""
    transition: tuple[str, ...] = ()
    """Start state needs a button or time before play: yes, no, unknown."""
    scrolling: tuple[str, ...] = ()
    """Scrolling background: yes, no, unknown."""
    min_confidence: float = 0.0
    """Minimum confidence of the labels, from 0 to 1."""
    subset: str | None = None
    """Only games of this subset: platformers-200 or platformers-50."""
    playable: bool = False
    """Only games whose ROM is installed."""
    limit: int | None = None
    """Maximum number of games."""
    names: bool = False
    """Print only names, one a line, for other commands."""
    counts: bool = False
    """Print the number of games of each label instead of the games."""
    plot: Path | None = None
    """Draw these numbers into this picture, e.g. labels.png."""
    action: Action = field(default_factory=Listing)


def run(args: Args) -> None:
    """Run the action."""
    if not isinstance(args.action, Listing):
        module = {
            probe.Args: probe,
            annotate.Args: annotate,
            agree.Args: agree,
            import_retroact.Args: import_retroact,
        }[type(args.action)]
        module.run(args.action)
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
        draw(rows, args.plot)
        console.print(f"{args.plot}: labels of {len(names)} games")
    if args.counts:
        print_counts(rows)
    elif args.plot is None:
        print_games(rows)
    console.print(f"{len(names)} games, {int(rows['playable'].sum())} of them with their ROM here")


def print_games(rows: "pd.DataFrame") -> None:
    """Print one line a game."""
    columns = ("console", "view", "axis", "motion", "up", "down", "jump", "secondary")
    shown = Table("game", "ROM", *columns, box=None, header_style="bold")
    for name, row in rows.iterrows():
        shown.add_row(
            str(name), "yes" if row["playable"] else "-", *(row[column] for column in columns)
        )
    console.print(shown)


def label_counts(rows: "pd.DataFrame") -> "dict[str, pd.Series[int]]":
    """Return the number of games of each label; controls are counted among platformers only."""
    platformers = rows[rows["motion"] == "platformer"]
    counts = {
        column: rows[column].value_counts() for column in ("view", "axis", "motion", "console")
    }
    return counts | {column: platformers[column].value_counts() for column in catalog.CONTROLS}


def print_counts(rows: "pd.DataFrame") -> None:
    """Print one line a column: its labels with their numbers, in brackets those of RetroAct."""
    shown = Table("label", "games", box=None, header_style="bold")
    for column, counts in label_counts(rows).items():
        theirs = PUBLISHED_COUNTS.get(column)
        beside = {
            label: f" ({theirs.get(str(label), 0)})" if theirs else "" for label in counts.index
        }
        shown.add_row(
            column, ", ".join(f"{label} {count}{beside[label]}" for label, count in counts.items())
        )
    console.print(shown)
    console.print(
        "the controls are those of the platformers alone; in brackets: of RetroAct's 974 games"
    )


def draw(rows: "pd.DataFrame", path: Path) -> None:
    """Draw the numbers as bars, with those of RetroAct; right and left are the same in all games.

    Raises InputError where the picture cannot be written.
    """
    from matplotlib.figure import Figure

    counts = {
        column: values
        for column, values in label_counts(rows).items()
        if column not in ("right", "left")
    }
    figure = Figure(figsize=(13, 8), layout="constrained")
    for axes, (column, values) in zip(figure.subplots(2, 4).flat, counts.items(), strict=True):
        values = values.head(15)[::-1]
        bars = axes.barh([str(label) for label in values.index], values.to_numpy(), color="#2b6cb0")
        theirs = PUBLISHED_COUNTS.get(column)
        texts = [
            f"{n} ({theirs.get(str(label), 0)})" if theirs else f"{n}"
            for label, n in values.items()
        ]
        axes.bar_label(bars, texts, padding=2, fontsize=7)
        axes.set_title(column, loc="left", fontweight="bold")
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(labelsize=8, left=False, bottom=False, labelbottom=False)
        axes.margins(x=0.2)
    figure.suptitle(
        f"Labels of {len(rows)} games; the controls are those of the platformers; marks: RetroAct",
        x=0.01,
        ha="left",
    )
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path}: {error}") from error
