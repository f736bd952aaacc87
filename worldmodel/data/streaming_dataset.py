"""Dataset that streams sessions through memory, for data larger than the local disk."""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import EncodedEpisode
from envs.episodes.frame_codec import decode_frames
from envs.utils.errors import InputError
from worldmodel.data.arrow_cache import leave_out, verify_blobs
from worldmodel.data.batch import Batch
from worldmodel.data.sampler import (
    Sampler,
    derive_keys,
    feistel_permutation,
    hash_key,
    share_of_batch,
)
from worldmodel.data.window_index import EpisodeTable, WindowIndex, single_size

MAX_LANES = 240
"""Largest number of lanes of a `StreamSampler`. It is divisible by many numbers of ranks."""
LOOKAHEAD = 100
"""Largest number of batches whose sessions are read in advance."""


class StreamingDataset(WindowIndex):
    """The windows of `ClipDataset`, read while they are drawn.

    Holds at most `sessions` sessions, of at most `max_bytes` compressed bytes together. Both decide
    the order of the windows (`StreamSampler`). A damaged session is replaced by the next intact one
    and listed on the console and in `skipped`. `readers` is the number of threads that read
    sessions. `batch` also takes windows in any other order.

    Raises: InputError if more than 5 % of the sessions are damaged.
    """

    def __init__(
        self,
        uris: Sequence[str | Path],
        *,
        length: int,
        stride: int = 1,
        split: str | None = "train",
        sessions: int = 10_000,
        max_bytes: int = 8 << 30,
        readers: int = 4,
    ) -> None:
        if not uris:
            raise InputError("no data given: name one or more folders of episodes")
        if sessions < 2 or max_bytes < 1:
            raise InputError(
                f"{sessions} sessions, {max_bytes} bytes in memory: streaming needs 2 or more "
                "sessions and 1 or more bytes"
            )
        sources = [EpisodeReader(uri, split) for uri in uris]
        self._sources = [(source, index) for source in sources for index in range(len(source))]
        records = [record for source in sources for record in source.records]
        games = sorted({record.game for record in records})
        game_E = np.array([games.index(record.game) for record in records], np.int64)
        frames_E = np.array([record.num_frames for record in records], np.int64)
        episodes = EpisodeTable(frames_E, game_E, games, [record.session_id for record in records])
        super().__init__(episodes, length=length, stride=stride)

        # Compressed bytes of each session, estimated from those of its shard.
        shards = [shard for source in sources for shard in source.shards]
        bytes_per_frame = {
            key: shard.bytes / sum(session.num_frames for session in shard.sessions)
            for key, shard in {id(shard): shard for shard in shards}.items()
        }
        self.bytes_E = np.array([bytes_per_frame[id(shard)] for shard in shards]) * frames_E
        self.sessions, self.max_bytes = sessions, max_bytes
        identity = [
            "stream of staggered blocks",
            *(source.manifest_hash for source in sources),
            *(split, length, stride, sessions, max_bytes),
        ]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        self.buffer = SessionBuffer(self._load, self.bytes_E, sessions, max_bytes, readers)
        self.skipped: dict[str, str] = {}
        """Session that was left out -> what is wrong with it."""

    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws windows."""
        return self.with_labelled(StreamSampler(self, seed))

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Decode windows. Those of a damaged session are replaced, and `window_ids_B` of the batch
        are the numbers of the replacements.
        """
        window_ids = window_ids.copy()
        episodes_B, starts_B = self.locate_all(window_ids)
        sessions = self.buffer.request(episodes_B.tolist())
        loaded = []
        for number, (episode, future) in enumerate(zip(episodes_B, sessions, strict=True)):
            intact, session = self._first_intact(int(episode), future)
            if intact != episode:
                offset = (starts_B[number] // self.stride) % self.windows_E[intact]
                window_ids[number] = self.first_windows(np.array([intact]))[0] + offset
            loaded.append(session)
        episodes_B, starts_B = self.locate_all(window_ids)
        height, width = single_size({(session.height, session.width) for session in loaded})
        frames_BTHWC = np.empty((len(loaded), self.length, height, width, 3), np.uint8)
        actions_BT = np.empty((len(loaded), self.length - 1), np.int64)
        for number, (session, start) in enumerate(zip(loaded, starts_B.tolist(), strict=True)):
            decode_frames(
                session.chunks,
                start,
                start + self.length,
                height=height,
                width=width,
                chunk=session.chunk,
                out=frames_BTHWC[number],
            )
            actions_BT[number] = session.actions[start : start + self.length - 1]
        return Batch(
            window_ids_B=torch.from_numpy(window_ids),
            games_B=torch.from_numpy(self.episodes.game_E[episodes_B]),
            frames_BTHWC=torch.from_numpy(frames_BTHWC),
            actions_BT=torch.from_numpy(self.mask_actions(episodes_B, actions_BT)),
        )

    def close(self) -> None:
        """Cancel pending reads."""
        self.buffer.clear()

    def _load(self, episode: int) -> EncodedEpisode:
        source, index = self._sources[episode]
        return verify_blobs(source.encoded(index))

    def _first_intact(
        self, episode: int, future: "Future[EncodedEpisode]"
    ) -> tuple[int, EncodedEpisode]:
        """Wait for a session; return it, or else the next intact one, with its index."""
        while True:
            try:
                return episode, future.result()
            except InputError as error:
                name = self.episodes[episode].session_id
                if name not in self.skipped:
                    leave_out(self.skipped, name, str(error), len(self.episodes), "sessions")
            following = np.roll(np.arange(len(self.episodes)), -episode - 1)
            episode = int(following[self.windows_E[following] > 0][0])
            [future] = self.buffer.request([episode])


class StreamSampler:
    """Shuffled stream of windows that uses few sessions at a time; every epoch holds each window
    exactly once.

    An epoch puts all windows in a row, session by session in a shuffled order, and cuts the row
    into equal lanes. Sample k of the stream comes from lane k mod `lanes`. A lane is a sequence of
    blocks of consecutive windows, which are shuffled inside the block. Different lanes change
    blocks at different times, so that sessions are read at an even rate.

    Rank r of R takes the samples k = r mod R. The stream therefore does not depend on R, and ranks
    use different sessions if R divides `lanes`, except for those that a cut divides.
    """

    def __init__(self, clips: StreamingDataset, seed: int) -> None:
        self.seed, self._clips = seed, clips
        self._sessions = np.flatnonzero(clips.windows_E)
        if not len(self._sessions):
            raise InputError(
                "no window to sample from: the episodes are shorter than a clip; give longer ones"
            )
        # Bytes of a session in use, on average over windows: long sessions are in use for longer.
        mean_bytes = np.average(clips.bytes_E, weights=clips.windows_E)
        capacity = min(clips.sessions, int(clips.max_bytes / mean_bytes), len(self._sessions))
        divisors = (lanes for lanes in range(1, MAX_LANES + 1) if MAX_LANES % lanes == 0)
        self.lanes = max(lanes for lanes in divisors if lanes <= max(1, capacity // 2))
        # A block fills a third of a lane's share of the buffer. The rest is for sessions that the
        # block's ends cut and for those of the next block. With larger blocks the LRU cache would
        # drop many sessions before they are used up.
        sessions = 0.3 * (capacity / self.lanes - 1)
        self._block = max(1, round(sessions * len(clips) / len(self._sessions)))
        # Lane i holds the samples i, i + lanes, ... of an epoch.
        self._lengths = (len(clips) - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        self._shuffled = lru_cache(maxsize=2)(self._shuffle_sessions)
        self._requested = 0

    def batch(
        self, samples_consumed: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> np.ndarray:
        """Return this rank's windows of the global batch at `samples_consumed`, int64
        (batch_size / ranks,), and start reading the sessions of the following batches.
        """
        share_of_batch(batch_size, ranks)
        batches = min(LOOKAHEAD, math.ceil(self.lanes * self._block / 10 / batch_size))
        stop = samples_consumed + (1 + batches) * batch_size
        start = max(samples_consumed, self._requested)
        if start < stop:
            future_ids = self.window_ids(np.arange(start + rank, stop, ranks))
            sessions = self._clips.locate_all(future_ids)[0].tolist()
            self._clips.buffer.request(dict.fromkeys(sessions))
            self._requested = stop
        return self.window_ids(
            np.arange(samples_consumed + rank, samples_consumed + batch_size, ranks)
        )

    def epoch(self, samples_consumed: int) -> float:
        """Return the passes over the data so far, in [0, inf)."""
        return samples_consumed / len(self._clips)

    def window_ids(self, samples: np.ndarray) -> np.ndarray:
        """Return the window of each sample, counted over all epochs from 0. int64 (N,)"""
        epochs, inside = np.divmod(samples, len(self._clips))
        places, lanes = np.divmod(inside, self.lanes)
        # The first block of a lane is shorter by `shift`.
        shift = lanes * self._block // self.lanes
        blocks = (places + shift) // self._block
        first = np.maximum(0, blocks * self._block - shift)
        last = np.minimum(self._lengths[lanes], (blocks + 1) * self._block - shift)
        lane_starts = self._lengths.cumsum() - self._lengths
        block_starts = lane_starts[lanes] + first
        keys = derive_keys(derive_keys(np.uint64(self.seed % 2**64), epochs), block_starts)
        shuffled = feistel_permutation((places - first).astype(np.uint64), last - first, keys)
        row = block_starts + shuffled.astype(np.int64)
        window_ids = np.empty_like(row)
        for epoch in np.unique(epochs):
            sessions, ends = self._shuffled(int(epoch))
            chosen = epochs == epoch
            turn = np.searchsorted(ends, row[chosen], side="right")
            window_ids[chosen] = self._clips.ends_E[sessions[turn]] - ends[turn] + row[chosen]
        return window_ids

    def _shuffle_sessions(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sessions in the order of an epoch, and where each of them ends in the row."""
        count = len(self._sessions)
        keys = np.full(count, hash_key(self.seed, "epoch", epoch))
        order = feistel_permutation(np.arange(count, dtype=np.uint64), count, keys)
        sessions = self._sessions[order.astype(np.int64)]
        return sessions, self._clips.windows_E[sessions].cumsum()


class SessionBuffer:
    """Thread-safe LRU cache of sessions, including those that are still being read."""

    def __init__(
        self,
        load: Callable[[int], EncodedEpisode],
        bytes_E: np.ndarray,
        sessions: int,
        max_bytes: int,
        readers: int,
    ) -> None:
        self._load, self._bytes_E = load, bytes_E
        self._max_sessions, self._max_bytes = sessions, max_bytes
        self._held: OrderedDict[int, Future[EncodedEpisode]] = OrderedDict()
        self.bytes = 0.0
        """Compressed bytes held."""
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(readers, "read")

    def __len__(self) -> int:
        return len(self._held)

    def request(self, episodes: Iterable[int]) -> "list[Future[EncodedEpisode]]":
        """Return the sessions of episodes, which threads read if they are not held."""
        with self._lock:
            return [self._request_one(episode) for episode in episodes]

    def clear(self) -> None:
        """Cancel pending reads and drop all sessions."""
        with self._lock:
            for future in self._held.values():
                future.cancel()
            self._held.clear()
            self.bytes = 0.0

    def _request_one(self, episode: int) -> "Future[EncodedEpisode]":
        if episode not in self._held:
            self.bytes += self._bytes_E[episode]
            while self._held and (
                len(self._held) >= self._max_sessions or self.bytes > self._max_bytes
            ):
                oldest, _ = self._held.popitem(last=False)
                self.bytes -= self._bytes_E[oldest]
            self._held[episode] = self._pool.submit(self._load, episode)
        self._held.move_to_end(episode)
        return self._held[episode]
