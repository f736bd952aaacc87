"""Where and when a patch is: order of frames, positional encoding generator, position bias, ALiBi (spec: section 1).

Shapes: B clips, F frames, P frames of the past, S = P + F frames that can be seen, N = h*w patches, D width, H heads.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PEG_FRAMES = 2
"""Frames before its own that a positional encoding generator reads."""


Places = slice | Tensor
"""Which frames: those of a slice or those of an index."""
Links = tuple[tuple[Places, Places], ...]
"""For each tap in time that reads an earlier frame, the oldest first: (frames that are read, frames that read them)."""


class Timeline:
    """Order of frames: `times_S` when each happens, `sees_FS` what each attends to, `before_2F` which two precede it.

    S counts the frames of the past, then the frames themselves. `before_2F`, row 0 two frames earlier and row 1 one,
    counts in the frames themselves, -1 for none. It is None where the frames are a film, each after the one before
    it; only a film can go on from a past.
    """

    def __init__(self, times_S: Tensor, sees_FS: Tensor, before_2F: Tensor | None = None) -> None:
        self.times_S, self.sees_FS, self.before_2F = times_S, sees_FS, before_2F
        self._links: dict[int, Links] = {}

    @classmethod
    def film(cls, frames: int, past: int = 0, device: torch.device | None = None) -> "Timeline":
        """`frames` frames of a film that go on from `past` finished ones."""
        times = torch.arange(past + frames, device=device)
        return cls(times, times[None, :] <= times[past:, None])

    def links(self, known: int) -> Links:
        """What the PEG reads of `known` frames: the last of the past, where there is one, and the timeline's own."""
        if known not in self._links:
            self._links[known] = self._find_links(known)
        return self._links[known]

    def _find_links(self, known: int) -> Links:
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


class PositionGenerator(nn.Module):
    """PEG: depthwise 3x3x3 convolution, zeros around a frame, causal in time. It tells a patch where it is.

    The same as `conv3d` with padding (2 past, 1, 1), computed as a 2-D convolution for each of the three frames that
    it reads: CPUs have fast kernels for those (10 times faster in bf16), and the frames need not be neighbours.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, PEG_FRAMES + 1, 3, 3))
        nn.init.uniform_(self.weight, -1 / math.sqrt(27), 1 / math.sqrt(27))

    def forward(self, x_BFhwD: Tensor, timeline: Timeline, tail_BPhwD: Tensor | None) -> Tensor:
        known = x_BFhwD if tail_BPhwD is None else torch.cat([tail_BPhwD, x_BFhwD], 1)
        links = timeline.links(known.shape[1])
        dtype = compute_dtype(known)
        made: Tensor = _LinkedConvolution.apply(known.to(dtype), self.weight.to(dtype), links)
        return made if tail_BPhwD is None else made[:, PEG_FRAMES:]


class _LinkedConvolution(torch.autograd.Function):
    """Sum of 2-D depthwise convolutions of a frame and of the frames that `links` names for each tap in time.

    Written by hand because slices, pads and sums of single frames cost more than the convolutions themselves, and
    because a CPU convolves twice as fast with the kernel turned round as it finds the gradient of what was convolved.
    """

    @staticmethod
    def forward(ctx: Any, x_BShwD: Tensor, weight: Tensor, links: Links) -> Tensor:
        ctx.save_for_backward(x_BShwD, weight)
        ctx.links = links
        return _linked(x_BShwD, weight, links)

    @staticmethod
    def backward(ctx: Any, grad_BShwD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BShwD, weight = ctx.saved_tensors
        to_weight = torch.zeros_like(weight)
        for tap, (source, target) in enumerate((*ctx.links, (slice(None), slice(None)))):
            grad, x = _images(_frames(grad_BShwD, target)), _images(_frames(x_BShwD, source))
            if len(x):
                to_weight[:, :, tap] = torch.ops.aten.convolution_backward(
                    grad, x, weight[:, :, tap], None, (1, 1), (1, 1), (1, 1), False, (0, 0), len(weight),
                    (False, True, False),
                )[1]  # fmt: skip
        back = tuple((target, source) for source, target in ctx.links)
        return _linked(grad_BShwD, weight.flip(3, 4), back), to_weight, None


def _linked(x_BShwD: Tensor, weight: Tensor, links: Links) -> Tensor:
    """What each frame becomes by itself and by the frames that it reads."""
    made = _convolved(x_BShwD, weight[:, :, PEG_FRAMES]).contiguous()
    for tap, (source, target) in enumerate(links):
        read = _frames(x_BShwD, source)
        if not read.shape[1]:
            continue
        part = _convolved(read, weight[:, :, tap])
        if isinstance(target, slice):
            made[:, target] += part
        else:
            made.index_add_(1, target, part)
    return made


def _convolved(x_BFhwD: Tensor, weight: Tensor) -> Tensor:
    images = F.conv2d(_images(x_BFhwD), weight, padding=1, groups=len(weight))
    return images.permute(0, 2, 3, 1).unflatten(0, x_BFhwD.shape[:2])


def _frames(x_BShwD: Tensor, places: Places) -> Tensor:
    return x_BShwD[:, places] if isinstance(places, slice) else x_BShwD.index_select(1, places)


def _images(x_BFhwD: Tensor) -> Tensor:
    return x_BFhwD.flatten(0, 1).permute(0, 3, 1, 2)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that autocast computes in where it is on, else that of x: for functions that autocast does not know."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class PositionBias(nn.Module):
    """Continuous position bias: an MLP from the offset between two patches to a bias for each head.

    A grid of n x n patches has only (2n-1)^2 distinct offsets (961 for 16x16): the MLP runs on those and its results
    are gathered. Offsets enter as sign(x) log(1 + |x|), as in Swin v2 and the published code.
    """

    offsets: Tensor
    index: Tensor

    def __init__(self, grid: int, dim: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, dim), nn.LeakyReLU(0.1), nn.Linear(dim, dim), nn.LeakyReLU(0.1), nn.Linear(dim, heads)
        )
        steps = torch.arange(-(grid - 1), grid)
        offsets = torch.cartesian_prod(steps, steps).float()
        self.register_buffer("offsets", offsets.sign() * offsets.abs().log1p(), persistent=False)
        place = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
        relative = place[:, None] - place[None, :] + grid - 1
        self.register_buffer("index", relative[..., 0] * (2 * grid - 1) + relative[..., 1], persistent=False)

    def forward(self) -> Tensor:
        """-> (H, N, N)."""
        bias_OH = self.layers(self.offsets)
        return bias_OH.T.index_select(1, self.index.flatten()).unflatten(1, self.index.shape)
