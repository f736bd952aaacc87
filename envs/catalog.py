"""The catalogue of all games that stable-retro knows: console, ROM and labels.

The labels are in `catalog.csv`, one row per game. Two annotators labelled every game from their own
knowledge, without a published label set. Different motion styles were resolved one by one; for
other labels the more confident annotator decides and the lower confidence is kept. `unknown` means
that neither annotator knew.
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
    *("platformer", "space_shooter", "fight", "shooter", "action", "sport", "maze", "race"),
    *("grid", "pong", "simulation", "pinball", "flying_platformer", "tetris", "other"),
)
CONTROLS = ("right", "left", "up", "down", "jump", "secondary")

Choice = str | Sequence[str] | None
"""One label, several alternative labels, or any."""


def games(
    console: Choice = None,
    view: Choice = None,
    axis: Choice = None,
    motion: Choice = None,
    playable: bool | None = None,
    limit: int | None = None,
    *,
    subset: str | None = None,
    min_confidence: float = 0.0,
    **labels: Choice,
) -> list[str]:
    """Return the names of the games that match every given value, sorted and without "-v0".

    A value is one label or several alternatives, e.g. motion="platformer". `labels` are values of
    other columns of `table`, e.g. up=("climb", "none"). `playable` selects games with (True) or
    without (False) a ROM, `subset` the games of a named list (`subsets`), `min_confidence` in
    [0, 1] labels of at least this confidence; `limit` cuts the list.

    Raises: InputError for a value that no game has, an unknown subset, or a number out of range.
    """
    if not 0 <= min_confidence <= 1 or (limit is not None and limit < 0):
        raise InputError(
            f"min_confidence {min_confidence} must be in [0, 1] and limit {limit} 0 or more"
        )
    rows = all_rows = table()
    columns = {"console": console, "view": view, "axis": axis, "motion": motion, **labels}
    for column, choice in columns.items():
        if choice is None:
            continue
        values = {choice} if isinstance(choice, str) else set(choice)
        known = sorted(all_rows[column].unique())
        if unknown := sorted(values - set(known)):
            raise InputError(f"no game has {column} {unknown[0]!r}: known are {', '.join(known)}")
        rows = rows[rows[column].isin(values)]
    if subset is not None:
        rows = rows[rows["game"].isin(read_subset(subset))]
    if playable is not None:
        rows = rows[rows["playable"] == playable]
    return list(rows["game"][rows["confidence"] >= min_confidence][:limit])


def subsets() -> list[str]:
    """Return the names of the fixed lists of games."""
    return sorted(file.stem for file in SUBSETS_FOLDER.glob("*.txt"))


def read_subset(name: str) -> list[str]:
    """Return the games of a named subset in the order of its file.

    platformers-200: the first 200 platformers in alphabetical order. platformers-50: 50 platformers
    whose right, left, up, down and jump act alike, selected by the hash of their names (section 3
    of the paper).

    Raises: InputError for an unknown name.
    """
    if name not in subsets():
        raise InputError(f"no subset is called {name!r}: known are {', '.join(subsets())}")
    lines = (SUBSETS_FOLDER / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def expand(names: Iterable[str]) -> list[str]:
    """Return game names with each subset replaced by its games, in order and without repeats."""
    known = subsets()
    lists = [read_subset(name) if name in known else [name] for name in names]
    return list(dict.fromkeys(game for names in lists for game in names))


def table() -> "pd.DataFrame":
    """Return one row per game: game, console, playable (its ROM is imported) and labels.

    The labels are the columns of `catalog.csv`: view (`VIEWS`), axis (`AXES`), motion (`MOTIONS`),
    right to secondary (the effect of each control), transition and scrolling (yes, no), each
    "unknown" if no annotator knew; confidence in [0, 1] of the whole row; source (knowledge,
    probed, watched).
    """
    import pandas as pd  # here, because processes that play games need no tables

    rows = [{"game": game, "playable": has_rom(game)} for game in integrations()]
    labels = pd.read_csv(LABELS_FILE, keep_default_na=False, dtype={"title": str})
    frame = pd.DataFrame(rows).merge(labels, on="game", how="left", validate="one_to_one")
    first = ["game", "console", "playable"]
    return frame[[*first, *(name for name in labels if name not in first)]]


@cache
def integrations() -> tuple[str, ...]:
    """Return stable-retro's stable integrations, with or without a ROM, without "-v0"."""
    names = stable_retro.data.list_games(stable_retro.data.Integrations.STABLE)
    return tuple(sorted(name.removesuffix("-v0") for name in names))


def console_of(game: str) -> str:
    """Return the console in a game's name: "Airstriker-Genesis" -> "Genesis"."""
    return canonical(game).rsplit("-", 1)[-1]


def canonical(game: str) -> str:
    """Return a game's name without "-v0".

    Raises: InputError with the closest names if stable-retro has no such game.
    """
    name = game.removesuffix("-v0")
    if name in integrations():
        return name
    name = name.casefold()
    full = {known.casefold(): known for known in integrations()}
    short = {known.rsplit("-", 1)[0].casefold(): known for known in integrations()}
    near = [short[name]] if name in short else []
    near += [full[match] for match in difflib.get_close_matches(name, full, n=3, cutoff=0.5)]
    near += [short[match] for match in difflib.get_close_matches(name, short, n=3, cutoff=0.7)]
    hint = "see `autoexplore catalog` for all names"
    if near:
        hint = f"did you mean {', '.join(dict.fromkeys(near))}?"
    raise InputError(f"no game is called {game!r}: {hint}")


def folder(game: str) -> Path:
    """Return the folder of a game's ROM, savestates and description in stable-retro."""
    name = canonical(game)
    root = Path(stable_retro.data.path()) / "stable"
    versioned = root / f"{name}-v0"
    return versioned if versioned.is_dir() else root / name


def rom_path(game: str) -> Path | None:
    """Return the game's ROM file, or None if it is not imported."""
    # One os.listdir per game: stable-retro's own search accesses the file system twenty times,
    # which is too slow for 1,006 games.
    home = folder(game)
    names = set(os.listdir(home))
    metadata = home / "metadata.json"
    if "metadata.json" in names and "original_rom_name" in (text := metadata.read_text()):
        original = json.loads(text)["original_rom_name"]
        if original in names:
            return home / original
    for extension in stable_retro.data.EMU_EXTENSIONS:
        if f"rom{extension}" in names:
            return home / f"rom{extension}"
    return None


def has_rom(game: str) -> bool:
    """Return True if the game can be played on this machine."""
    return rom_path(game) is not None


def states(game: str) -> list[str]:
    """Return the names of the game's savestates, sorted."""
    return sorted(
        file.stem for file in folder(game).glob("*.state") if not file.name.startswith("_")
    )
