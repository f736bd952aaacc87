"""Frames of consecutive steps, compressed in memory in short blocks.

Neighbouring frames of a game are nearly the same: a block takes a few per cent of the bytes of its
pixels, and is decompressed in a fraction of a millisecond.
"""

from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

BLOCK = 32
"""Frames in a block: a segment of 21 frames touches 1.6 of them on average."""
LEVEL = 1
"""Compression level of zstd."""


@dataclass(frozen=True)
class FrameBlock:
    """Compressed frames."""

    data: bytes
    frames: int


def decompress_block(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decompress the data of a block, whose frames have this shape; the array is read-only."""
    pixels = zstandard.ZstdDecompressor().decompress(data)
    return np.frombuffer(pixels, np.uint8).reshape(-1, *shape)


@dataclass(frozen=True)
class Clip:
    """Consecutive frames, still compressed."""

    blocks: tuple[bytes, ...]
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

    def clip(self, start: int, stop: int) -> Clip:
        """Return the frames from `start` up to, but not including, `stop`."""
        blocks: list[bytes] = []
        skip = at = 0
        for block in self.blocks:
            end = at + block.frames
            if at < stop and end > start:
                skip = skip if blocks else start - at
                blocks.append(block.data)
            at = end
        return Clip(tuple(blocks), skip, min(stop, at) - start)

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
        before, first = self.blocks[:-1], later.blocks[0]
        last_THWC = decompress_block(self.blocks[-1].data, self.shape)[:-1]
        after = later.blocks
        if len(last_THWC) + first.frames <= BLOCK:
            last_THWC = np.concatenate([last_THWC, decompress_block(first.data, self.shape)])
            after = later.blocks[1:]
        seam = CompressedFrames.of(last_THWC).blocks
        return CompressedFrames(before + seam + after, self.shape)
