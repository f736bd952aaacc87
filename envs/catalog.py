"""Every game that stable-retro knows: its console, whether its ROM is here, and what kind of game it is.

The labels stand in `catalog.csv`, one row a game: two annotators' own knowledge of each game, without any published
label set. Where they differed on the motion style the case was decided one by one, elsewhere the surer of the two holds
and the confidence is the lower one. `unknown` means that neither could say.
"""

import difflib
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import stable_retro.data

from envs.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

LABELS_FILE = Path(__file__).with_name("catalog.csv")


def games(
    console: str | None = None,
    view: str | None = None,
    axis: str | None = None,
    motion: str | None = None,
    playable: bool | None = None,
    limit: int | None = None,
) -> list[str]:
    """Names of the games that match every given value, in alphabetical order, without the "-v0" ending.

    `playable` asks for games with (True) or without (False) a ROM; `limit` cuts the list.
    Labels are those of `table`, e.g. motion="platformer", view="side". Raises InputError for a console or label that no
    game has.
    """
    rows = table()
    for column, wanted in (("console", console), ("view", view), ("axis", axis), ("motion", motion)):
        if wanted is not None:
            known = sorted(rows[column].unique())
            if wanted not in known:
                raise InputError(f"no game has {column} {wanted!r}: known are {', '.join(known)}")
            rows = rows[rows[column] == wanted]
    if playable is not None:
        rows = rows[rows["playable"] == playable]
    return list(rows["game"][:limit])


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
    return frame[["game", "console", "playable", *(name for name in labels if name not in ("game", "console"))]]


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
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "see `autoexplore catalog` for all names"
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
    return sorted(file.stem for file in folder(game).glob("*.state") if not file.name.startswith("_"))
