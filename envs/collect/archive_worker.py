"""The Ray actor that plays on from archived moments and reports new ones. Loads no torch."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.archive.archive import Cell
from envs.archive.cells import CellGrid
from envs.collect.worker import CollectWorker, EpisodeKey, EpisodeResult, play_episode
from envs.episodes.shards import write_shard

WINDOW_FRAMES = 5
"""Frames that a reward model scores; the last of them is the moment itself."""
Window = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class ArchiveTask:
    """An episode that begins at a cell, or at the start of its game."""

    key: EpisodeKey
    grid: CellGrid
    start: Cell | None = None

    @property
    def game(self) -> str:
        """Name of the game."""
        return self.key.game

    @property
    def id(self) -> str:
        """Session id."""
        return self.key.id

    @property
    def episode(self) -> int:
        """Number of the episode."""
        return self.key.episode


@dataclass(frozen=True, eq=False)
class Moment:
    """First moment of an episode in a cell."""

    key: bytes
    """Key of the cell."""
    cell: Cell
    window: Window | None
    """The last five frames and the actions between them; None earlier in the episode."""


@dataclass(frozen=True)
class ArchiveResult(EpisodeResult):
    """Report about an episode with its moments, in the order in which they were reached."""

    moments: tuple[Moment, ...] = ()


class ArchiveWorker(CollectWorker):
    """Ray actor that plays episodes from cells and writes their shards."""

    def play(self, task: ArchiveTask) -> ArchiveResult:  # type: ignore[override]
        """Play one episode. Its shard is completely on disk when this returns.

        The episode holds the frames from its own start on. Its info has the `path` of actions, in
        hexadecimal, that leads there, and the `start_seed` of the reset before it.
        """
        started = time.process_time()
        self._policy = self._policy or self._build_policy()
        env: Any = self._open(task.game, actions=task.key.actions, **dict(task.key.options))
        path, start_seed, reward = b"", task.key.start_seed, 0.0
        if task.start is not None:
            path, start_seed, reward = task.start.path, task.start.start_seed, task.start.reward
        moments: dict[bytes, Moment] = {}

        def note_moment(
            frames: list[NDArray[np.uint8]], actions: list[int], rewards: list[float]
        ) -> None:
            cell = task.grid.key(frames[-1])
            if cell in moments:
                return
            window: Window | None = None
            if len(frames) >= WINDOW_FRAMES:
                newest = env.unwrapped.hide_aids(np.stack(frames[-WINDOW_FRAMES:]))
                window = newest, np.array(actions[1 - WINDOW_FRAMES :], np.int64)
            found = Cell(
                env.unwrapped.state(), path + bytes(actions), start_seed, reward + sum(rewards)
            )
            moments[cell] = Moment(cell, found, window)

        episode = play_episode(
            env,
            self._policy,
            task.key,
            steps=self._steps,
            start=None if task.start is None else task.start.state,
            on_step=note_moment,
            info={"path": path.hex(), "start_seed": start_seed},
        )
        shard = write_shard(self._root, [episode.encode()], task.id)
        seconds = time.process_time() - started
        return ArchiveResult(shard, seconds, tuple(moments.values()))
