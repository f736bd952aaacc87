"""Order in which windows of streamed sessions are drawn, the same for any number of ranks.

An epoch is a pass over all windows, session after session in a shuffled order, cut into L lanes of
equal length (but for one window). Draw i of the epoch comes from lane i mod L, so that ranks whose
number divides L read sessions of their own, but for those that a cut divides. A lane is cut into
blocks, few enough sessions that the blocks of all lanes fill half of the memory granted; the
windows of a block are drawn in a shuffled order.
"""

from dataclasses import dataclass

import numpy as np

from envs.utils.errors import InputError
from worldmodel.data.sampler import feistel_permutation, key_of, mixed

LANES = 240
"""The most lanes. Many numbers of ranks divide it: 1 to 6, 8, 10, 12, 15, 16, 20, 24, ..."""


@dataclass(frozen=True)
class Epoch:
    """One pass over all windows, sessions in order. A place is a window's number in that pass."""

    order_N: np.ndarray
    """Sessions in their order."""
    ends_N: np.ndarray
    """Places at which they end."""
    lanes: np.ndarray
    """Places at which lanes begin, and the last ends; int64 (L + 1,)."""
    blocks: np.ndarray
    """Places at which blocks begin, and the last ends; every lane begins with one. int64 (blocks +
    1,)."""

    def sessions(self, block: int) -> list[int]:
        """Return the sessions that a block holds windows of."""
        first, last = np.searchsorted(
            self.ends_N, [self.blocks[block], self.blocks[block + 1] - 1], side="right"
        )
        return [int(session) for session in self.order_N[first : last + 1]]

    def block_of(self, places: np.ndarray) -> np.ndarray:
        """Return the block of each place."""
        return np.searchsorted(self.blocks, places, side="right") - 1


@dataclass(frozen=True)
class Draws:
    """Some draws of the sequence, int64 (N,) each but the last."""

    sessions: np.ndarray
    offsets: np.ndarray
    """Numbers of the windows among those of their sessions."""
    epochs: np.ndarray
    blocks: np.ndarray
    done: np.ndarray
    """Share of its block that is drawn after this draw, in (0, 1]."""


class StreamOrder:
    """The endless sequence of draws from sessions with so many windows and bytes, at most
    `sessions` and `max_bytes` of them in memory. Computed, not stored. Raise InputError where
    there is no window.
    """

    def __init__(
        self, windows_E: np.ndarray, bytes_E: np.ndarray, sessions: int, max_bytes: float, seed: int
    ) -> None:
        self._windows_E, self._bytes_E, self.seed = windows_E, bytes_E, seed
        self._sessions = np.flatnonzero(windows_E)
        if not len(self._sessions):
            raise InputError(
                "no window to sample from: the episodes are shorter than a clip; give longer ones"
            )
        self.windows = int(windows_E.sum())
        fit = min(sessions, int(max_bytes / bytes_E[self._sessions].mean()), len(self._sessions))
        # Two sessions a lane must fit: one that is drawn from, and one that is read meanwhile.
        self.lanes = max(
            lanes
            for lanes in range(1, LANES + 1)
            if LANES % lanes == 0 and lanes <= max(1, fit // 2)
        )
        self._block_sessions, self._block_bytes = (
            max(1, sessions // (2 * self.lanes)),
            max_bytes / (2 * self.lanes),
        )
        self._epochs: dict[int, Epoch] = {}

    def draw(self, numbers: np.ndarray) -> Draws:
        """Compute draws by number, counted from 0 over all epochs. int64 (N,)"""
        epochs = numbers // self.windows
        parts = [
            self._draw(int(epoch), numbers[epochs == epoch] % self.windows)
            for epoch in np.unique(epochs)
        ]
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        sessions, offsets, blocks, done = columns  # numbers ascend, so epochs follow each other
        return Draws(sessions, offsets, epochs, blocks, done)

    def first_draw(self, slot: int, number: int) -> int:
        """Return the first draw from `number` on whose number modulo L is `slot`. The draws of a
        slot pass through one lane of an epoch, and then through one of the next.
        """
        return number + (slot - number) % self.lanes

    def following(self, slot: int, number: int, block: int) -> list[int]:
        """Return the sessions of the block that a slot draws from after one of epoch `number`."""
        epoch = self.epoch(number)
        if epoch.blocks[block + 1] not in epoch.lanes:
            return epoch.sessions(block + 1)
        epoch, number = self.epoch(number + 1), number + 1
        lane = (slot - number * self.windows) % self.lanes
        return epoch.sessions(int(epoch.block_of(epoch.lanes[[lane]])[0]))

    def epoch(self, number: int) -> Epoch:
        """Compute how a pass over the data is divided into lanes and blocks."""
        if number not in self._epochs:
            order = self._sessions[
                shuffled(len(self._sessions), key_of(self.seed, "epoch", number))
            ]
            ends = self._windows_E[order].cumsum()
            # Lane l has the draws l, l + L, ...: so many of them are below the number of windows.
            lengths = (self.windows - np.arange(self.lanes) + self.lanes - 1) // self.lanes
            lanes = np.concatenate([[0], lengths.cumsum()])
            blocks: list[int] = []
            for start, end in zip(lanes[:-1].tolist(), lanes[1:].tolist(), strict=True):
                first, last = np.searchsorted(ends, [start, end - 1], side="right").tolist()
                cuts = cut(
                    self._bytes_E[order[first : last + 1]], self._block_sessions, self._block_bytes
                )
                blocks += [start, *(int(ends[first + place - 1]) for place in cuts[1:-1])]
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = Epoch(order, ends, lanes, np.array([*blocks, self.windows]))
        return self._epochs[number]

    def _draw(
        self, number: int, inside: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Compute (sessions, offsets, blocks, share done) of draws of one epoch."""
        epoch = self.epoch(number)
        places = epoch.lanes[inside % self.lanes] + inside // self.lanes
        blocks = epoch.block_of(places)
        first, size = epoch.blocks[blocks], np.diff(epoch.blocks)[blocks]
        keys = mixed(key_of(self.seed, "windows", number), blocks)
        at = first + feistel_permutation((places - first).astype(np.uint64), size, keys).astype(
            np.int64
        )
        turns = np.searchsorted(epoch.ends_N, at, side="right")
        sessions = epoch.order_N[turns]
        offsets = at - epoch.ends_N[turns] + self._windows_E[sessions]
        return sessions, offsets, blocks, (places + 1 - first) / size


def shuffled(count: int, key: np.uint64) -> np.ndarray:
    """Return 0 to count - 1 in the order of a key, int64 (count,)."""
    return feistel_permutation(
        np.arange(count, dtype=np.uint64), count, np.full(count, key)
    ).astype(np.int64)


def cut(bytes_N: np.ndarray, sessions: int, max_bytes: float) -> list[int]:
    """Cut a list into parts of at most `sessions` sessions and `max_bytes`, at least one session
    each.
    """
    cuts, size = [0], 0.0
    for place, more in enumerate(bytes_N.tolist()):
        if place > cuts[-1] and (place - cuts[-1] == sessions or size + more > max_bytes):
            cuts.append(place)
            size = 0.0
        size += more
    return [*cuts, len(bytes_N)]
