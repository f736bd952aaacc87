"""Frames of consecutive steps, compressed in memory in short blocks.

Neighbouring frames of a game are nearly the same: a block takes a few per cent of the bytes of its
pixels, and is decompressed in a fraction of a millisecond.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import zstandard
from numpy.typing import NDArray

BLOCK = 32
"""Frames in a block: a segment of 21 frames touches 1.6 of them on average."""
LEVEL = 1
"""Compression level of zstd."""


def decompress_block(data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decompress a block, whose frames have this shape; the array is read-only."""
    pixels = zstandard.ZstdDecompressor().decompress(data)
    return np.frombuffer(pixels, np.uint8).reshape(-1, *shape)


@dataclass(frozen=True)
class Clip:
    """Consecutive frames, still compressed."""

    blocks: tuple[bytes | memoryview, ...]
    skip: int
    """Frames of the first block that come before the clip."""
    frames: int

    def write(self, into_THWC: NDArray[np.uint8]) -> None:
        """Decompress the frames into the beginning of an array."""
        at = -self.skip
        for data in self.blocks:
            part_THWC = decompress_block(data, into_THWC.shape[1:])[max(-at, 0) : self.frames - at]
            at = max(at, 0)
            into_THWC[at : at + len(part_THWC)] = part_THWC
            at += len(part_THWC)


@dataclass(frozen=True)
class CompressedFrames:
    """Frames uint8 (T, H, W, C), compressed without loss."""

    blocks: tuple[bytes, ...]
    counts: tuple[int, ...]
    """Number of frames in each block."""
    shape: tuple[int, ...]
    """Shape of one frame: (H, W, C)."""

    @classmethod
    def of(cls, frames_THWC: NDArray[np.uint8]) -> "CompressedFrames":
        """Compress frames."""
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        parts = [frames_THWC[at : at + BLOCK] for at in range(0, len(frames_THWC), BLOCK)]
        blocks = tuple(compressor.compress(np.ascontiguousarray(part).data) for part in parts)
        return cls(blocks, tuple(map(len, parts)), frames_THWC.shape[1:])

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._ends[-1]

    def block_sizes(self) -> list[list[int]]:
        """Return the number of frames and of bytes of each block."""
        return [[n, len(data)] for n, data in zip(self.counts, self.blocks, strict=True)]

    @cached_property
    def _ends(self) -> list[int]:
        """Number of frames up to the end of each block."""
        return list(accumulate(self.counts))

    def clip(self, start: int, stop: int) -> Clip:
        """Return the frames from `start` up to, but not including, `stop`."""
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop)
        skip = start - self._ends[first] + self.counts[first]
        return Clip(self.blocks[first : last + 1], skip, stop - start)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Decompress the frames from `start` up to, but not including, `stop`."""
        clip = self.clip(start, stop)
        frames_THWC = np.empty((clip.frames, *self.shape), np.uint8)
        clip.write(frames_THWC)
        return frames_THWC

    def extended(self, later: "CompressedFrames") -> "CompressedFrames":
        """Append later frames, the first of which is the last of these; it is kept once.

        Short blocks at the seam become one.
        """
        last_THWC, after = decompress_block(self.blocks[-1], self.shape)[:-1], 0
        if len(last_THWC) + later.counts[0] <= BLOCK:
            first_THWC = decompress_block(later.blocks[0], self.shape)
            last_THWC, after = np.concatenate([last_THWC, first_THWC]), 1
        seam = CompressedFrames.of(last_THWC)
        return CompressedFrames(
            self.blocks[:-1] + seam.blocks + later.blocks[after:],
            self.counts[:-1] + seam.counts + later.counts[after:],
            self.shape,
        )
