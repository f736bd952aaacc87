"""The batch that every dataset yields, and the conversion of stored frames to model input."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldmodel.devices import copy_to

_ABSENT: Tensor = None  # type: ignore[assignment]  # objectives read only fields that they `need`


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B training samples. Fields that a dataset does not provide are None.

    T frames of H x W pixels or h x w tokens. actions_BT[b, t] turned frame t into frame t + 1, so
    there are T - 1 of them.
    """

    window_ids_B: Tensor
    """int64, numbers of the samples in the dataset"""
    games_B: Tensor = _ABSENT
    """int64, indices into `ClipDataset.games`"""
    frames_BTHWC: Tensor = _ABSENT
    """uint8"""
    actions_BT: Tensor = _ABSENT
    """int64 (B, T - 1); `MASKED_ACTION` where `WindowIndex.reveal_actions` hides them"""
    tokens_BThw: Tensor = _ABSENT
    """int64"""
    latent_actions_BT: Tensor = _ABSENT
    """int64 (B, T - 1)"""
    small_frames_BhwC: Tensor = _ABSENT
    """uint8, input of an upscaler"""
    large_frames_BHWC: Tensor = _ABSENT
    """uint8, the same frames at the size that an upscaler produces"""

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device, see `copy_to`."""
        return self._map(lambda tensor: copy_to(device, tensor))

    def pin(self) -> "Batch":
        """Copy the batch to pinned memory, from which an NVIDIA GPU copies on its own."""
        return self._map(Tensor.pin_memory)

    def microbatch(self, index: int, count: int) -> "Batch":
        """Return samples `index`, `index + count`, ... of the batch."""
        return self._map(lambda tensor: tensor[index::count])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: change(field) for name, field in fields.items() if field is not None})


def to_float_frames(frames: Tensor | NDArray[np.uint8]) -> Tensor:
    """Convert stored uint8 frames (..., H, W, C) to float32 (..., C, H, W) in [0, 1]."""
    if isinstance(frames, np.ndarray):
        frames = torch.tensor(frames)  # a copy: the array may be read-only
    # Rearrange the bytes, a quarter of the memory of the floats.
    return frames.movedim(-1, -3).contiguous().float().div_(255)
