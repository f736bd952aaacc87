"""What the commands share: their common flags, one Ray session, and checks of what a person typed."""

import logging
import os
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from envs.errors import InputError

Preset = Literal["debug", "cpu", "paper"]
LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 400_000_000


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


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """One Ray session for the whole command; joins the running one where the process already has one.

    A local session counts more logical CPUs than the machine may have: emulators, a learner and a scorer that wait for
    each other share two cores well, and Ray would otherwise refuse to start them.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    prepare_ray_environment(local=address == "local")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet_ray()
    try:
        if address == "local":
            with held_output(drop="Set ray log level"):
                ray.init(
                    address="local",
                    num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        if address == "local":
            raise
        raise InputError(
            f"--ray-address {address}: no Ray cluster answers there ({error}); start one or leave it out"
        ) from None
    try:
        yield
    finally:
        # Ray reports calls to Serve's controller that its own shutdown cuts off, as if something had failed.
        with held_output(drop="Task ServeController."):
            serve_shutdown()
            ray.shutdown()


def prepare_ray_environment(*, local: bool) -> None:
    """Environment that Ray reads when it is imported and when it starts; what the user has set stays.

    Ray's core ports listen on all interfaces, so every session asks for a token (CVE-2023-48022). A local session
    gets a fresh one, which lives in the environment of its processes: Ray would write one to the home folder, readable
    by all.
    """
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # it counts what other programs use and kills workers for it
        # Ray's C++ part calls RLlib's restartable actors an error, though RLlib keeps what they need. `info` shows all.
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    if "ray" not in sys.modules:  # Ray reads the mode when it is imported, and turns it on itself where it is not set
        values["RAY_AUTH_MODE"] = "token"
    if local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        values["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextmanager
def held_output(drop: str) -> Iterator[None]:
    """Hold back what Python and C++ write to stdout and stderr; show it on stderr at the end, less `drop` lines."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with tempfile.TemporaryFile() as held:
        for descriptor in own:
            os.dup2(held.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in own.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            held.seek(0)
            for line in held.read().splitlines(keepends=True):
                if drop.encode() not in line:
                    os.write(2, line)


def serve_shutdown() -> None:
    """Stop Ray Serve if something started it, so that its controller does not outlive the command."""
    if "ray.serve" in sys.modules:
        from ray import serve

        serve.shutdown()


def quiet_ray() -> None:
    """Ray's own messages only from errors on: the command says itself what it does."""
    for name in ("ray", "ray.serve", "ray.train", "ray.tune", "ray.rllib", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # RLlib hands torch tensors to Gymnasium's spaces, which take them as well.
    warnings.filterwarnings("ignore", message=".*Casting input x to numpy array")


def check_games(games: Sequence[str]) -> list[str]:
    """The games' canonical names, in order, each once; a subset's name stands for its games.

    Raises InputError for an unknown game or a missing ROM.

    Asked before anything starts, so that a run does not stop at its third game after an hour.
    """
    from envs import catalog, check_builtin

    if not games:
        raise InputError("no game given: name one or more, e.g. Airstriker-Genesis (autoexplore catalog lists them)")
    checked = []
    for game in catalog.expand(games):
        name = check_builtin(game)
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
