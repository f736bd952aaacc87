"""Batches that datasets yield, and conversion of stored frames to model input."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipBatch:
    """B windows of T frames. actions_BT[b, t] turned frame t into frame t + 1, so there are T - 1 of them."""

    frames_BTHWC: Tensor
    """uint8"""
    actions_BT: Tensor
    """int64 (B, T - 1); -1 where `WindowIndex.reveal_actions` hides them"""
    games_B: Tensor
    """int64, places in `ClipDataset.games`"""
    window_ids_B: Tensor
    """int64, numbers of the windows in the data"""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def to_float_frames(frames_BTHWC: Tensor) -> Tensor:
    """uint8 frames as they are stored -> float32 frames_BTCHW in [0, 1], on the same device."""
    return frames_BTHWC.movedim(-1, -3).float().div_(255)


@dataclass(frozen=True)
class PairBatch:
    """B moments, each at two sizes."""

    small_BhwC: Tensor
    """uint8"""
    large_BHWC: Tensor
    """uint8"""
    window_ids_B: Tensor
    """int64, numbers of the pairs"""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class TokenBatch:
    """B windows of T frames of hxw token ids. actions_BT[b, t] turned frame t into frame t + 1."""

    tokens_BThw: Tensor
    """int64"""
    actions_BT: Tensor
    """int64 (B, T - 1)"""
    games_B: Tensor
    """int64, places in `ClipDataset.games`"""
    window_ids_B: Tensor
    """int64, numbers of the windows in the data"""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class LatentBatch(TokenBatch):
    """The same with the latent actions beside the recorded ones."""

    latents_BT: Tensor
    """int64 (B, T - 1)"""


@dataclass(frozen=True)
class TokenFrameBatch(TokenBatch):
    """The same with the frames that the tokens were made of, for what is trained on both."""

    frames_BTHWC: Tensor
    """uint8"""
