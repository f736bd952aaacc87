"""Position of a patch: positional encoding generator (PEG) and continuous position bias.

Shapes: B clips, F frames, P cached frames, N = h*w patches, D width, H heads, O patch offsets.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.devices import full_precision
from worldmodel.models.frame_order import PEG_FRAMES, FrameOrder


class PEG(nn.Module):
    """Positional encoding generator: a depthwise 3x3x3 convolution, causal in time, zero-padded.

    For frames that are not consecutive it is the same as one 2-D convolution for each of the three
    frames that a `FrameOrder` names.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, PEG_FRAMES + 1, 3, 3))
        nn.init.uniform_(self.weight, -1 / math.sqrt(27), 1 / math.sqrt(27))

    def forward(
        self, x_BFhwD: Tensor, order: FrameOrder, cached_BPhwD: Tensor | None = None
    ) -> Tensor:
        """Encode frames, which follow PEG_FRAMES cached inputs if there is a cache, BFhwD."""
        if order.previous_2F is None:
            return self._encode_consecutive(x_BFhwD, cached_BPhwD)

        # Index -1, no frame, reads a frame of zeros that is put first.
        frames = F.pad(x_BFhwD, (0, 0, 0, 0, 0, 0, 1, 0))
        two_before, one_before, own = (
            F.conv2d(
                rearrange(frames.index_select(1, index_F + 1), "b f h w d -> (b f) d h w"),
                weight,
                padding=1,
                groups=len(weight),
            )
            for index_F, weight in zip(order.peg_frames(), self.weight.unbind(2), strict=True)
        )
        encoded = two_before + one_before + own
        return rearrange(encoded, "(b f) d h w -> b f h w d", b=len(x_BFhwD))

    def _encode_consecutive(self, x_BFhwD: Tensor, cached_BPhwD: Tensor | None) -> Tensor:
        if cached_BPhwD is None:
            frames = F.pad(x_BFhwD, (0, 0, 0, 0, 0, 0, PEG_FRAMES, 0))
        else:
            frames = torch.cat([cached_BPhwD, x_BFhwD], dim=1)
        volume = rearrange(frames, "b f h w d -> b d f h w")
        encoded = F.conv3d(volume, self.weight, padding=(0, 1, 1), groups=len(self.weight))
        return rearrange(encoded, "b d f h w -> b f h w d")


class PositionBias(nn.Module):
    """Continuous position bias: an MLP from the offset between two patches to a bias for each head.

    A grid of n x n patches has only (2n-1)^2 distinct offsets (961 for 16x16). The MLP runs on
    those and its results are gathered. Its inputs are sign(x) log(1 + |x|), as in Swin v2 and the
    published code.
    """

    offsets: Tensor
    index: Tensor

    def __init__(self, grid: int, dim: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, dim),
            nn.LeakyReLU(0.1),
            nn.Linear(dim, dim),
            nn.LeakyReLU(0.1),
            nn.Linear(dim, heads),
        )
        steps = torch.arange(-(grid - 1), grid)
        offsets = torch.cartesian_prod(steps, steps).float()
        self.register_buffer("offsets", offsets.sign() * offsets.abs().log1p(), persistent=False)

        # Row of `offsets` for each pair of patches.
        position = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
        relative = position[:, None] - position[None, :] + grid - 1
        index = relative[..., 0] * (2 * grid - 1) + relative[..., 1]
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        """Compute the bias of every pair of patches, (H, N, N), without autocast.

        The MLP has few rows, and every token of every frame adds to its gradient.
        """
        with full_precision(self.offsets):
            bias_OH = self.layers(self.offsets)
        return bias_OH.T.index_select(1, self.index.flatten()).unflatten(1, self.index.shape)
