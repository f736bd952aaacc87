"""Playing recorded episodes again, action by action, to see them larger: pairs for super-resolution.

Start state and button masks decide every pixel of a game, so that the same play can be had at any size. It is compared
with the record on the way: an emulator or a ROM that goes another way is refused.
"""

import dataclasses
import hashlib
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
from envs.collect.worker_pool import CollectSummary, WorkerPool, episode_timeout, shown_bar
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.shards import write_shard
from envs.games.retro import letterbox
from envs.utils.errors import InputError
from envs.utils.ray_session import ray_session
from envs.utils.storage import parse_uri


@dataclass(frozen=True)
class RecordedSession:
    """An episode of the source, by its place in the reader's order."""

    game: str
    id: str
    episode: int


def replay(
    source: str | Path,
    out: str | Path,
    *,
    size: int = 256,
    workers: int = 2,
    timeout: float | None = None,
    progress: bool = True,
) -> CollectSummary:
    """Play the episodes of `source` again into the folder `out`, with frames of `size` x `size`.

    Session ids, actions, rewards and the validation split are the same. Episodes that `out` has already are not played
    again. A game whose ROM is not here is reported and left out, like one whose emulator dies or hangs. Raises
    InputError for a size below 16, a source that cannot be read, and where the play is not the recorded one.
    """
    if size < 16 or workers < 1:
        raise InputError(f"size {size} must be 16 or more, workers {workers} 1 or more")
    started = time.monotonic()
    reader = EpisodeReader(source)
    names, skipped = playable(sorted(set(reader.games)))
    summary = CollectSummary(skipped=skipped)
    sessions = [
        RecordedSession(record.game, record.session_id, number)
        for number, record in enumerate(reader.records)
        if record.game in names
    ]
    with EpisodeWriter(out) as writer:
        writer.copy_plan(reader, {"source": reader.manifest_hash, "size": size})
        waiting = [session for session in sessions if session.id not in writer.sessions]
        if waiting:
            steps = max(record.num_frames for record in reader.records)
            options = (str(reader.root.resolve()), str(writer.root.resolve()), size)
            with ray_session(cpus=workers), shown_bar("replay", len(sessions), len(waiting), progress) as bar:
                crew = WorkerPool(
                    writer, Replayer, options, timeout=timeout or episode_timeout(steps), summary=summary, bar=bar
                )
                crew.play(waiting, min(workers, len(waiting)))
        records = list(writer.sessions.values())
    summary.episodes, summary.frames = len(records), sum(record.num_frames for record in records)
    summary.seconds = time.monotonic() - started
    return summary


class Replayer:
    """The Ray actor: plays a recorded session again, and writes it at the other size."""

    def __init__(self, source: str, out: str, size: int) -> None:
        self._source, self._out, self._size = source, parse_uri(out), size
        self._reader: EpisodeReader | None = None
        self._env: gymnasium.Env[Any, Any] | None = None
        self._key: tuple[Any, ...] = ()

    def process(self) -> int:
        """Says that it is there."""
        return self._size

    def play(self, session: RecordedSession) -> EpisodeResult:
        """Play one. Raises GameError where its game cannot be opened, InputError where the play is another one."""
        started = time.process_time()
        self._reader = self._reader or EpisodeReader(self._source)
        recorded = self._reader[session.episode]
        env = self._open(recorded)
        shard = write_shard(self._out, [play_again(env, recorded).encode()], recorded.session_id)
        return EpisodeResult(shard, time.process_time() - started)

    def _open(self, recorded: Episode) -> gymnasium.Env[Any, Any]:
        """The episode's game in the episode's start state; the emulator that is open if it is that."""
        key = (recorded.game, recorded.init_state, recorded.frame_skip)
        if self._env is None or self._key != key:
            if self._env is not None:
                self._env.close()
                self._env = None
            _check_rom(recorded)
            options = {"frame_skip": recorded.frame_skip, "state": recorded.init_state or None, "size": self._size}
            try:
                self._env = envs.make(recorded.game, **options)
            except InputError as error:
                raise GameError(str(error)) from error
            self._key = key
        return self._env


def play_again(env: gymnasium.Env[Any, Any], recorded: Episode) -> Episode:
    """The recorded episode with frames as `env` shows them, which is its game, in its start state, at another size.

    Raises InputError where a frame, at the recorded size, or a reward is not the recorded one.
    """
    size = recorded.frames_THWC.shape[1]
    frames = [env.reset()[0]]
    _check_same(recorded, 0, letterbox(env.render(), size), 0.0, 0.0)  # type: ignore[arg-type]
    for step, action in enumerate(recorded.actions):
        frame_HWC, reward, *_ = env.step(np.int64(action))
        frames.append(frame_HWC)
        seen = letterbox(env.render(), size)  # type: ignore[arg-type]
        _check_same(recorded, step + 1, seen, float(np.float32(reward)), float(recorded.rewards[step]))
    return dataclasses.replace(recorded, frames_THWC=np.stack(frames))


def _check_same(recorded: Episode, frame: int, seen_HWC: Any, reward: float, recorded_reward: float) -> None:
    if not np.array_equal(seen_HWC, recorded.frames_THWC[frame]) or reward != recorded_reward:
        raise InputError(
            f"session {recorded.session_id} of {recorded.game}: frame {frame} is not the recorded one: "
            f"the record is of stable-retro {recorded.retro_version or '?'} with resize {recorded.resize or '?'}"
        )


def _check_rom(recorded: Episode) -> None:
    if recorded.game in BUILTIN:
        raise GameError("it is drawn at one size, and has no screen to see it larger on")
    path = catalog.rom_path(recorded.game)
    if path is not None and hashlib.sha1(path.read_bytes()).hexdigest() != recorded.rom_sha1:
        raise GameError(f"the ROM here is another one than that of session {recorded.session_id} (sha1 differs)")
