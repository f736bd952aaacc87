"""Frames of consecutive steps, compressed in memory in short blocks.

Neighbouring frames of a game are nearly the same: a block takes a few per cent of the bytes of its
pixels, and is decompressed in a fraction of a millisecond.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

BLOCK = 32
"""Frames in a block: a segment of 21 frames touches 1.6 of them on average."""
LEVEL = 1
"""Compression level of zstd."""


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """Compressed frames. Compared and hashed by identity."""

    data: bytes
    frames: int


def decompress_block(block: FrameBlock, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decompress the frames of a block, each of this shape; the array is read-only."""
    data = zstandard.ZstdDecompressor().decompress(block.data)
    return np.frombuffer(data, np.uint8).reshape(block.frames, *shape)


@dataclass(frozen=True)
class CompressedFrames:
    """Frames uint8 (T, H, W, C), compressed without loss."""

    blocks: tuple[FrameBlock, ...]
    shape: tuple[int, ...]
    """Shape of one frame: (H, W, C)."""

    @classmethod
    def of(cls, frames_THWC: NDArray[np.uint8]) -> "CompressedFrames":
        """Compress frames."""
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        parts = (frames_THWC[at : at + BLOCK] for at in range(0, len(frames_THWC), BLOCK))
        blocks = tuple(
            FrameBlock(compressor.compress(np.ascontiguousarray(part).data), len(part))
            for part in parts
        )
        return cls(blocks, frames_THWC.shape[1:])

    def __len__(self) -> int:
        """Return the number of frames."""
        return sum(block.frames for block in self.blocks)

    def read(
        self,
        start: int,
        stop: int,
        decompress: Callable[[FrameBlock, tuple[int, ...]], NDArray[np.uint8]] = decompress_block,
    ) -> NDArray[np.uint8]:
        """Return the frames from `start` up to, but not including, `stop`.

        `decompress`: may be a cached `decompress_block`.
        """
        parts, at = [], 0
        for block in self.blocks:
            end = at + block.frames
            if at < stop and end > start:
                parts.append(decompress(block, self.shape)[max(start - at, 0) : stop - at])
            at = end
        return np.concatenate(parts) if parts else np.empty((0, *self.shape), np.uint8)

    def extended(self, later: "CompressedFrames") -> "CompressedFrames":
        """Append later frames, the first of which is the last of these; it is kept once.

        Short blocks at the seam become one.
        """
        before, first = self.blocks[:-1], later.blocks[0]
        last_THWC = decompress_block(self.blocks[-1], self.shape)[:-1]
        after = later.blocks
        if len(last_THWC) + first.frames <= BLOCK:
            last_THWC = np.concatenate([last_THWC, decompress_block(first, self.shape)])
            after = later.blocks[1:]
        seam = CompressedFrames.of(last_THWC).blocks
        return CompressedFrames(before + seam + after, self.shape)
