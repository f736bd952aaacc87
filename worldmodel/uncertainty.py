"""How unsure a world model is of the last frame of five: the one calculation behind every scorer and service.

Shapes: B windows of 5 frames and 4 actions, N tokens of a frame. A film of B + 4 frames holds B windows, each of which
begins one frame later.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from envs.utils.errors import InputError
from worldmodel.data.batch import to_float_frames

if TYPE_CHECKING:
    from worldmodel.models.genie import WorldModel

WINDOW = 5
"""Frames in a window (spec: reward)."""
BATCH_CPU, BATCH_GPU = 4, 128


def load_model(path: Path | str, device: str = "cpu") -> "WorldModel":
    """A saved world model, driven by real actions. Raises InputError for a folder that is none."""
    from worldmodel.models.genie import load_world_model

    return load_world_model(path, device).for_game(None)


@torch.inference_mode()
def window_entropies(
    model: "WorldModel",
    frames_B5HWC: NDArray[np.uint8],
    actions_B4: NDArray[np.integer],
    *,
    context: int = 2,
    steps: int = 1,
    batch: int = 0,
) -> NDArray[np.float32]:
    """Token entropies (B, N) in [0, 1] of the last frames.

    `batch` windows go through together; 0 for what suits the device. The model sees the first `context` frames
    and all actions; `steps` are MaskGIT passes (spec: reward). Frames after the `context` may be left out.
    """
    device = next(model.parameters()).device
    # On a processor a few windows at a time stay in its cache: 17 windows a second and core where 32 together do 14.
    batch = batch or (BATCH_CPU if device.type == "cpu" else BATCH_GPU)
    parts = []
    for at in range(0, len(frames_B5HWC), batch):
        # Only what the model is given is copied and sent; windows overlap, or are read-only.
        given = torch.tensor(frames_B5HWC[at : at + batch, :context], device=device)
        actions = torch.tensor(actions_B4[at : at + batch], device=device, dtype=torch.int64)
        parts.append(model.future_token_entropy(to_float_frames(given), actions, steps=steps).float().cpu().numpy())
    return np.concatenate(parts)


def to_consecutive_frames(frames_B5HWC: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The film (B + 4, H, W, C) that windows were cut from one frame after the other, a copy; None where they were not.

    Told by their strides: such windows are overlapping views. A film is a fifth of its windows to send.
    """
    if len(frames_B5HWC) < 2 or frames_B5HWC.strides[0] != frames_B5HWC.strides[1]:
        return None
    return np.concatenate([frames_B5HWC[0], frames_B5HWC[1:, -1]])


def to_windows(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Windows (B, 5, H, W, C) as they are; those of a film (B + 4, H, W, C) as views of it."""
    if frames.ndim == 5:
        return frames
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(frames, WINDOW, axis=0), -1, 1)


def validate_windows(
    model: "WorldModel", frames: NDArray[np.uint8], actions_B4: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """The windows of a request, if this model can score them. Raises InputError that says what does not fit."""
    size, actions = model.cfg.size, model.cfg.actions
    shape = (size, size, 3)
    fits = (frames.ndim == 5 and frames.shape[1:] == (WINDOW, *shape)) or (
        frames.ndim == 4 and frames.shape[1:] == shape and len(frames) >= WINDOW
    )
    if not fits or frames.dtype != np.uint8:
        raise InputError(
            f"windows to score: expected uint8 (B, {WINDOW}, {size}, {size}, 3) or a film without the {WINDOW}, "
            f"got {frames.dtype} {frames.shape}"
        )
    windows = to_windows(frames)
    if actions_B4.shape != (len(windows), WINDOW - 1):
        raise InputError(
            f"windows to score: {len(windows)} need as many rows of 4 actions, got {actions_B4.shape}"
        )
    if actions_B4.size and not 0 <= actions_B4.min() <= actions_B4.max() < actions:
        raise InputError(
            f"windows to score: actions {actions_B4.min()} to {actions_B4.max()}, the model has {actions}"
        )
    return windows
