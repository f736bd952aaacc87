"""Vectorised games, one process each, because an emulator core has global state.

The processes are forked from a server that has loaded the emulator but neither torch nor Ray.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv

import envs
from envs.archive.starts import ArchiveStarts
from envs.games.base import EnvOptions
from envs.games.random_starts import RandomStarts
from envs.utils.errors import InputError

FRAME_SIZE = 64
PRELOADED = [
    "envs.games.retro",
    "gymnasium.vector.async_vector_env",
    "exploration.rollout.vector_env",
]
CLOSE_SECONDS = 2.0
STEP_SECONDS = 60.0
"""Duration of a step or reset of all games after which one of them counts as hung."""


def spaces(
    games: Sequence[str] = (), actions: Sequence[str] = ()
) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    """Return the observation space and the action space of games, which share their actions."""
    frames = gymnasium.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    return frames, gymnasium.spaces.Discrete(len(envs.action_names(games, actions)))


def games_of_runner(games: Sequence[str], runner: int, envs_per_runner: int) -> list[str]:
    """Return the games of a runner's envs; the envs of runners 0, 1, ... get all games in turn."""
    first = runner * envs_per_runner
    return [games[(first + index) % len(games)] for index in range(envs_per_runner)]


def check_env_slots(games: Sequence[str], runners: int, envs_per_runner: int) -> None:
    """Raise InputError unless every game gets an env."""
    slots = max(runners, 1) * envs_per_runner
    if not games:
        raise InputError("no game to explore: name one or more")
    if slots < len(games):
        raise InputError(
            f"{len(games)} games need as many envs, not {slots}: raise --runners or "
            "--envs-per-runner"
        )


class _SpacesOnly(gymnasium.Env[Any, Any]):
    """Env without a game, from which AsyncVectorEnv reads the spaces in the parent process."""

    def __init__(self, game: str, actions: Sequence[str]) -> None:
        self.observation_space, self.action_space = spaces([game], actions)


@dataclass(frozen=True)
class Starts:
    """Beginnings of the episodes of an env."""

    random_steps: int = 0
    """Largest number of uniformly random steps before the first frame, see `RandomStarts`."""
    archive: Path | None = None
    """Folder of archives from whose cells episodes begin, see `ArchiveStarts`."""
    archive_share: float = 0.0
    """Share of these episodes."""


FROM_THE_START = Starts()


class GameFactory:
    """Factory of a game's env; in the process that created the factory it makes only the spaces."""

    def __init__(
        self,
        game: str,
        max_steps: int | None,
        starts: Starts,
        actions: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:
        self.game, self.max_steps, self.starts, self.actions = game, max_steps, starts, actions
        self.options = options
        self._parent = os.getpid()

    def __call__(self) -> gymnasium.Env[Any, Any]:
        """Make the env. The parent process must never open an emulator."""
        if os.getpid() == self._parent:
            return _SpacesOnly(self.game, self.actions)
        starts = self.starts
        env = envs.make(self.game, max_steps=self.max_steps, actions=self.actions, **self.options)
        if starts.archive is not None:
            env = ArchiveStarts(env, starts.archive, starts.archive_share)
        return RandomStarts(env, starts.random_steps)


class TimedVectorEnv(AsyncVectorEnv):
    """AsyncVectorEnv that raises multiprocessing.TimeoutError for a hung game."""

    seconds: float = STEP_SECONDS

    def step_wait(self, timeout: float | None = None) -> Any:
        """Wait for all games, at most `seconds`."""
        return super().step_wait(self.seconds if timeout is None else timeout)

    def reset_wait(self, timeout: float | None = None) -> Any:
        """Wait for all games, at most `seconds`."""
        return super().reset_wait(self.seconds if timeout is None else timeout)


@contextmanager
def _without_main_file() -> Iterator[None]:
    """Prevent children from importing the parent's main module, in a Ray worker all of Ray."""
    main = sys.modules["__main__"]
    names: list[str] = [name for name in ("__file__", "__spec__") if name in vars(main)]
    hidden = {name: vars(main).pop(name) for name in names}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def vector_env(
    games: Sequence[str],
    max_steps: int | None,
    step_seconds: float = STEP_SECONDS,
    *,
    starts: Starts = FROM_THE_START,
    actions: Sequence[str] = (),
    options: EnvOptions = (),
) -> AsyncVectorEnv:
    """Start an env process for each entry of `games`; episodes are truncated after `max_steps`.

    `actions`: names of other actions than the games' own. `options`: those of `envs.make`.
    A step that takes longer than `step_seconds` raises an error; close the env after it.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with _without_main_file():
        factories = [GameFactory(game, max_steps, starts, actions, dict(options)) for game in games]
        env = TimedVectorEnv(factories, context="forkserver")
    env.seconds = step_seconds
    return env


def close_vector_env(env: Any) -> None:
    """Terminate the processes of a vector env, also if some were killed during a step."""
    vector = env.unwrapped
    if not isinstance(vector, AsyncVectorEnv):
        vector.close()
        return
    for process in vector.processes:
        process.terminate()
    for process in vector.processes:
        process.join(CLOSE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in vector.parent_pipes:
        pipe.close()
    vector.closed = True
