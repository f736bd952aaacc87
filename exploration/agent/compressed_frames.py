"""Frames of consecutive steps, compressed in memory in blocks, of which a few that were read last
stay open.

Neighbouring frames of a game share nearly everything: a block takes a few per cent of its pixels'
bytes, and is opened in a fraction of a millisecond.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

BLOCK = 32
"""Frames in a block: a segment of 21 touches 1.6 of them on average."""
LEVEL = 1
CACHED = 64
"""Blocks that a `BlockCache` keeps open: 25 MB at 64x64 pixels."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some frames, compressed. Compared and hashed by identity."""

    data: bytes
    frames: int


@dataclass(frozen=True)
class CompressedFrames:
    """Frames uint8 (T, H, W, C), compressed."""

    blocks: tuple[Block, ...]
    shape: tuple[int, ...]
    """Shape of one frame: (H, W, C)."""

    @classmethod
    def of(cls, frames_THWC: NDArray[np.uint8]) -> "CompressedFrames":
        """Compress frames."""
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        parts = [
            np.ascontiguousarray(frames_THWC[at : at + BLOCK])
            for at in range(0, len(frames_THWC), BLOCK)
        ]
        blocks = tuple(
            Block(compressor.compress(part.data), len(part)) for part in parts if len(part)
        )
        return cls(blocks, frames_THWC.shape[1:])

    def __len__(self) -> int:
        """Count the frames."""
        return sum(block.frames for block in self.blocks)

    @property
    def bytes(self) -> int:
        """Compressed size in memory."""
        return sum(len(block.data) for block in self.blocks)

    def read(self, start: int, stop: int, cache: "BlockCache | None" = None) -> NDArray[np.uint8]:
        """Return the frames from `start` up to, not including, `stop` as an array."""
        parts, at = [], 0
        for block in self.blocks:
            end = at + block.frames
            if at < stop and end > start:
                frames_THWC = (
                    open_block(block, self.shape)
                    if cache is None
                    else cache.open(block, self.shape)
                )
                parts.append(frames_THWC[max(start - at, 0) : stop - at])
            at = end
        return np.concatenate(parts) if parts else np.empty((0, *self.shape), np.uint8)

    def joined(self, later: "CompressedFrames") -> "CompressedFrames":
        """Append later frames.

        Short blocks at the seam are merged, so that many short pieces do not stay short.
        """
        if (
            not self.blocks
            or not later.blocks
            or self.blocks[-1].frames + later.blocks[0].frames > BLOCK
        ):
            return CompressedFrames(self.blocks + later.blocks, self.shape)
        seam = CompressedFrames((self.blocks[-1], later.blocks[0]), self.shape)
        middle = CompressedFrames.of(seam.read(0, len(seam)))
        return CompressedFrames(self.blocks[:-1] + middle.blocks + later.blocks[1:], self.shape)

    def without_last(self) -> "CompressedFrames":
        """Return all frames but the last."""
        block = self.blocks[-1]
        kept = CompressedFrames.of(open_block(block, self.shape)[:-1])
        return CompressedFrames(self.blocks[:-1] + kept.blocks, self.shape)


def open_block(block: Block, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decompress the frames of a block, read-only."""
    data = zstandard.ZstdDecompressor().decompress(block.data)
    return np.frombuffer(data, np.uint8).reshape(block.frames, *shape)


class BlockCache:
    """Cache of the blocks decompressed last, as arrays."""

    def __init__(self, size: int = CACHED) -> None:
        self._size = size
        self._open: OrderedDict[Block, NDArray[Any]] = OrderedDict()

    def open(self, block: Block, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return the frames of a block, read-only, from the cache where it has them."""
        if block not in self._open:
            self._open[block] = open_block(block, shape)
            if len(self._open) > self._size:
                self._open.popitem(last=False)
        self._open.move_to_end(block)
        return self._open[block]
