"""Batches of segments whose frames are still compressed, on their way to the learners.

Shapes: B segments of T steps.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exploration.agent.compressed_frames import Clip

THREADS = min(4, os.cpu_count() or 1)
"""Threads that decompress the frames of a batch."""
Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PackedBatch:
    """Segments whose frames are still compressed: 2 instead of 34 MB at the paper's sizes."""

    columns: Batch
    """Arrays of `ReplayBuffer.sample`, without obs; h and c are still in half precision."""
    clips: list[Clip]
    """T + 1 frames of each segment, or fewer at the end of a fragment."""
    shape: tuple[int, ...]
    """Shape of one frame: (H, W, C)."""

    def shares(self, learners: int) -> list["PackedBatch"]:
        """Deal the whole segments out to the learners.

        `count` makes the mean of the losses of several that of the whole batch, see
        `actor_critic_loss`.
        """
        if learners == 1:
            return [self]
        count = max(self.columns["learn"].sum(), 1) / learners
        counts_B = np.full(len(self.clips), count, np.float32)
        return replace(self, columns=self.columns | {"count": counts_B}).parts(learners)

    def parts(self, count: int) -> list["PackedBatch"]:
        """Deal the segments out into so many batches; none is cut."""
        return [
            PackedBatch(
                {name: rows[part::count] for name, rows in self.columns.items()},
                self.clips[part::count],
                self.shape,
            )
            for part in range(count)
        ]

    def unpack(self) -> Batch:
        """Decompress the frames; return the arrays of `ReplayBuffer.sample`."""
        size, length = self.columns["valid"].shape
        obs_BTHWC = np.zeros((size, length + 1, *self.shape), np.uint8)
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(Clip.write, self.clips, obs_BTHWC))
        states = {name: self.columns[name].astype(np.float32) for name in ("h", "c")}
        return {"obs": obs_BTHWC, **self.columns, **states}

    def __reduce__(self) -> Any:
        """Pickle all blocks as one array, which Ray sends without another copy."""
        blocks = [data for clip in self.clips for data in clip.blocks]
        joined = np.frombuffer(b"".join(blocks), np.uint8)
        plain = [(len(clip.blocks), clip.skip, clip.frames) for clip in self.clips]
        return _unpickled, (self.columns, joined, list(map(len, blocks)), plain, self.shape)


def _unpickled(
    columns: Batch,
    joined: NDArray[np.uint8],
    sizes: list[int],
    plain: list[tuple[int, int, int]],
    shape: tuple[int, ...],
) -> PackedBatch:
    """Cut the array of all blocks into those of each clip, without copying them."""
    spans = zip(sizes, accumulate(sizes), strict=True)
    blocks = (joined.data[end - size : end] for size, end in spans)
    clips = [Clip(tuple(islice(blocks, count)), skip, frames) for count, skip, frames in plain]
    return PackedBatch(columns, clips, shape)
