"""Where and when a patch is: order of frames, positional encoding generator, position bias, ALiBi (spec: section 1).

Shapes: B clips, F frames, P frames of the past, S = P + F frames that can be seen, N = h*w patches, D width, H heads.
"""

import math

import torch
from torch import Tensor, nn

from worldmodel.models.cpu_kernels import _TemporalConv
from worldmodel.models.frame_order import PEG_FRAMES, FrameOrder


class PEG(nn.Module):
    """PEG: depthwise 3x3x3 convolution, zeros around a frame, causal in time. It tells a patch where it is.

    The same as `conv3d` with padding (2 past, 1, 1), computed as a 2-D convolution for each of the three frames that
    it reads: CPUs have fast kernels for those (10 times faster in bf16), and the frames need not be neighbours.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, PEG_FRAMES + 1, 3, 3))
        nn.init.uniform_(self.weight, -1 / math.sqrt(27), 1 / math.sqrt(27))

    def forward(self, x_BFhwD: Tensor, timeline: FrameOrder, tail_BPhwD: Tensor | None) -> Tensor:
        known = x_BFhwD if tail_BPhwD is None else torch.cat([tail_BPhwD, x_BFhwD], 1)
        temporal_taps = timeline.temporal_taps(known.shape[1])
        dtype = compute_dtype(known)
        made: Tensor = _TemporalConv.apply(known.to(dtype), self.weight.to(dtype), temporal_taps)
        return made if tail_BPhwD is None else made[:, PEG_FRAMES:]


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
