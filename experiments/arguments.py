"""Flags and checks that the commands share."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from envs import builtin_name, catalog
from envs.utils.errors import InputError

Preset = Literal["debug", "cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class RayArgs:
    """The flag of every command that starts Ray."""

    ray_address: str | None = None
    """Ray cluster, e.g. ray://head:10001 or auto. Default: RAY_ADDRESS if set (as under `ray job
    submit`), otherwise a local session."""


@dataclass(frozen=True, kw_only=True)
class RunArgs(RayArgs):
    """The flags of every long command that can be resumed."""

    resume: bool = False
    """Continue the run in --out."""
    seed: int = 0
    """Random seed of the run."""


@dataclass(frozen=True, kw_only=True)
class GenerationArgs:
    """The flags of a command that generates frames after those of a recorded episode."""

    model: tyro.conf.Positional[Path]
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    data: Path
    """Episode folder."""
    start: int = 0
    """First given frame of the episode."""
    temperature: float = 1.0
    """Sampling temperature; it has an effect with two MaskGIT steps or more."""
    upscaler: Path | None = None
    """Run folder of `train upscaler`, to show frames four times as large."""
    seed: int = 0
    """Random seed of the sampling."""

    def check_folders(self) -> None:
        """Raise InputError for a folder that does not exist."""
        check_folder(self.model, "world model", "pipeline")
        check_folder(self.data, "data folder", "collect")
        if self.upscaler is not None:
            check_folder(self.upscaler, "upscaler", "train upscaler")


@dataclass(frozen=True, kw_only=True)
class GameArgs:
    """The games of a command that plays many: by name, by subset, or by a query of the
    catalogue."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, e.g. Airstriker-Genesis; a subset, e.g. platformers-50; or Counting, Corridor,
    NoisyTV, which need no ROM. Without names, the flags below choose among the games whose ROM is
    installed."""
    console: tuple[str, ...] = ()
    """Only games of these consoles, e.g. Atari2600."""
    view: tuple[str, ...] = ()
    """Only games with this view, e.g. side."""
    axis: tuple[str, ...] = ()
    """Only games controlled along this axis, e.g. free."""
    motion: tuple[str, ...] = ()
    """Only games of this motion style, e.g. platformer."""
    limit: int | None = None
    """Maximum number of games."""

    def chosen(self) -> list[str]:
        """Return the checked games: the named ones that match, or all that match and can be played.

        Raises InputError where none is left.
        """
        query: dict[str, Any] = {
            name: getattr(self, name) or None for name in ("console", "view", "axis", "motion")
        }
        if not any(query.values()) and (self.games or self.limit is None):
            return check_games(self.games)[: self.limit]
        found = catalog.games(**query, playable=None if self.games else True)
        if self.games:
            named = catalog.expand(self.games)
            found = [game for game in check_games(named) if game in found]
        if not found[: self.limit]:
            raise InputError(
                "no game that can be played here matches: see `autoexplore catalog --playable`"
            )
        return found[: self.limit]


def check_games(games: Sequence[str], *, partial: bool = False) -> list[str]:
    """Return the canonical names of the games, in order, each once; a subset stands for its games.

    partial: accept games without a ROM as long as one game can be played. Raises InputError for an
    unknown game or a missing ROM, before anything starts: a run must not stop at its third game.
    """
    if not games:
        raise InputError(
            "no game given: name one or more, e.g. Airstriker-Genesis "
            "(autoexplore catalog lists them)"
        )
    checked = [builtin_name(game) or catalog.canonical(game) for game in catalog.expand(games)]
    missing = [game for game in checked if not builtin_name(game) and not catalog.has_rom(game)]
    if missing and not (partial and len(missing) < len(checked)):
        raise InputError(
            f"no ROM for {missing[0]}: import it with `python -m envs.roms FOLDER`, "
            "32 Atari games without a FOLDER"
        )
    return list(dict.fromkeys(checked))


def check_folder(path: Path, what: str, made_by: str) -> Path:
    """Return `path` if it exists. Raises InputError that names the command which makes it."""
    if not path.exists():
        raise InputError(
            f"{what} {path} does not exist: make it with `autoexplore {made_by}`, "
            "or give another path"
        )
    return path


def check_at_least(least: float, **values: float | None) -> None:
    """Raise InputError for the first flag below `least`; None is not checked."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {least:g} or more")


def default_threads() -> int:
    """Return OMP_NUM_THREADS if set, otherwise the number of cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system of `path` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
