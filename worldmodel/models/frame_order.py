"""Order of the frames in one pass: attention masks and taps of the temporal convolution.

Shapes: F frames, S = P + F frames that can be seen, with P frames of the past, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PEG_FRAMES = 2
"""Frames before its own that a positional encoding generator reads."""


FrameIndex = slice | Tensor
"""Which frames: those of a slice or those of an index."""
TemporalTaps = tuple[tuple[FrameIndex, FrameIndex], ...]
"""For each tap in time that reads an earlier frame, the oldest first: (frames that are read, frames that read them)."""


class FrameOrder:
    """Order of frames: `times_S` when each happens, `sees_FS` what each attends to, `before_2F` which two precede it.

    S counts the frames of the past, then the frames themselves. `before_2F`, row 0 two frames earlier and row 1 one,
    counts in the frames themselves, -1 for none. It is None where the frames are a film, each after the one before
    it; only a film can go on from a past.
    """

    def __init__(self, times_S: Tensor, sees_FS: Tensor, before_2F: Tensor | None = None) -> None:
        self.times_S, self.sees_FS, self.before_2F = times_S, sees_FS, before_2F
        self._links: dict[int, TemporalTaps] = {}

    @classmethod
    def consecutive(cls, frames: int, past: int = 0, device: torch.device | None = None) -> "FrameOrder":
        """`frames` frames of a film that go on from `past` finished ones."""
        times = torch.arange(past + frames, device=device)
        return cls(times, times[None, :] <= times[past:, None])

    def temporal_taps(self, known: int) -> TemporalTaps:
        """What the PEG reads of `known` frames: the last of the past, where there is one, and the timeline's own."""
        if known not in self._links:
            self._links[known] = self._find_links(known)
        return self._links[known]

    def _find_links(self, known: int) -> TemporalTaps:
        if self.before_2F is None:
            return tuple((slice(0, max(known - late, 0)), slice(late, known)) for late in (2, 1))
        targets = [(row >= 0).nonzero().flatten() for row in self.before_2F]
        return tuple((row[target], target) for row, target in zip(self.before_2F, targets, strict=True))

    def distance_bias(self, slopes_H: Tensor) -> Tensor:
        """ALiBi with the mask in it: -slope * frames of distance, -inf where a frame is not seen. -> (H, F, S)."""
        times = self.times_S
        distance = times[len(times) - len(self.sees_FS) :, None] - times[None, :]
        bias = -slopes_H[:, None, None] * distance
        return bias.masked_fill(~self.sees_FS, -torch.inf)


@dataclass(frozen=True)
class CleanNoisyLayout:
    """Clean frames 0..T-2 and masked copies of frames 1..T-1 in one pass, cut into chunks that are predicted together.

    A masked frame sees the clean frames before its chunk and the masked frames of its chunk up to itself, which is
    what sampling a chunk after finished frames computes. Nothing sees clean frame T-1, so it is left out.
    """

    timeline: FrameOrder
    frames_F: Tensor
    """Which frame of the clip each of the 2T-2 frames of the pass is."""

    @classmethod
    def of(cls, starts: list[int], frames: int, device: torch.device) -> "CleanNoisyLayout":
        """`starts`: the first frame of each chunk, ascending, from 1 on; frames before the first are not predicted."""
        clean = torch.arange(frames - 1, device=device)
        masked = torch.arange(starts[0], frames, device=device)
        bounds = torch.tensor(starts, device=device)
        start = bounds[torch.searchsorted(bounds, masked, right=True) - 1]
        times = torch.cat([clean, masked])
        # First frame that is seen masked, and so the end of what is seen clean, of each frame; a clean one sees none.
        sees_masked = torch.cat([torch.full_like(clean, frames), start])
        is_masked = torch.arange(len(times), device=device) >= len(clean)
        earlier = times[None, :] <= times[:, None]
        inside = times[None, :] >= sees_masked[:, None]
        sees = earlier & (inside == is_masked[None, :])
        before = [cls._place(times - late, sees_masked, len(clean), starts[0]) for late in (2, 1)]
        return cls(FrameOrder(times, sees, torch.stack(before)), times)

    @staticmethod
    def _place(wanted: Tensor, sees_masked: Tensor, clean: int, first: int) -> Tensor:
        """Where in the pass frame `wanted` is: masked inside the chunk, else clean; -1 before frame 0."""
        frame = torch.where(wanted >= sees_masked, clean + wanted - first, wanted)
        return frame.clamp_min(-1)
