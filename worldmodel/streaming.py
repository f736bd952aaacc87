"""Training from a data set that is larger than the local disk: sessions pass through memory instead of being staged.

The sessions of a rank come in a shuffled order, cut into blocks that fill half of the memory granted. The windows of a
block are drawn in a shuffled order, each once; meanwhile the next block takes the place of the one before, session by
session. So every window is drawn once an epoch, and where a run stands is one number, as with `ClipSampler`.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from envs.episodes import EpisodeReader, decode_frames
from envs.errors import InputError
from envs.runs import console, progress
from worldmodel.clips import ClipBatch
from worldmodel.sampler import feistel_permutation, key_of
from worldmodel.staging import MAX_DAMAGED, checked_blobs
from worldmodel.windows import WindowIndex


@dataclass(frozen=True)
class Session:
    """A session in memory, its frames compressed."""

    blobs: list[bytes]
    actions: np.ndarray
    height: int
    width: int
    chunk: int


class StreamClips(WindowIndex):
    """The windows that `Clips` has, read from the data sets as they are drawn, at most `sessions` sessions held.

    `max_bytes` bounds the compressed bytes held. A damaged session is replaced by the next one that is whole, named on
    the console and in `skipped`; InputError where more than 5 % of the sessions are. Draw from it with a `ClipLoader`;
    `batch` also takes any other windows, and loads what it needs. `readers`: threads that read and check sessions.
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
            raise InputError(f"{sessions} sessions, {max_bytes} bytes in memory: streaming needs room for 2 or more")
        sources = [EpisodeReader(uri, split) for uri in uris]
        self._sources = [(source, index) for source in sources for index in range(len(source))]
        records = [record for source in sources for record in source.records]
        games = sorted({record.game for record in records})
        self._game_E = np.array([games.index(record.game) for record in records], np.int64)
        frames_E = np.array([record.num_frames for record in records], np.int64)
        ids = [record.session_id for record in records]
        super().__init__(frames_E, self._game_E, games, ids, length=length, stride=stride)
        shards = [shard for source in sources for shard in source.shards]
        rates = {id(shard): shard.bytes / sum(session.num_frames for session in shard.sessions) for shard in shards}
        self.bytes_E = np.array([rates[id(shard)] for shard in shards]) * frames_E
        """Compressed bytes of each session, as the manifest has them."""
        self.sessions, self.max_bytes = sessions, max_bytes
        # The order of the windows depends on the size of the blocks too.
        identity = ["stream", *(source.manifest_hash for source in sources), split, length, stride, sessions, max_bytes]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        self.buffer = SessionBuffer(self._load, self.bytes_E, sessions, max_bytes, readers)
        self.skipped: dict[str, str] = {}
        """Session that was left out -> what is wrong with it."""

    def sampler(self, seed: int) -> "StreamSampler":
        """The order in which a `ClipLoader` draws."""
        return StreamSampler(self, seed)

    def batch(self, window_ids: np.ndarray) -> ClipBatch:
        """Decode windows; those of a damaged session are replaced, and the batch then has the numbers of others."""
        places_B, starts_B = self.places(window_ids)
        self.buffer.want(places_B.tolist())
        window_ids = window_ids.copy()
        found: list[Session] = []
        for number, place in enumerate(places_B.tolist()):
            whole, session = self._session(place)
            if whole != place:
                inside = (starts_B[number] // self.stride) % self.windows_E[whole]
                places_B[number], starts_B[number] = whole, inside * self.stride
                window_ids[number] = self.first_windows(np.array([whole]))[0] + inside
            found.append(session)
        sizes = {(session.height, session.width) for session in found}
        if len(sizes) > 1:
            raise InputError(f"the data holds frames of several sizes, {sorted(sizes)}: train on one size at a time")
        height, width = sizes.pop()
        frames_BTHWC = np.empty((len(found), self.length, height, width, 3), np.uint8)
        actions_BT = np.empty((len(found), self.length - 1), np.int64)
        for number, (session, start) in enumerate(zip(found, starts_B.tolist(), strict=True)):
            shape = {"height": height, "width": width, "chunk": session.chunk}
            decode_frames(session.blobs, start, start + self.length, **shape, out=frames_BTHWC[number])
            actions_BT[number] = session.actions[start : start + self.length - 1]
        arrays = (frames_BTHWC, actions_BT, self._game_E[places_B], window_ids)
        return ClipBatch(*map(torch.from_numpy, arrays))

    def close(self) -> None:
        """Give up what is waiting to be read."""
        self.buffer.cancel()

    def _load(self, place: int) -> Session:
        source, index = self._sources[place]
        episode = source.encoded(index)
        return Session(checked_blobs(episode), episode.actions, episode.height, episode.width, episode.chunk)

    def _session(self, place: int) -> tuple[int, Session]:
        """A session, or the next whole one that has windows, and its place."""
        while True:
            if self.windows_E[place]:
                try:
                    return place, self.buffer.get(place)
                except InputError as error:
                    self._leave_out(place, str(error))
            place = (place + 1) % len(self.episodes)

    def _leave_out(self, place: int, why: str) -> None:
        name = self.episodes[place].session_id
        if name not in self.skipped:
            self.skipped[name] = why
            if len(self.skipped) > MAX_DAMAGED * len(self.episodes):
                count = f"{len(self.skipped)} or more of {len(self.episodes)} sessions are damaged"
                first = next(iter(self.skipped.values()))
                raise InputError(f"{count}, over {MAX_DAMAGED:.0%}, collect them again; first: {first}")
            console.print(f"left out, damaged: {why}")


@dataclass(frozen=True)
class Epoch:
    """One pass of one rank over its sessions: N of them in order, and their windows counted through."""

    order_N: np.ndarray
    ends_N: np.ndarray
    """Windows up to the end of each session."""
    blocks: np.ndarray
    """Where each block begins in `order_N`, and where the last ends; int64 (blocks + 1,)."""

    def block_of(self, place: int) -> int:
        """The block that holds the window at a place of the epoch."""
        return int(np.searchsorted(self.blocks, np.searchsorted(self.ends_N, place, side="right"), side="right")) - 1

    def block(self, number: int) -> np.ndarray:
        """The sessions of a block."""
        return self.order_N[self.blocks[number] : self.blocks[number + 1]]

    def range(self, number: int) -> tuple[int, int]:
        """Places of the epoch at which a block's windows begin and end."""
        ends = [0, *self.ends_N[self.blocks[1:] - 1].tolist()]
        return ends[number], ends[number + 1]


class StreamSampler:
    """The shuffled stream of windows of `StreamClips`. Rank r of R has every R-th session of a shuffled list to itself.

    Other than that of `ClipSampler`, the order depends on the number of ranks. Drawing makes the buffer read ahead.
    """

    ranks_matter = True

    def __init__(self, clips: StreamClips, seed: int) -> None:
        self.seed, self._clips = seed, clips
        self._epochs: dict[tuple[int, int, int], Epoch] = {}
        self._reading: tuple[int, int] | None = None
        self._ahead = 0

    def batch(self, samples_consumed: int, batch_size: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """This rank's windows of the global batch that starts at `samples_consumed`, int64 (batch_size / ranks,)."""
        if batch_size % ranks:
            raise InputError(f"a batch of {batch_size} does not split over {ranks} workers: make it a multiple")
        share, own = batch_size // ranks, samples_consumed // ranks
        windows = int(self._epoch(0, rank, ranks).ends_N[-1])
        ids: list[np.ndarray] = []
        while share:
            number, place = divmod(own, windows)
            epoch = self._epoch(number, rank, ranks)
            block = epoch.block_of(place)
            first, last = epoch.range(block)
            count = min(share, last - place)
            inside = np.arange(place - first, place - first + count, dtype=np.uint64)
            key = np.full(count, key_of(self.seed, "windows", number, rank, block))
            at = first + feistel_permutation(inside, last - first, key).astype(np.int64)
            turn = np.searchsorted(epoch.ends_N, at, side="right")
            sessions = epoch.order_N[turn]
            offsets = at - epoch.ends_N[turn] + self._clips.windows_E[sessions]
            ids.append(self._clips.first_windows(sessions) + offsets)
            self._read(epoch, number, block, sessions)
            self._read_ahead(number, block, (place + count - first) / (last - first), rank, ranks)
            own, share = own + count, share - count
        return np.concatenate(ids)

    def epoch(self, samples_consumed: int) -> float:
        """Passes over the data so far, in [0, inf)."""
        return samples_consumed / len(self._clips)

    def _epoch(self, number: int, rank: int, ranks: int) -> Epoch:
        key = (number, rank, ranks)
        if key not in self._epochs:
            clips = self._clips
            sessions = np.flatnonzero(clips.windows_E)
            own = sessions[shuffled(len(sessions), key_of(self.seed, "shares"))][rank::ranks]
            if not len(own):
                raise InputError(
                    f"{len(sessions)} sessions as long as a clip for {ranks} workers: give more or longer episodes"
                )
            order = own[shuffled(len(own), key_of(self.seed, "epoch", number))]
            blocks = cut(clips.bytes_E[order], clips.sessions // 2, clips.max_bytes / 2)
            while len(self._epochs) > 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[key] = Epoch(order, clips.windows_E[order].cumsum(), blocks)
        return self._epochs[key]

    def _read(self, epoch: Epoch, number: int, block: int, first: np.ndarray) -> None:
        """Have a block read when it is drawn from for the first time, the sessions `first` before the others."""
        if self._reading == (number, block):
            return
        buffer, fresh = self._clips.buffer, self._reading is None
        self._reading, self._ahead = (number, block), 0
        places = list(dict.fromkeys([*first.tolist(), *epoch.block(block).tolist()]))
        futures = buffer.want(places)
        if fresh:  # later blocks are read while one is drawn from; nobody waits for them
            with progress("filling the buffer of sessions", len(futures)) as bar:
                for future in futures:
                    future.exception()
                    bar.advance()

    def _read_ahead(self, number: int, block: int, share: float, rank: int, ranks: int) -> None:
        """Have as large a share of the next block read as is drawn of this one."""
        epoch, following = self._epoch(number, rank, ranks), block + 1
        if following == len(epoch.blocks) - 1:
            epoch, following = self._epoch(number + 1, rank, ranks), 0
        sessions = epoch.block(following)
        wanted = int(share * len(sessions))
        self._clips.buffer.want(sessions[self._ahead : wanted].tolist())
        self._ahead = max(self._ahead, wanted)


def shuffled(count: int, key: np.uint64) -> np.ndarray:
    """0 to count - 1 in the order of a key, int64 (count,)."""
    return feistel_permutation(np.arange(count, dtype=np.uint64), count, np.full(count, key)).astype(np.int64)


def cut(bytes_N: np.ndarray, sessions: int, max_bytes: float) -> np.ndarray:
    """Where to cut a list so that every part has at most so many sessions and bytes, but one at least. int64."""
    cuts, size = [0], 0.0
    for place, more in enumerate(bytes_N.tolist()):
        if place > cuts[-1] and (place - cuts[-1] == sessions or size + more > max_bytes):
            cuts.append(place)
            size = 0.0
        size += more
    return np.array([*cuts, len(bytes_N)])


class SessionBuffer:
    """Sessions in memory or on their way there; those not asked for the longest are let go. For use by many threads."""

    def __init__(
        self, load: Callable[[int], Session], bytes_E: np.ndarray, sessions: int, max_bytes: int, readers: int
    ) -> None:
        self._load, self._bytes_E, self._sessions, self._max_bytes = load, bytes_E, sessions, max_bytes
        self._held: OrderedDict[int, Future[Session]] = OrderedDict()
        self._bytes = 0.0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(readers, "read")

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> float:
        """Compressed bytes held."""
        return self._bytes

    def want(self, places: Iterable[int]) -> list[Future[Session]]:
        """Begin to load those that are not there; they are then the last to go, the last of them the very last."""
        with self._lock:
            return [self._want(place) for place in places]

    def get(self, place: int) -> Session:
        """One session, waited for. Raises what loading it raised."""
        while True:
            with self._lock:
                future = self._want(place)
            try:
                return future.result()
            except CancelledError:
                continue  # let go by another thread before it was read: ask again

    def cancel(self) -> None:
        """Forget what has not begun to load."""
        with self._lock:
            for place in [place for place, future in self._held.items() if future.cancel()]:
                self._bytes -= self._bytes_E[place]
                del self._held[place]

    def _want(self, place: int) -> Future[Session]:
        if place in self._held:
            self._held.move_to_end(place)
            return self._held[place]
        self._bytes += self._bytes_E[place]
        while self._held and (len(self._held) >= self._sessions or self._bytes > self._max_bytes):
            oldest, future = self._held.popitem(last=False)
            future.cancel()
            self._bytes -= self._bytes_E[oldest]
        self._held[place] = self._pool.submit(self._load, place)
        return self._held[place]
