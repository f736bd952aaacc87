"""Every game that stable-retro knows: its console, whether its ROM is here, and what kind of game it is.

The labels stand in `catalog.csv`, one row a game: two annotators' own knowledge of each game, without any published
label set. Where they differed on the motion style the case was decided one by one, elsewhere the surer of the two holds
and the confidence is the lower one. `unknown` means that neither could say.
"""

import difflib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import stable_retro.data

from envs.utils.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

LABELS_FILE = Path(__file__).with_name("catalog.csv")
SUBSETS_FOLDER = Path(__file__).with_name("subsets")

VIEWS = ("side", "third person", "top", "first person", "several")
AXES = ("free", "horizontal", "vertical", "fixed", "tube")
MOTIONS = (
    *(
        "platformer",
        "space_shooter",
        "fight",
        "shooter",
        "action",
        "sport",
        "maze",
        "race",
        "grid",
        "pong",
    ),
    *("simulation", "pinball", "flying_platformer", "tetris", "other"),
)
CONTROLS = ("right", "left", "up", "down", "jump", "secondary")

Choice = str | Sequence[str] | None
"""One label, several of which each is good, or any."""


def games(
    console: Choice = None,
    view: Choice = None,
    axis: Choice = None,
    motion: Choice = None,
    playable: bool | None = None,
    limit: int | None = None,
    *,
    subset: str | None = None,
    right: Choice = None,
    left: Choice = None,
    up: Choice = None,
    down: Choice = None,
    jump: Choice = None,
    secondary: Choice = None,
    transition: Choice = None,
    scrolling: Choice = None,
    min_confidence: float = 0.0,
) -> list[str]:
    """Names of the games that match every given value, in alphabetical order, without the "-v0" ending.

    Labels are those of `table`; a value is one label or several that are all good, e.g. motion="platformer",
    up=("climb", "none"). `playable` asks for games with (True) or without (False) a ROM, `subset` for those of a named
    list (`subsets`), `min_confidence` in [0, 1] for labels at least so sure; `limit` cuts the list. Raises InputError
    for a label or console that no game has, an unknown subset, or a number out of range.
    """
    if not 0 <= min_confidence <= 1 or (limit is not None and limit < 0):
        raise InputError(
            f"min_confidence {min_confidence} must be in [0, 1] and limit {limit} 0 or more"
        )
    wanted = {
        "console": console,
        "view": view,
        "axis": axis,
        "motion": motion,
        "right": right,
        "left": left,
        "up": up,
    }
    wanted |= {
        "down": down,
        "jump": jump,
        "secondary": secondary,
        "transition": transition,
        "scrolling": scrolling,
    }
    rows = rows_of = table()
    for column, choice in wanted.items():
        if choice is not None:
            labels = [choice] if isinstance(choice, str) else list(choice)
            known = sorted(rows_of[column].unique())
            if strange := set(labels) - set(known):
                raise InputError(
                    f"no game has {column} {sorted(strange)[0]!r}: known are {', '.join(known)}"
                )
            rows = rows[rows[column].isin(labels)]
    if subset is not None:
        rows = rows[rows["game"].isin(read_subset(subset))]
    if playable is not None:
        rows = rows[rows["playable"] == playable]
    rows = rows[rows["confidence"] >= min_confidence]
    return list(rows["game"][:limit])


def subsets() -> list[str]:
    """Names of the frozen lists of games."""
    return sorted(file.stem for file in SUBSETS_FOLDER.glob("*.txt"))


def read_subset(name: str) -> list[str]:
    """The games of a named subset, in its own order. Raises InputError for an unknown name.

    platformers-200: the first 200 platformers in alphabetical order. platformers-50: 50 platformers whose right, left,
    up, down and jump do the same, drawn by the hash of their names (section 3 of the paper).
    """
    if name not in subsets():
        raise InputError(f"no subset is called {name!r}: there are {', '.join(subsets())}")
    lines = (SUBSETS_FOLDER / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def expand(names: Iterable[str]) -> list[str]:
    """Game names with each subset's name replaced by its games, each game once, in order."""
    known = subsets()
    lists = [read_subset(name) if name in known else [name] for name in names]
    return list(dict.fromkeys(game for names in lists for game in names))


def table() -> "pd.DataFrame":
    """One row a game: game, console, playable (its ROM is imported) and the labels of `catalog.csv`.

    view (side, third person, top, first person, several), axis (free, horizontal, vertical, fixed, tube), motion
    (platformer, fight, ...), right to secondary (what each control does), transition and scrolling (yes, no), each
    "unknown" where nobody could say; confidence in [0, 1] of the row as a whole; source (knowledge, probed, watched).
    """
    import pandas as pd  # here, because processes that play games need no tables

    rows = [{"game": game, "playable": has_rom(game)} for game in integrations()]
    labels = pd.read_csv(LABELS_FILE, keep_default_na=False, dtype={"title": str})
    frame = pd.DataFrame(rows).merge(labels, on="game", how="left", validate="one_to_one")
    return frame[
        [
            "game",
            "console",
            "playable",
            *(name for name in labels if name not in ("game", "console")),
        ]
    ]


@cache
def integrations() -> tuple[str, ...]:
    """Names of stable-retro's stable integrations, whether their ROM is there or not, without "-v0"."""
    names = stable_retro.data.list_games(stable_retro.data.Integrations.STABLE)
    return tuple(sorted(name.removesuffix("-v0") for name in names))


def console_of(game: str) -> str:
    """The console in a game's name: "Airstriker-Genesis" -> "Genesis"."""
    return canonical(game).rsplit("-", 1)[-1]


def canonical(game: str) -> str:
    """A game's name without "-v0". Raises InputError with the nearest names where stable-retro has no such game."""
    name = game.removesuffix("-v0")
    if name in integrations():
        return name
    folded = {known.casefold(): known for known in integrations()}
    short = {known.rsplit("-", 1)[0].casefold(): known for known in integrations()}
    wanted = name.casefold()
    near = [short[wanted]] if wanted in short else []
    near += [folded[match] for match in difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)]
    near += [short[match] for match in difflib.get_close_matches(wanted, short, n=3, cutoff=0.7)]
    hint = (
        f"did you mean {', '.join(dict.fromkeys(near))}?"
        if near
        else "see `autoexplore catalog` for all names"
    )
    raise InputError(f"no game is called {game!r}: {hint}")


def folder(game: str) -> Path:
    """Where stable-retro keeps a game's ROM, savestates and description."""
    name = canonical(game)
    root = Path(stable_retro.data.path()) / "stable"
    versioned = root / f"{name}-v0"
    return versioned if versioned.is_dir() else root / name


def rom_path(game: str) -> Path | None:
    """The game's ROM file, or None where it is not imported."""
    # os.listdir once a game: stable-retro's own search asks the file system twenty times, too slow for 1,006 games.
    place = folder(game)
    names = set(os.listdir(place))
    metadata = place / "metadata.json"
    if "metadata.json" in names and "original_rom_name" in (text := metadata.read_text()):
        original = json.loads(text)["original_rom_name"]
        if original in names:
            return place / original
    for extension in stable_retro.data.EMU_EXTENSIONS:
        if f"rom{extension}" in names:
            return place / f"rom{extension}"
    return None


def has_rom(game: str) -> bool:
    """Whether the game can be played here."""
    return rom_path(game) is not None


def states(game: str) -> list[str]:
    """Names of the game's savestates."""
    return sorted(
        file.stem for file in folder(game).glob("*.state") if not file.name.startswith("_")
    )
