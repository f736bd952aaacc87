"""Re-rendering of recorded episodes at another frame size: pairs for super-resolution.

Start state and actions determine every pixel of a game, so a recorded episode can be played again
at any size. Each frame is compared with the record; an emulator or ROM that diverges is refused.
"""

import dataclasses
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import envs
from envs import BUILTIN, catalog
from envs.collect.collector import playable
from envs.collect.worker import EpisodeResult, GameError
from envs.collect.worker_pool import CollectSummary, WorkerPool, episode_timeout
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.shards import write_shard
from envs.games.retro import letterbox
from envs.utils.errors import InputError
from envs.utils.progress import progress as progress_bar
from envs.utils.ray_session import ray_session
from envs.utils.storage import parse_uri


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode of the source data set, by its index in the reader."""

    game: str
    id: str
    episode: int


def rerender(
    source: str | Path,
    out: str | Path,
    *,
    size: int = 256,
    workers: int = 2,
    timeout: float | None = None,
    progress: bool = True,
) -> CollectSummary:
    """Play the episodes of `source` again and write them to `out` with frames of `size` x `size`.

    Session ids, actions, rewards and the validation split stay the same. Episodes that `out`
    already holds are not played again. A game whose ROM is missing or whose emulator keeps dying or
    hanging is reported and skipped.

    Raises: InputError for a size below 16, an unreadable source, or play that differs from the
    record.
    """
    if size < 16 or workers < 1:
        raise InputError(f"size {size} must be at least 16 and workers {workers} at least 1")
    started = time.monotonic()
    reader = EpisodeReader(source)
    names, skipped = playable(sorted(set(reader.games)))
    summary = CollectSummary()
    tasks = [
        RecordedEpisode(record.game, record.session_id, index)
        for index, record in enumerate(reader.records)
        if record.game in names
    ]
    with EpisodeWriter(out) as writer:
        writer.copy_plan(reader, {"source": reader.manifest_hash, "size": size})
        missing = [task for task in tasks if task.id not in writer.sessions]
        if missing:
            steps = max(record.num_frames for record in reader.records)
            options = (str(reader.root.resolve()), str(writer.root.resolve()), size)
            done = len(tasks) - len(missing)
            with (
                ray_session(cpus=workers),
                progress_bar("rerender", len(tasks), done, shown=progress) as bar,
            ):
                limit = timeout or episode_timeout(steps)
                pool = WorkerPool(writer, RerenderWorker, options, timeout=limit, bar=bar)
                summary = pool.play(missing, min(workers, len(missing)))
        records = list(writer.sessions.values())
    summary.skipped = skipped | summary.skipped
    summary.episodes = len(records)
    summary.frames = sum(record.num_frames for record in records)
    summary.seconds = time.monotonic() - started
    return summary


class RerenderWorker:
    """Ray actor that plays recorded episodes again and writes them at another frame size."""

    def __init__(self, source: str, out: str, size: int) -> None:
        self._source, self._out, self._size = source, parse_uri(out), size
        self._reader: EpisodeReader | None = None
        self._env: gymnasium.Env[Any, Any] | None = None
        self._opened: tuple[Any, ...] = ()

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()

    def play(self, task: RecordedEpisode) -> EpisodeResult:
        """Re-render one episode.

        Raises: GameError if its game cannot be opened, InputError if the play differs from the
        record.
        """
        started = time.process_time()
        self._reader = self._reader or EpisodeReader(self._source)
        recorded = self._reader[task.episode]
        episode = rerender_episode(self._open(recorded), recorded)
        shard = write_shard(self._out, [episode.encode()], recorded.session_id)
        return EpisodeResult(shard, time.process_time() - started)

    def _open(self, recorded: Episode) -> gymnasium.Env[Any, Any]:
        """Return an env of the episode's game and start state; the open one if it fits."""
        wanted = (recorded.game, recorded.init_state, recorded.frame_skip)
        if self._env is None or self._opened != wanted:
            if self._env is not None:
                self._env.close()
                self._env = None
            _check_rom(recorded)
            state = recorded.init_state or None
            try:
                self._env = envs.make(
                    recorded.game, frame_skip=recorded.frame_skip, state=state, size=self._size
                )
            except InputError as error:
                raise GameError(str(error)) from error
            self._opened = wanted
        return self._env


def rerender_episode(env: gymnasium.Env[Any, Any], recorded: Episode) -> Episode:
    """Return the recorded episode with the frames of `env`: its game and start state at another
    size.

    Raises: InputError if a frame, shrunk to the recorded size, or a reward differs from the record.
    """
    size = recorded.frames_THWC.shape[1]
    frames = [env.reset()[0]]
    _check_same(recorded, 0, letterbox(env.render(), size), 0.0, 0.0)  # type: ignore[arg-type]
    for step, action in enumerate(recorded.actions):
        frame_HWC, reward, *_ = env.step(np.int64(action))
        frames.append(frame_HWC)
        shrunk_HWC = letterbox(env.render(), size)  # type: ignore[arg-type]
        expected = float(recorded.rewards[step])
        _check_same(recorded, step + 1, shrunk_HWC, float(np.float32(reward)), expected)
    return dataclasses.replace(recorded, frames_THWC=np.stack(frames))


def _check_same(
    recorded: Episode, index: int, frame_HWC: Any, reward: float, recorded_reward: float
) -> None:
    same_frame = np.array_equal(frame_HWC, recorded.frames_THWC[index])
    if not same_frame or reward != recorded_reward:
        raise InputError(
            f"episode {recorded.session_id} of {recorded.game}: frame {index} differs from the "
            "record, "
            f"which was made by stable-retro {recorded.retro_version or '?'} with resize "
            f"{recorded.resize or '?'}: install that version, or collect again"
        )


def _check_rom(recorded: Episode) -> None:
    if recorded.game in BUILTIN:
        raise GameError("it is drawn at a single size and cannot be re-rendered")
    path = catalog.rom_path(recorded.game)
    if path is not None and hashlib.sha1(path.read_bytes()).hexdigest() != recorded.rom_sha1:
        raise GameError(
            f"the installed ROM is not the one of episode {recorded.session_id} (sha1 differs)"
        )
