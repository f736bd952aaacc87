"""Frames as patches and back, and the reconstruction loss that the autoencoders of frames share.

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, p=q pixels of a patch's side, D width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def to_patches(frames_BTCHW: Tensor, side: int) -> Tensor:
    """Cut frames into patches of side x side pixels, (B, T, h, w, C*p*q)."""
    return rearrange(frames_BTCHW, "b t c (h p) (w q) -> b t h w (c p q)", p=side, q=side)


def to_frames(patches_BThwP: Tensor, side: int) -> Tensor:
    """Put frames BTCHW together from the patches of `to_patches`."""
    return rearrange(patches_BThwP, "b t h w (c p q) -> b t c (h p) (w q)", p=side, q=side)


def embedding(pixels: int, dim: int, norm: bool) -> nn.Sequential:
    """Build the layer from a patch's pixels to a vector.

    Without `norm` of the pixels, plain patches of different brightness can be told apart.
    """
    pixel_norm = nn.LayerNorm(pixels) if norm else nn.Identity()
    return nn.Sequential(pixel_norm, nn.Linear(pixels, dim), nn.LayerNorm(dim))


def first_and_later(x: Tensor, on_first: nn.Module, on_later: nn.Module, *, first: bool) -> Tensor:
    """Apply one layer to frame 0 of a clip and another to the rest.

    `first` is false for frames that follow a cache, which have no frame 0 among them.
    """
    if not first:
        return on_later(x)
    if x.shape[1] == 1:
        return on_first(x)
    return torch.cat([on_first(x[:, :1]), on_later(x[:, 1:])], dim=1)


def changed_pixels(frames_BTCHW: Tensor) -> Tensor:
    """Mark the pixels of frames 1..T-1 that differ from the frame before, bool (B, T-1, 1, H,
    W).
    """
    return (frames_BTCHW[:, 1:] != frames_BTCHW[:, :-1]).any(2, keepdim=True)


def reconstruction_loss(
    reconstructed_BTCHW: Tensor, frames_BTCHW: Tensor, changed_BT1HW: Tensor, weight: float
) -> Tensor:
    """Compute the mean squared error in which `changed` pixels count `weight` times."""
    if weight == 1:
        return F.mse_loss(reconstructed_BTCHW, frames_BTCHW)
    weights = changed_BT1HW * (weight - 1.0) + 1.0
    return ((reconstructed_BTCHW - frames_BTCHW).square() * weights).mean() / weights.mean()
