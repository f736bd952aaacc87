"""From episodes to batches: windows by number, and threads that decode them ahead of the training.

An episode of T + 1 frames has a window at every `stride`-th frame; windows are numbered through all episodes, sessions
and data sets, and never cross an episode's end. B clips, T frames, H, W pixels, C = 3.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from envs.episodes import decode_frames
from envs.errors import InputError
from worldmodel.sampler import ClipSampler, Sampler
from worldmodel.staging import one_size, open_staged, stage
from worldmodel.windows import WindowIndex

__all__ = ["ClipBatch", "ClipLoader", "ClipSampler", "Clips", "stage"]


@dataclass(frozen=True)
class ClipBatch:
    """B windows of T frames. actions_BT[b, t] turned frame t into frame t + 1, so there are T - 1 of them."""

    frames_BTHWC: Tensor
    """uint8"""
    actions_BT: Tensor
    """int64 (B, T - 1); -1 where `WindowIndex.show_actions` hides them"""
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


class Clips(WindowIndex):
    """All windows of `length` frames, one at every `stride`-th frame, of the union of data sets, by number.

    Opening costs memory for each episode, none for a window. `split`: "train", "val" or None for both. Damaged shards
    are left out as `worldmodel.staging.stage` says.
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
        paths = [stage(uri, cache_dir) for uri in uris]
        # The hash names what window numbers mean: which data sets in which order, which split, which windows.
        identity = [*(path.stem for path in paths), split, length, stride]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        numbers: dict[str, int] = {}
        self._files = [open_staged(path, number, split, numbers) for number, path in enumerate(paths)]
        self.skipped = {
            f"{uri}/{shard}": why
            for uri, file in zip(uris, self._files, strict=True)
            for shard, why in file.skipped.items()
        }
        """Shard that was left out -> what is wrong with it."""
        self._places = np.concatenate([file.places for file in self._files])
        self.size = one_size(self._places)
        """Pixels of every frame: (height, width)."""
        names = list(numbers)
        games = sorted(names[number] for number in np.unique(self._places["game"]).tolist())
        order = np.array([games.index(name) if name in games else -1 for name in names], np.int32)
        self._places["game"] = order[self._places["game"]]
        session_ids = pa.chunked_array([part for file in self._files for part in file.session_ids], pa.string())
        columns = (self._places["num_frames"], self._places["game"], games, session_ids)
        super().__init__(*columns, length=length, stride=stride)

    def sampler(self, seed: int) -> Sampler:
        """The order in which a `ClipLoader` draws."""
        return self.with_labelled(ClipSampler(len(self), seed))

    def batch(self, window_ids: np.ndarray) -> ClipBatch:
        """Decode windows. Raises InputError that names the session where one is damaged."""
        places_B, starts_B = self.places(window_ids)
        rows_B = self._places[places_B]
        chunks_B = rows_B["chunk"]
        first_B, last_B = starts_B // chunks_B, (starts_B + self.length - 1) // chunks_B
        where = (rows_B["file"], rows_B["first_blob"] + first_B, last_B - first_B + 1, starts_B % chunks_B, chunks_B)
        height, width = self.size
        # Filled in place: a list that is stacked afterwards touches twice the memory, which is what costs time here.
        frames_BTHWC = np.empty((len(window_ids), self.length, height, width, 3), np.uint8)
        for number, (file, blob, blobs, start, chunk) in enumerate(zip(*(c.tolist() for c in where), strict=True)):
            try:
                found = self._files[file].blobs(blob, blobs)
                shape = {"height": height, "width": width, "chunk": chunk, "out": frames_BTHWC[number]}
                decode_frames(found, start, start + self.length, **shape)
            except InputError as error:
                raise InputError(f"{self.describe(int(window_ids[number]))}, staged copy: {error}") from error
        return ClipBatch(torch.from_numpy(frames_BTHWC), *self.labels(window_ids), torch.from_numpy(window_ids))

    def labels(self, window_ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """(actions_BT int64 (B, length - 1), games_B) of windows, without decoding frames."""
        places_B, starts_B = self.places(window_ids)
        rows_B = self._places[places_B]
        actions = np.empty((len(window_ids), self.length - 1), np.int64)
        where = zip(rows_B["file"].tolist(), (rows_B["actions_start"] + starts_B).tolist(), strict=True)
        for number, (file, first) in enumerate(where):
            actions[number] = np.frombuffer(self._files[file].bytes, np.uint8, self.length - 1, first)
        return torch.from_numpy(self.shown(places_B, actions)), torch.from_numpy(rows_B["game"].astype(np.int64))


Batch = TypeVar("Batch", covariant=True)


class Windows(Protocol[Batch]):
    """What a loader draws from: `Clips`, `worldmodel.streaming.StreamClips`, or `worldmodel.token_cache.TokenClips`."""

    manifest_hash: str

    def __len__(self) -> int: ...

    def sampler(self, seed: int) -> Sampler: ...

    def batch(self, window_ids: np.ndarray) -> Batch: ...

    def close(self) -> None: ...


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
        self._sampler = windows.sampler(seed)
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
        self._windows.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
