"""Flags and checks that the commands share."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from envs import builtin_name, catalog
from envs.games.base import EnvOptions
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import DEVICE_VARIABLE
from worldmodel.config import Device, Precision

if TYPE_CHECKING:
    from worldmodel import WorldModel

Preset = Literal["debug", "cpu", "gpu", "paper"]

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable by which Ray gives the driver of a job its settings, as JSON."""
NO_RESOURCES_VARIABLE = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Environment variable that Ray sets for the driver of a job that was submitted without resources.
"""


@dataclass(frozen=True, kw_only=True)
class RayArgs:
    """Flag of every command that starts Ray."""

    ray_address: str | None = None
    """Address of a Ray cluster, e.g. ray://head:10001 or auto. Default: RAY_ADDRESS if set (as
    under `ray job submit`), otherwise a local session."""


@dataclass(frozen=True, kw_only=True)
class DeviceArgs:
    """Flag of every command that runs a model."""

    device: Device = "auto"
    """Device of the models. auto: an NVIDIA GPU if there is one, else the CPU. With cpu the command
    sees no GPU, and requests none of a Ray cluster."""

    def use_device(self) -> None:
        """Hide the GPUs for cpu. Raises InputError for a device that this machine lacks."""
        if self.device == "cpu":
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", DEVICE_VARIABLE: "cpu"}
        elif self.device != "auto":
            from worldmodel.devices import resolve_device  # imports torch

            resolve_device(self.device)


@dataclass(frozen=True, kw_only=True)
class PrecisionArgs(DeviceArgs):
    """Flags of every command that runs world models and has no preset with a precision."""

    precision: Precision = "auto"
    """Precision of the model's passes: bf16 (autocast), fp32, or auto: bf16 on NVIDIA GPUs since
    Ampere, else fp32. Training in studies and `reproduce` has the preset's with auto, and `report`
    the precision of its run."""


@dataclass(frozen=True, kw_only=True)
class ModelDeviceArgs(PrecisionArgs):
    """Flags of a command that runs one world model in its own process."""

    cuda_graphs: bool = False
    """Replay the passes of few films or windows as CUDA graphs, on NVIDIA GPUs. Experimental."""

    @property
    def compiles(self) -> bool | None:
        """Argument `compile` of `load_world_model`: None compiles on NVIDIA GPUs."""
        return None

    def load_model(self, path: Path) -> "WorldModel":
        """Return the world model in a folder, as the flags say."""
        from worldmodel import load_world_model  # imports torch

        model = load_world_model(path, self.device, self.precision, compile=self.compiles)
        return model.use_cuda_graphs() if self.cuda_graphs else model


@dataclass(frozen=True, kw_only=True)
class CompiledModelArgs(ModelDeviceArgs):
    """Flags of a command that runs a model for so long that it compiles it first."""

    eager: bool = False
    """Do not compile the model on an NVIDIA GPU, which may take a minute."""

    @property
    def compiles(self) -> bool | None:
        """False with --eager."""
        return False if self.eager else None


@dataclass(frozen=True, kw_only=True)
class RunArgs(RayArgs):
    """Flags of every long command that can be resumed."""

    resume: bool = False
    """Continue the run in --out."""
    seed: int = 0
    """Random seed of the run."""


@dataclass(frozen=True, kw_only=True)
class EnvOptionArgs:
    """Flag of every command that plays games with options."""

    env_options: tuple[str, ...] = ()
    """Options of CoinRun as name=value: levels=200 and start_level=0 (of its 2^31 levels, those to
    play in; all if left out), velocity=painted (squares that agents see and no episode keeps),
    difficulty=hard."""

    def parse_options(self, games: Sequence[str]) -> EnvOptions:
        """Return the options. Raises InputError for one that the games do not have."""
        from envs.games.options import parse_env_options

        return parse_env_options(self.env_options, games)


@dataclass(frozen=True, kw_only=True)
class ConfigArgs:
    """Flag of every command with a preset."""

    config: Path | None = None
    """YAML or JSON file of settings that override the preset's, e.g. the config.json of a run."""


@dataclass(frozen=True, kw_only=True)
class GenerationArgs(ModelDeviceArgs):
    """Flags of a command that generates frames after those of a recorded episode."""

    model: tyro.conf.Positional[Path]
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    data: Path
    """Episode folder."""
    start: int = 0
    """Index of the first given frame of the episode, from 0."""
    temperature: float = 1.0
    """Sampling temperature, 0 or more; it has an effect with two MaskGIT steps or more."""
    upscaler: Path | None = None
    """Run folder of `train upscaler`, to enlarge the frames four times."""
    seed: int = 0
    """Random seed of the sampling."""
    compile: bool = False
    """Compile the model on an NVIDIA GPU, which may take a minute: only long films repay it."""

    @property
    def compiles(self) -> bool | None:
        """False without --compile."""
        return None if self.compile else False

    def check_folders(self) -> None:
        """Raise InputError for a folder that does not exist."""
        check_model(self.model)
        check_data([self.data])
        if self.upscaler is not None:
            check_folder(self.upscaler, "upscaler", "train upscaler")


@dataclass(frozen=True, kw_only=True)
class GameArgs:
    """Games of a command that plays many: names, subsets, or a query of the catalogue."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, e.g. Airstriker-Genesis; a subset, e.g. platformers-50; or Counting, Corridor,
    NoisyTV, which need no ROM. Without names, the flags below select among the games whose ROM is
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
    """Maximum number of games. Default: all."""

    def select(self) -> list[str]:
        """Return the checked games: the named ones that match, or all that match and can be played.

        Raises InputError if none is left.
        """
        query: dict[str, Any] = {
            name: getattr(self, name) or None for name in ("console", "view", "axis", "motion")
        }
        if not any(query.values()) and (self.games or self.limit is None):
            return check_games(self.games)[: self.limit]
        matching = catalog.games(**query, playable=None if self.games else True)
        if self.games:
            matching = [game for game in check_games(self.games) if game in matching]
        if not matching[: self.limit]:
            raise InputError(
                "no game that can be played here matches: see `autoexplore catalog --playable`"
            )
        return matching[: self.limit]


def check_games(games: Sequence[str], *, partial: bool = False, roms: bool = True) -> list[str]:
    """Return the canonical names of games and of the games of subsets, in order and without
    repeats.

    partial: accept games without a ROM if at least one game can be played; roms False: accept any.
    Raises InputError for an unknown game or a missing ROM.
    """
    if not games:
        raise InputError(
            "no game given: name one or more, e.g. Airstriker-Genesis "
            "(autoexplore catalog lists them)"
        )
    checked = [builtin_name(game) or catalog.canonical(game) for game in catalog.expand(games)]
    missing = [game for game in checked if not builtin_name(game) and not catalog.has_rom(game)]
    if roms and missing and not (partial and len(missing) < len(checked)):
        raise InputError(
            f"no ROM for {missing[0]}: import it with `python -m envs.roms FOLDER`, "
            "32 Atari games without a FOLDER"
        )
    return list(dict.fromkeys(checked))


def playable_games(games: Sequence[str], flag: str, *, roms: bool = True) -> tuple[str, ...]:
    """Return those of the games, and of the games of subsets, that have a ROM, and print how many.

    roms False: return all. Raises InputError for an unknown game, or if none has a ROM.
    """
    if not games or not roms:
        return tuple(check_games(games, roms=False)) if games else ()
    named = check_games(games, roms=False)
    found = tuple(game for game in named if builtin_name(game) or catalog.has_rom(game))
    if not found:
        raise InputError(
            f"{flag} {' '.join(games)}: none of these {len(named)} games has a ROM here: import "
            f"them with `python -m envs.roms FOLDER`, or give {flag} without games to go without"
        )
    if len(found) < len(named):
        console.print(f"{flag}: {len(found)} of {len(named)} games have a ROM here")
    return found


def check_folder(path: Path, what: str, made_by: str) -> Path:
    """Return `path` if it exists. Raises InputError that names the command which creates it."""
    if not path.exists():
        raise InputError(
            f"{what} {path} does not exist: make it with `autoexplore {made_by}`, "
            "or give another path"
        )
    return path


def check_model(path: Path) -> None:
    """Raise InputError if there is no world model."""
    check_folder(path, "world model", "pipeline")


def check_data(folders: Iterable[Path | str]) -> None:
    """Raise InputError for a local episode folder that does not exist."""
    from envs.utils.storage import is_remote  # imports pyarrow

    for folder in folders:
        if not is_remote(folder):
            check_folder(Path(folder), "data folder", "collect")


def check_new_data(out: str | Path, *, resume: bool) -> None:
    """Raise InputError if `out` already holds episodes and the run is not resumed."""
    from envs.episodes import manifest  # imports pyarrow
    from envs.utils.storage import parse_uri

    if not resume and (parse_uri(out) / manifest.NAME).exists():
        raise InputError(
            f"{out} already holds episodes: --resume completes the set, "
            "another --out begins a new one"
        )


def check_at_least(least: float, **values: float | None) -> None:
    """Raise InputError for the first flag below `least`; None is not checked."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {least:g} or more")


def default_threads() -> int:
    """Return OMP_NUM_THREADS if you set it, otherwise the number of cores this process may use."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0 and not _threads_are_rays():
        return int(threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads_are_rays() -> bool:
    """Return True if OMP_NUM_THREADS is the 1 that Ray gives the driver of a job, not your value.

    You chose it if it is in the job's runtime environment, if it is not 1, or if the job was
    submitted with resources: Ray then sets the number of `--entrypoint-num-cpus`.
    """
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}")
    yours = job.get("runtime_env", {}).get("env_vars", {})
    return (
        bool(job)
        and os.environ.get("OMP_NUM_THREADS") == "1"
        and "OMP_NUM_THREADS" not in yours
        and NO_RESOURCES_VARIABLE in os.environ
    )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system of `path` or of its nearest existing parent."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
