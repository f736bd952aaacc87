"""Dataset that streams sessions through memory, for data larger than the local disk.

The sessions come in a shuffled order, cut into blocks that fill half of the memory granted
(`worldmodel.data.streaming_order`). The windows of a block are drawn in a shuffled order, each
once; meanwhile the next block takes the place of the one before, session by session. So every
window is drawn once an epoch, and where a run stands is one number, as with `ClipSampler`.
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_codec import decode_frames
from envs.utils.errors import InputError
from envs.utils.progress import console, progress
from worldmodel.data.arrow_cache import MAX_DAMAGED, checked_blobs
from worldmodel.data.batch import Batch
from worldmodel.data.sampler import Sampler
from worldmodel.data.streaming_order import Draws, StreamOrder
from worldmodel.data.window_index import WindowIndex


@dataclass(frozen=True)
class LoadedSession:
    """A session in memory, its frames compressed."""

    blobs: list[bytes]
    actions: np.ndarray
    height: int
    width: int
    chunk: int


class StreamingDataset(WindowIndex):
    """The windows of `ClipDataset`, read as they are drawn; holds at most `sessions` sessions.

    `max_bytes` bounds the compressed bytes held. Both bounds decide the order of the windows, which
    is the same for any number of ranks; R ranks hold and read an R-th of the sessions each where R
    divides the number of lanes (`worldmodel.data.streaming_order.LANES`, or fewer where few
    sessions are held), else up to all of them. A damaged session is replaced by the next one that
    is whole, named on the console and in `skipped`; InputError where more than 5 % of the sessions
    are. Draw from it with a `ClipLoader`; `batch` also takes any other windows, and loads what it
    needs. `readers`: threads that read and check sessions.
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
                f"{sessions} sessions, {max_bytes} bytes in memory: streaming needs room "
                "for 2 or more"
            )
        sources = [EpisodeReader(uri, split) for uri in uris]
        self._sources = [(source, index) for source in sources for index in range(len(source))]
        records = [record for source in sources for record in source.records]
        games = sorted({record.game for record in records})
        self._game_E = np.array([games.index(record.game) for record in records], np.int64)
        frames_E = np.array([record.num_frames for record in records], np.int64)
        ids = [record.session_id for record in records]
        super().__init__(frames_E, self._game_E, games, ids, length=length, stride=stride)
        shards = [shard for source in sources for shard in source.shards]
        rates = {
            id(shard): shard.bytes / sum(session.num_frames for session in shard.sessions)
            for shard in shards
        }
        self.bytes_E = np.array([rates[id(shard)] for shard in shards]) * frames_E
        """Compressed bytes of each session, as the manifest has them."""
        self.sessions, self.max_bytes = sessions, max_bytes
        # The order of the windows depends on the size of the blocks too.
        identity = [
            "stream by lanes",
            *(source.manifest_hash for source in sources),
            split,
            length,
            stride,
            sessions,
            max_bytes,
        ]
        self.manifest_hash = hashlib.sha256(repr(identity).encode()).hexdigest()
        self.buffer = SessionBuffer(self._load, self.bytes_E, sessions, max_bytes, readers)
        self.skipped: dict[str, str] = {}
        """Session that was left out -> what is wrong with it."""

    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws windows."""
        return self.with_labelled(StreamSampler(self, seed))

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Decode windows. Those of a damaged session are replaced, and the batch has the
        replacements' numbers.
        """
        places_B, starts_B = self.places(window_ids)
        self.buffer.prefetch(places_B.tolist())
        window_ids = window_ids.copy()
        found: list[LoadedSession] = []
        for number, place in enumerate(places_B.tolist()):
            whole, session = self._session(place)
            if whole != place:
                inside = (starts_B[number] // self.stride) % self.windows_E[whole]
                places_B[number], starts_B[number] = whole, inside * self.stride
                window_ids[number] = self.first_windows(np.array([whole]))[0] + inside
            found.append(session)
        sizes = {(session.height, session.width) for session in found}
        if len(sizes) > 1:
            raise InputError(
                f"the data holds frames of several sizes, {sorted(sizes)}: train on one "
                "size at a time"
            )
        height, width = sizes.pop()
        frames_BTHWC = np.empty((len(found), self.length, height, width, 3), np.uint8)
        actions_BT = np.empty((len(found), self.length - 1), np.int64)
        for number, (session, start) in enumerate(zip(found, starts_B.tolist(), strict=True)):
            shape = {"height": height, "width": width, "chunk": session.chunk}
            decode_frames(
                session.blobs, start, start + self.length, **shape, out=frames_BTHWC[number]
            )
            actions_BT[number] = session.actions[start : start + self.length - 1]
        return Batch(
            window_ids_B=torch.from_numpy(window_ids),
            games_B=torch.from_numpy(self._game_E[places_B]),
            frames_BTHWC=torch.from_numpy(frames_BTHWC),
            actions_BT=torch.from_numpy(self.shown(places_B, actions_BT)),
        )

    def close(self) -> None:
        """Cancel pending reads."""
        self.buffer.cancel()

    def _load(self, place: int) -> LoadedSession:
        source, index = self._sources[place]
        episode = source.encoded(index)
        return LoadedSession(
            checked_blobs(episode), episode.actions, episode.height, episode.width, episode.chunk
        )

    def _session(self, place: int) -> tuple[int, LoadedSession]:
        """Return a session and its index, or the next intact session that has windows."""
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
                raise InputError(
                    f"{count}, over {MAX_DAMAGED:.0%}, collect them again; first: {first}"
                )
            console.print(f"left out, damaged: {why}")


@dataclass
class Reading:
    """Sessions that one slot of the sequence draws from now and next."""

    block: tuple[int, int]
    """An epoch, and a block of it."""
    sessions: list[int]
    following: list[int]
    """The sessions of the block after it."""
    ahead: int = 0
    """Number of those that are asked for."""


class StreamSampler:
    """The shuffled stream of windows of `StreamingDataset`. Draw k of the sequence goes to rank k
    mod R, so that the global batches do not depend on the number of ranks R. Drawing makes the
    buffer read ahead.
    """

    def __init__(self, clips: StreamingDataset, seed: int) -> None:
        self.seed, self._clips = seed, clips
        self._order = StreamOrder(
            clips.windows_E, clips.bytes_E, clips.sessions, clips.max_bytes, seed
        )
        self._reading: dict[int, Reading] = {}

    def batch(
        self, samples_consumed: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> np.ndarray:
        """Return this rank's windows of the global batch at `samples_consumed`, int64 (batch_size /
        ranks,).
        """
        if batch_size % ranks:
            raise InputError(
                f"a batch of {batch_size} does not split over {ranks} workers: make it a multiple"
            )
        numbers = np.arange(samples_consumed, samples_consumed + batch_size)
        own = numbers[numbers % ranks == rank]
        if not self._reading:
            self._fill(samples_consumed, rank, ranks)
        draws = self._order.draw(own)
        self._read_ahead(own, draws)
        return self._clips.first_windows(draws.sessions) + draws.offsets

    def epoch(self, samples_consumed: int) -> float:
        """Return the passes over the data so far, in [0, inf)."""
        return samples_consumed / self._order.windows

    def _fill(self, number: int, rank: int, ranks: int) -> None:
        """Read the sessions that this rank draws from first, and wait for them; later ones are
        prefetched.
        """
        common = math.gcd(self._order.lanes, ranks)
        first = [
            self._order.first_draw(slot, number)
            for slot in range(rank % common, self._order.lanes, common)
        ]
        futures = self._enter(np.array(first), self._order.draw(np.array(first)))
        with progress("filling the buffer of sessions", len(futures)) as bar:
            for future in futures:
                future.exception()
                bar.advance()

    def _read_ahead(self, numbers: np.ndarray, draws: Draws) -> None:
        """Prefetch as large a share of each following block as is drawn of the current one."""
        self._enter(numbers, draws)
        columns = (numbers % self._order.lanes, draws.epochs, draws.blocks, draws.done)
        for slot, *block, done in zip(*(column.tolist() for column in columns), strict=True):
            reading = self._reading[slot]
            wanted = int(done * len(reading.following))
            if reading.block == tuple(block) and wanted > reading.ahead:
                self._clips.buffer.prefetch(reading.following[reading.ahead : wanted])
                reading.ahead = wanted

    def _enter(self, numbers: np.ndarray, draws: Draws) -> list[Future[LoadedSession]]:
        """Register blocks that are drawn from for the first time, and prefetch their sessions."""
        places = zip(draws.epochs.tolist(), draws.blocks.tolist(), strict=True)
        new: list[int] = []
        for slot, place in zip((numbers % self._order.lanes).tolist(), places, strict=True):
            if slot not in self._reading or self._reading[slot].block != place:
                sessions = self._order.epoch(place[0]).sessions(place[1])
                self._reading[slot] = Reading(place, sessions, self._order.following(slot, *place))
                new += sessions
        if not new:
            return []
        # What is in use is not what was asked for the longest ago, even where it is seldom drawn.
        used = [session for reading in self._reading.values() for session in reading.sessions]
        self._clips.buffer.pin(
            [*used, *(s for r in self._reading.values() for s in r.following[: r.ahead])]
        )
        return self._clips.buffer.prefetch(dict.fromkeys(new))


class SessionBuffer:
    """Least-recently-used cache of sessions, loaded by threads; safe for use by many threads."""

    def __init__(
        self,
        load: Callable[[int], LoadedSession],
        bytes_E: np.ndarray,
        sessions: int,
        max_bytes: int,
        readers: int,
    ) -> None:
        self._load, self._bytes_E, self._sessions, self._max_bytes = (
            load,
            bytes_E,
            sessions,
            max_bytes,
        )
        self._held: OrderedDict[int, Future[LoadedSession]] = OrderedDict()
        self._bytes = 0.0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(readers, "read")

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> float:
        """Compressed bytes held."""
        return self._bytes

    def prefetch(self, places: Iterable[int]) -> list[Future[LoadedSession]]:
        """Start loading missing sessions, and mark all of them as most recently used, in order."""
        with self._lock:
            return [self._prefetch_one(place) for place in places]

    def pin(self, places: Iterable[int]) -> None:
        """Mark sessions in the buffer as most recently used."""
        with self._lock:
            for place in places:
                if place in self._held:
                    self._held.move_to_end(place)

    def get(self, place: int) -> LoadedSession:
        """Return a session, waiting for it. Raise what loading it raised."""
        while True:
            with self._lock:
                future = self._prefetch_one(place)
            try:
                return future.result()
            except CancelledError:
                continue  # let go by another thread before it was read: ask again

    def cancel(self) -> None:
        """Cancel sessions that have not begun to load."""
        with self._lock:
            for place in [place for place, future in self._held.items() if future.cancel()]:
                self._bytes -= self._bytes_E[place]
                del self._held[place]

    def _prefetch_one(self, place: int) -> Future[LoadedSession]:
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
