"""Frames as patches and back, and how far made frames are from real ones: what autoencoders of frames share.

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, p pixels of a patch's side, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_patches(frames_BTCHW: Tensor, side: int) -> Tensor:
    """Frames -> the pixels of each patch, (B, T, h, w, 3 * side * side)."""
    patches = frames_BTCHW.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # B T C h p w p
    return patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)


def to_frames(patches_BThwP: Tensor, side: int) -> Tensor:
    """The way back from `to_patches`, BTCHW."""
    frames = patches_BThwP.unflatten(-1, (3, side, side)).permute(0, 1, 4, 2, 5, 3, 6)  # B T C h p w p
    return frames.flatten(-2).flatten(-3, -2)


def embedding(pixels: int, dim: int, norm: bool) -> nn.Sequential:
    """Pixels of a patch to a vector. Without `norm` patches of different brightness can be told apart."""
    return nn.Sequential(nn.LayerNorm(pixels) if norm else nn.Identity(), nn.Linear(pixels, dim), nn.LayerNorm(dim))


def first_and_later(x: Tensor, on_first: nn.Module, on_later: nn.Module, *, first: bool) -> Tensor:
    """One layer for frame 0 of a clip and another for the rest. A clip that goes on from a past has no frame 0."""
    if not first:
        return on_later(x)
    if x.shape[1] == 1:
        return on_first(x)
    return torch.cat([on_first(x[:, :1]), on_later(x[:, 1:])], 1)


def changed_pixels(frames_BTCHW: Tensor) -> Tensor:
    """Where a frame differs from the one before it, bool (B, T-1, 1, H, W), of frames 1..T-1."""
    return (frames_BTCHW[:, 1:] != frames_BTCHW[:, :-1]).any(2, keepdim=True)


def reconstruction_loss(made_BTCHW: Tensor, frames_BTCHW: Tensor, changed_BT1HW: Tensor, weight: float) -> Tensor:
    """Mean squared error in which `changed` pixels count `weight` times."""
    if weight == 1:
        return F.mse_loss(made_BTCHW, frames_BTCHW)
    weights = changed_BT1HW * (weight - 1.0) + 1.0
    return ((made_BTCHW - frames_BTCHW).square() * weights).mean() / weights.mean()
