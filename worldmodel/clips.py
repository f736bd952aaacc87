"""From episodes to batches: windows by number, and threads that decode them ahead of the training.

An episode of T + 1 frames has a window at every `stride`-th frame; windows are numbered through all episodes, sessions
and data sets, and never cross an episode's end. B clips, T frames, H, W pixels, C = 3.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from envs.episodes import decode_frames
from envs.errors import InputError
from worldmodel.sampler import ClipSampler
from worldmodel.staging import StagedEpisode, StagedFile, open_staged, stage

__all__ = ["ClipBatch", "ClipLoader", "ClipSampler", "Clips", "stage"]


@dataclass(frozen=True)
class ClipBatch:
    """B windows of T frames. actions_BT[b, t] turned frame t into frame t + 1, so there are T - 1 of them."""

    frames_BTHWC: Tensor
    """uint8"""
    actions_BT: Tensor
    """int64 (B, T - 1)"""
    games_B: Tensor
    """int64, places in `Clips.games`"""
    window_ids_B: Tensor
    """int64, numbers of the windows in the data"""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def model_frames(frames_BTHWC: Tensor) -> Tensor:
    """uint8 frames as they are stored -> float32 frames_BTCHW in [0, 1], on the same device."""
    return frames_BTHWC.movedim(-1, -3).float().div_(255)


class Clips:
    """All windows of `length` frames, one at every `stride`-th frame, of the union of data sets, by number.

    Opening costs memory for each episode, none for a window. `split`: "train", "val" or None for both.
    """

    def __init__(
        self,
        uris: Sequence[str | Path],
        cache_dir: Path | str,
        *,
        length: int,
        stride: int = 1,
        split: str | None = "train",
    ) -> None:
        if not uris:
            raise InputError("no data given: name one or more folders of episodes")
        self.length, self.stride = length, stride
        paths = [stage(uri, cache_dir) for uri in uris]
        # The hash names what window numbers mean: which data sets in which order, which split, which windows.
        identity = [*(path.stem for path in paths), split, length, stride]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        self._files: list[StagedFile] = []
        self.episodes: list[StagedEpisode] = []
        for number, path in enumerate(paths):
            staged, episodes = open_staged(path, number, split)
            self._files.append(staged)
            self.episodes.extend(episodes)
        sizes = {(episode.height, episode.width) for episode in self.episodes}
        if len(sizes) > 1:
            raise InputError(f"the data holds frames of several sizes, {sorted(sizes)}: train on one size at a time")
        self.games = sorted({episode.game for episode in self.episodes})
        self._game_numbers = {game: number for number, game in enumerate(self.games)}
        frames = np.array([episode.num_frames for episode in self.episodes], np.int64)
        # _ends[e] is the number of the first window after episode e.
        self._ends = np.maximum(0, (frames - length) // stride + 1).cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, window_id: int) -> tuple[int, int]:
        """(place in `episodes`, first frame) of a window."""
        episode = int(np.searchsorted(self._ends, window_id, side="right"))
        before = int(self._ends[episode - 1]) if episode else 0
        return episode, (int(window_id) - before) * self.stride

    def window_game(self, window_id: int) -> str:
        """The game that a window shows."""
        return self.episodes[self.locate(window_id)[0]].game

    def describe(self, window_id: int) -> str:
        """A window in words, for messages."""
        place, start = self.locate(window_id)
        episode = self.episodes[place]
        return f"window {window_id} (session {episode.session_id} of {episode.game}, frame {start})"

    def spread(self, count: int) -> np.ndarray:
        """At most `count` window numbers, evenly spread over all, the same at every call; all for 0. int64 (N,)"""
        if count == 0 or count >= len(self):
            return np.arange(len(self))
        return np.arange(count) * len(self) // count

    def batch(self, window_ids: np.ndarray) -> ClipBatch:
        """Decode windows. Raises InputError that names the session where one is damaged."""
        located = [(self.episodes[place], start) for place, start in map(self.locate, window_ids.tolist())]
        shape = (len(located), self.length, located[0][0].height, located[0][0].width, 3)
        # Filled in place: a list that is stacked afterwards touches twice the memory, which is what costs time here.
        frames = np.empty(shape, np.uint8)
        for number, (episode, start) in enumerate(located):
            frames[number] = self._frames(episode, start)
        return ClipBatch(torch.from_numpy(frames), *self.labels(window_ids), torch.from_numpy(window_ids))

    def labels(self, window_ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """(actions_BT int64 (B, length - 1), games_B) of windows, without decoding frames."""
        actions = np.empty((len(window_ids), self.length - 1), np.int64)
        games = torch.empty(len(window_ids), dtype=torch.int64)
        for number, (place, start) in enumerate(map(self.locate, window_ids.tolist())):
            episode = self.episodes[place]
            first = episode.actions_start + start
            actions[number] = np.frombuffer(self._files[episode.file].bytes, np.uint8, self.length - 1, first)
            games[number] = self._game_numbers[episode.game]
        return torch.from_numpy(actions), games

    def _frames(self, episode: StagedEpisode, start: int) -> np.ndarray:
        file = self._files[episode.file]
        first, last = start // episode.chunk, (start + self.length - 1) // episode.chunk
        edges = file.boundaries[episode.first_blob + first : episode.first_blob + last + 2].tolist()
        blobs = [file.bytes[begin:end] for begin, end in itertools.pairwise(edges)]
        inside = start - first * episode.chunk
        shape = {"height": episode.height, "width": episode.width, "chunk": episode.chunk}
        try:
            return decode_frames(blobs, inside, inside + self.length, **shape)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"session {episode.session_id} of {episode.game}, staged copy: {error}") from error


Batch = TypeVar("Batch", covariant=True)


class Windows(Protocol[Batch]):
    """What a loader draws from: `Clips`, or `worldmodel.token_cache.TokenClips`."""

    manifest_hash: str

    def __len__(self) -> int: ...

    def batch(self, window_ids: np.ndarray) -> Batch: ...


class ClipLoader(Generic[Batch]):
    """The shuffled stream of batches of one rank, decoded ahead by threads, always in the same order.

    `batch_size` counts the clips of all ranks together. `state()` after a batch, given back as `state`, continues with
    the next batch exactly, also with another number of ranks. The stream ends after `batches`, or never.
    """

    def __init__(
        self,
        windows: Windows[Batch],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 0,
        state: dict[str, Any] | None = None,
        batches: int | None = None,
    ) -> None:
        self._windows, self._batch_size, self._rank, self._ranks = windows, batch_size, rank, ranks
        self._sampler = ClipSampler(len(windows), seed)
        self._consumed = 0
        if state is not None:
            if (state["manifest_hash"], state["seed"]) != (windows.manifest_hash, seed):
                raise InputError("the run was trained on other data, clips or seed: continue it with the same ones")
            self._consumed = int(state["samples_consumed"])
        self._asked = self._consumed
        self._end = None if batches is None else self._consumed + batches * batch_size
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        # One batch more than there are threads waits, so that a thread is never idle while the training takes one.
        self._ahead = threads + 1
        self._pending: deque[Future[Batch]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._consumed == self._end:
            raise StopIteration
        if self._pool is None:
            batch = self._windows.batch(self._next_ids())
        else:
            while len(self._pending) < self._ahead and self._asked != self._end:
                self._pending.append(self._pool.submit(self._windows.batch, self._next_ids()))
            batch = self._pending.popleft().result()
        self._consumed += self._batch_size
        return batch

    def _next_ids(self) -> np.ndarray:
        ids = self._sampler.batch(self._asked, self._batch_size, self._rank, self._ranks)
        self._asked += self._batch_size
        return ids

    def state(self) -> dict[str, Any]:
        """Where the stream stands after the batches that were handed out, as JSON data."""
        return {
            "seed": self._sampler.seed,
            "epoch": self._sampler.epoch(self._consumed),
            "samples_consumed": self._consumed,
            "manifest_hash": self._windows.manifest_hash,
        }

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
