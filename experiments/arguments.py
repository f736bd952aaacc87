"""What the commands share: their common flags, and checks of what a person typed."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from envs.utils.errors import InputError

Preset = Literal["debug", "cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class RayArgs:
    """The flag of every command that starts Ray."""

    ray_address: str | None = None
    """Cluster to run on, e.g. ray://head:10001 or auto. Default: RAY_ADDRESS if set (as under `ray job submit`),
    otherwise a local session of this machine alone."""


@dataclass(frozen=True, kw_only=True)
class RunArgs(RayArgs):
    """The flags of every command that takes long and can be continued."""

    resume: bool = False
    """Continue the run that is in --out."""
    seed: int = 0
    """The same seed gives the same run."""


@dataclass(frozen=True, kw_only=True)
class GameArgs:
    """The games of a command that plays many: by name, by subset, or asked of the catalogue."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, e.g. Airstriker-Genesis; a subset's name, e.g. platformers-50; or Counting, Corridor, NoisyTV, which need
    no ROM. With none, the flags below choose among the games whose ROM is here."""
    console: tuple[str, ...] = ()
    """Only games of these consoles, e.g. Atari2600."""
    view: tuple[str, ...] = ()
    """Only games seen this way, e.g. side."""
    axis: tuple[str, ...] = ()
    """Only games controlled along this axis, e.g. free."""
    motion: tuple[str, ...] = ()
    """Only games of this motion style, e.g. platformer."""
    limit: int | None = None
    """At most this many games."""

    def chosen(self) -> list[str]:
        """The games, checked: `check_games` of the named ones that match, or of all that match and can be played.

        Raises InputError where none is left.
        """
        from envs import catalog

        query: dict[str, Any] = {name: getattr(self, name) or None for name in ("console", "view", "axis", "motion")}
        if not any(query.values()) and (self.games or self.limit is None):
            return check_games(self.games)[: self.limit]
        found = catalog.games(**query, playable=None if self.games else True)
        if self.games:
            named = catalog.expand(self.games)
            found = [game for game in check_games(named) if game in found]
        if not found[: self.limit]:
            raise InputError("no game that can be played here matches: see `autoexplore catalog --playable`")
        return found[: self.limit]


def check_games(games: Sequence[str]) -> list[str]:
    """The games' canonical names, in order, each once; a subset's name stands for its games.

    Raises InputError for an unknown game or a missing ROM.

    Asked before anything starts, so that a run does not stop at its third game after an hour.
    """
    from envs import builtin_name, catalog

    if not games:
        raise InputError("no game given: name one or more, e.g. Airstriker-Genesis (autoexplore catalog lists them)")
    checked = []
    for game in catalog.expand(games):
        name = builtin_name(game)
        if name is None:
            name = catalog.canonical(game)
            if not catalog.has_rom(name):
                raise InputError(
                    f"no ROM for {name}: import it with `python -m envs.roms FOLDER`, 32 Atari games without a FOLDER"
                )
        checked.append(name)
    return list(dict.fromkeys(checked))


def check_folder(path: Path, what: str, made_by: str) -> Path:
    """`path` if it exists. Raises InputError that says which command makes it."""
    if not path.exists():
        raise InputError(f"{what} {path} does not exist: make it with `autoexplore {made_by}`, or give another path")
    return path


def default_threads() -> int:
    """Threads for torch in this process: OMP_NUM_THREADS where it is set, otherwise the cores that it may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def free_bytes(path: Path) -> int:
    """Free space of the file system that `path`, or its nearest existing parent, is on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
