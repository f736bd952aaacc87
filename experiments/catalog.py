"""List the games that can be named, filter them, and say which ROMs are here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Args:
    """List the games that stable-retro knows."""

    console: str | None = None
    """Only games of this console, e.g. Atari2600, Genesis, Nes, Snes, Sms, GameBoy, 32x."""
    view: str | None = None
    """Only games seen this way."""
    axis: str | None = None
    """Only games controlled along this axis."""
    motion: str | None = None
    """Only games of this motion style."""
    playable: bool = False
    """Only games whose ROM is imported."""
    limit: int | None = None
    """At most this many games."""
    names: bool = False
    """Print bare names, one a line, to give to other commands."""


def run(args: Args) -> None:
    """Print the games that match, and how many of how many have their ROM."""
    from rich.table import Table

    from envs import catalog
    from envs.runs import console

    names = catalog.games(
        args.console, args.view, args.axis, args.motion, playable=True if args.playable else None, limit=args.limit
    )
    if args.names:
        print("\n".join(names))
        return
    rows = catalog.table().set_index("game").loc[names]
    shown = Table("game", "console", "ROM", "view", "axis", "motion", box=None, header_style="bold")
    for name, row in rows.iterrows():
        shown.add_row(
            str(name), row["console"], "yes" if row["playable"] else "-", row["view"], row["axis"], row["motion"]
        )
    console.print(shown)
    console.print(f"{len(names)} games, {int(rows['playable'].sum())} of them with their ROM here")
