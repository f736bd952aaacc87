"""Order of the frames in one pass: attention masks, and the frames that the PEG reads.

Shapes: F frames, P cached frames, S = P + F, H heads.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PEG_FRAMES = 2
"""Earlier frames that a positional encoding generator (PEG) reads, besides the frame itself."""

FrameIndex = slice | Tensor
"""Frames of a slice, or those of an index."""
TemporalTaps = tuple[tuple[FrameIndex, FrameIndex], ...]
"""Frames that are read and frames that read them, for each earlier frame of the PEG's kernel, the
earliest first."""


@dataclass(frozen=True, eq=False)
class FrameOrder:
    """Time of each frame, the frames that it attends to, and the two frames before it."""

    frame_idx_S: Tensor
    """Time of each frame, cached ones first."""
    attend_FS: Tensor
    """True if a frame (row) attends to another (column)."""
    previous_2F: Tensor | None = None
    """Index of the frame two before (row 0) and one before (row 1), -1 for none. None if frames are
    consecutive; only such frames can follow a cache."""

    @classmethod
    def consecutive(
        cls,
        frames: int,
        cached: int = 0,
        device: torch.device | None = None,
        window: int | None = None,
    ) -> "FrameOrder":
        """Return the order of `frames` frames of a clip that follow `cached` finished ones.

        With a `window` each attends to that many frames at most, its own included.
        """
        frame_idx = torch.arange(cached + frames, device=device)
        age = frame_idx[cached:, None] - frame_idx[None, :]
        attend = age >= 0 if window is None else (age >= 0) & (age < window)
        return cls(frame_idx, attend)

    def peg_frames(self) -> Tensor:
        """Return the frames that the PEG reads at each frame that is not consecutive, (3, F).

        They are the index of the frame two before, of the one before, -1 for none, and its own.
        """
        assert self.previous_2F is not None
        own = torch.arange(len(self.attend_FS), device=self.attend_FS.device)
        return torch.cat([self.previous_2F, own[None]])

    def temporal_taps(self, frames: int) -> TemporalTaps:
        """Return the same as pairs of frames, for the CPU kernels.

        `frames` is the number of frames including cached PEG inputs.
        """
        if self.previous_2F is None:
            return tuple((slice(0, max(frames - lag, 0)), slice(lag, frames)) for lag in (2, 1))
        return self._linked_taps

    @cached_property
    def _linked_taps(self) -> TemporalTaps:
        assert self.previous_2F is not None
        targets = [(row >= 0).nonzero().flatten() for row in self.previous_2F]
        rows = zip(self.previous_2F, targets, strict=True)
        return tuple((row[target], target) for row, target in rows)

    def alibi_bias(self, slopes_H: Tensor) -> Tensor:
        """Compute the bias of temporal attention, (H, F, S).

        It is -slope * distance in frames, and -inf for hidden frames.
        """
        frame_idx = self.frame_idx_S
        query_idx = frame_idx[len(frame_idx) - len(self.attend_FS) :]
        distance = query_idx[:, None] - frame_idx[None, :]
        bias = -slopes_H[:, None, None] * distance
        return bias.masked_fill(~self.attend_FS, -torch.inf)


@dataclass(frozen=True)
class CleanNoisyLayout:
    """Clean frames 0..T-2 and masked ("noisy") copies of frames 1..T-1 in one pass, in chunks.

    A noisy frame attends to the clean frames before its chunk and to the noisy frames of its chunk
    up to itself, as in sampling a chunk after finished frames. Clean frame T-1 is left out, since
    nothing attends to it.
    """

    order: FrameOrder
    frame_idx_F: Tensor
    """Frame of the clip for each of the 2T-2 frames of the pass."""

    @classmethod
    def of(cls, starts: list[int], frames: int, device: torch.device) -> "CleanNoisyLayout":
        """Lay out a clip of T = `frames` frames.

        `starts` holds the first frame of each chunk, ascending, from 1 on. Frames before the first
        start are not predicted.
        """
        # Four frames in chunks [1, 2] and [3] (starts = [1, 3]), clean c and noisy n. An x means
        # that the row attends to the column.
        #
        #        c0 c1 c2  n1 n2 n3
        #    c0   x  .  .   .  .  .     clean frames attend to clean ones, causally
        #    c1   x  x  .   .  .  .
        #    c2   x  x  x   .  .  .
        #    n1   x  .  .   x  .  .     the first chunk sees clean frame 0
        #    n2   x  .  .   x  x  .     and, causally, its own noisy frames
        #    n3   x  x  x   .  .  x     the second chunk sees clean frames 0 to 2
        clean = torch.arange(frames - 1, device=device)
        noisy = torch.arange(starts[0], frames, device=device)
        frame_idx = torch.cat([clean, noisy])
        is_noisy = torch.arange(len(frame_idx), device=device) >= len(clean)

        # First frame that each frame sees noisy instead of clean: the start of its chunk. A clean
        # frame sees none.
        chunk_starts = torch.tensor(starts, device=device)
        own_start = chunk_starts[torch.searchsorted(chunk_starts, noisy, right=True) - 1]
        noisy_start = torch.cat([torch.full_like(clean, frames), own_start])

        causal = frame_idx[None, :] <= frame_idx[:, None]
        seen_noisy = frame_idx[None, :] >= noisy_start[:, None]
        attend = causal & (seen_noisy == is_noisy[None, :])

        # Index in the pass of the frames two and one before: noisy inside the chunk, otherwise
        # clean, -1 before frame 0.
        previous = []
        for lag in (2, 1):
            earlier = frame_idx - lag
            noisy_index = len(clean) + earlier - starts[0]
            index = torch.where(earlier >= noisy_start, noisy_index, earlier)
            previous.append(index.clamp_min(-1))
        return cls(FrameOrder(frame_idx, attend, torch.stack(previous)), frame_idx)
