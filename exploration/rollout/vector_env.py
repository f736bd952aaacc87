"""Vectorised games, one process each, because an emulator core keeps global state.

Loads neither torch nor Ray.

The processes come from a fork server that has loaded the emulator once, so that another one costs a
fork.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv

import envs
from envs.controls import ACTIONS
from envs.utils.errors import InputError

FRAME_SIZE = 64
PRELOADED = [
    "envs.games.retro",
    "gymnasium.vector.async_vector_env",
    "exploration.rollout.vector_env",
]
CLOSE_SECONDS = 2.0
STEP_SECONDS = 60.0
"""Longest step or reset of all games, after which one of them counts as hung."""


def spaces() -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    """Return the observation space and the action space of every game."""
    return gymnasium.spaces.Box(
        0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8
    ), gymnasium.spaces.Discrete(len(ACTIONS))


def games_of_runner(games: Sequence[str], runner: int, envs_per_runner: int) -> list[str]:
    """Assign games to the envs of one runner, counted from 0: all envs of all runners get them in
    turn."""
    first = runner * envs_per_runner
    return [games[(first + place) % len(games)] for place in range(envs_per_runner)]


def check_env_slots(games: Sequence[str], runners: int, envs_per_runner: int) -> None:
    """Raise InputError where a game would get no env."""
    places = max(runners, 1) * envs_per_runner
    if not games:
        raise InputError("no game to explore: name one or more")
    if places < len(games):
        raise InputError(
            f"{len(games)} games need as many envs, not {places}: "
            "raise --runners or --envs-per-runner"
        )


class _Spaces(gymnasium.Env[Any, Any]):
    """Spaces without a game, which AsyncVectorEnv needs in the parent process."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces()


class GameFactory:
    """Factory of a game's env; in the process that made the factory it makes only the spaces."""

    def __init__(self, game: str, max_steps: int | None) -> None:
        self.game, self.max_steps, self._parent = game, max_steps, os.getpid()

    def __call__(self) -> gymnasium.Env[Any, Any]:
        """Make the env.

        The emulator is opened by the process that will step it, never by the parent.
        """
        if os.getpid() == self._parent:
            return _Spaces()
        return envs.make(self.game, max_steps=self.max_steps)


class TimedVectorEnv(AsyncVectorEnv):
    """AsyncVectorEnv that raises multiprocessing.TimeoutError instead of waiting for a hung game
    for ever."""

    seconds: float = STEP_SECONDS

    def step_wait(self, timeout: float | None = None) -> Any:
        return super().step_wait(self.seconds if timeout is None else timeout)

    def reset_wait(self, timeout: float | None = None) -> Any:
        return super().reset_wait(self.seconds if timeout is None else timeout)


@contextmanager
def _without_main_file() -> Iterator[None]:
    """Keep children from running the parent's main module again, which in a Ray worker loads all of
    Ray."""
    main: ModuleType = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)
    }
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def vector_env(
    games: Sequence[str], max_steps: int | None, step_seconds: float = STEP_SECONDS
) -> AsyncVectorEnv:
    """Start one env process for each entry of `games`. An episode is truncated after `max_steps`.

    A game that has not answered a step after `step_seconds` is an error, after which the processes
    must be closed.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with _without_main_file():
        env = TimedVectorEnv([GameFactory(game, max_steps) for game in games], context="forkserver")
    env.seconds = step_seconds
    return env


def close_vector_env(env: Any) -> None:
    """End the processes of a vector env, also one whose processes were killed in the middle of a
    step."""
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
