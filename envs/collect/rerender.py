"""Re-rendering of recorded episodes at another frame size: pairs for super-resolution.

Start state and actions determine every pixel of a game, so a recorded episode can be played again
at any size. Each frame is compared with the record; an emulator or ROM that diverges is refused.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs import BUILTIN
from envs.collect.collector import playable
from envs.collect.worker import EpisodeResult, GameError, GameWorker
from envs.collect.worker_pool import CollectSummary, WorkerSpec, default_timeout, play_missing
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.shards import write_shard
from envs.games.retro import letterbox
from envs.utils.errors import InputError
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
    reader = EpisodeReader(source)
    names, skipped = playable(sorted(set(reader.games)))
    tasks = [
        RecordedEpisode(record.game, record.session_id, index)
        for index, record in enumerate(reader.records)
        if record.game in names
    ]
    with EpisodeWriter(out) as writer:
        writer.copy_plan(reader, {"source": reader.manifest_hash, "size": size})
        arguments = (str(reader.root.resolve()), str(writer.root.resolve()), size)
        timeout = default_timeout(max(record.num_frames for record in reader.records))
        actors = WorkerSpec(RerenderWorker, arguments, workers, timeout)
        summary = play_missing(writer, tasks, actors, title="rerender", shown=progress)
    summary.skipped = skipped | summary.skipped
    return summary


class RerenderWorker(GameWorker):
    """Ray actor that plays recorded episodes again and writes them at another frame size."""

    def __init__(self, source: str, out: str, size: int) -> None:
        super().__init__()
        self._source, self._out, self._size = source, parse_uri(out), size
        self._reader: EpisodeReader | None = None

    def play(self, task: RecordedEpisode) -> EpisodeResult:
        """Re-render one episode.

        Raises: GameError if its game cannot be opened or has another ROM, InputError if the play
        differs from the record.
        """
        started = time.process_time()
        self._reader = self._reader or EpisodeReader(self._source)
        recorded = self._reader[task.episode]
        if recorded.game in BUILTIN:
            raise GameError("its frames have a fixed size and cannot be re-rendered")
        state, frame_skip = recorded.init_state or None, recorded.frame_skip
        env = self._open(
            recorded.game,
            frame_skip=frame_skip,
            state=state,
            size=self._size,
            actions=recorded.action_names,
        )
        if env.unwrapped.rom_sha1 != recorded.rom_sha1:  # type: ignore[attr-defined]
            raise GameError(
                f"the installed ROM is not the one of episode {recorded.session_id} (sha1 differs)"
            )
        shard = write_shard(
            self._out, [rerender_episode(env, recorded).encode()], recorded.session_id
        )
        return EpisodeResult(shard, time.process_time() - started)


def rerender_episode(env: gymnasium.Env[Any, Any], recorded: Episode) -> Episode:
    """Return the recorded episode with frames of `env`, the same game at another size.

    Raises: InputError if a frame, shrunk to the recorded size, or a reward differs from the record.
    """
    frames = [_start(env, recorded)]
    _check_same(env, recorded, 0)
    for step, action in enumerate(recorded.actions):
        frame_HWC, reward, *_ = env.step(np.int64(action))
        frames.append(frame_HWC)
        _check_same(env, recorded, step + 1, float(reward))
    return dataclasses.replace(recorded, frames_THWC=np.stack(frames))


def _start(env: gymnasium.Env[Any, Any], recorded: Episode) -> NDArray[np.uint8]:
    """Return the first frame of an episode, which may begin in the middle of a game."""
    frame_HWC: NDArray[np.uint8]
    frame_HWC, _ = env.reset(seed=recorded.info.get("start_seed"))
    for action in bytes.fromhex(recorded.info.get("path", "")):
        frame_HWC, *_ = env.step(np.int64(action))
    return frame_HWC


def _check_same(
    env: gymnasium.Env[Any, Any], recorded: Episode, index: int, reward: float = 0.0
) -> None:
    """Compare the screen and the reward that came with it with frame `index` of the record."""
    expected_HWC = recorded.frames_THWC[index]
    screen_HWC: Any = env.render()
    same_reward = index == 0 or np.float32(reward) == recorded.rewards[index - 1]
    if not same_reward or not np.array_equal(
        letterbox(screen_HWC, len(expected_HWC)), expected_HWC
    ):
        raise InputError(
            f"episode {recorded.session_id} of {recorded.game}: frame {index} differs from the "
            f"record, which was made by stable-retro {recorded.retro_version or '?'} with resize "
            f"{recorded.resize or '?'}: install that version, or collect again"
        )
