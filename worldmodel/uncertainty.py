"""Uncertainty of a world model about the last frame of five: the calculation behind every scorer
and service.

Shapes: B windows of 5 frames and 4 actions, N tokens of a frame. B + 4 consecutive frames hold B
windows, each of which begins one frame later.
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
"""Frames in a window of the reward."""
BATCH_CPU, BATCH_GPU = 4, 128


def load_model(path: Path | str, device: str = "cpu") -> "WorldModel":
    """Load a saved world model, driven by real actions. Raises InputError for a folder that holds
    none.
    """
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
    """Compute the token entropies (B, N) in [0, 1] of the last frames (Eq. 2).

    `batch` windows are scored together; 0 selects a number that suits the device. The model sees
    the first `context` frames and all actions; `steps` are MaskGIT passes. Frames after the
    `context` may be left out.
    """
    device = next(model.parameters()).device
    # On a CPU a few windows at a time stay in its cache: 17 windows a second and core instead of 14
    # with 32 together.
    batch = batch or (BATCH_CPU if device.type == "cpu" else BATCH_GPU)
    parts = []
    for at in range(0, len(frames_B5HWC), batch):
        # Copy only the frames that the model sees: windows overlap, or are read-only.
        given = torch.tensor(frames_B5HWC[at : at + batch, :context], device=device)
        actions = torch.tensor(actions_B4[at : at + batch], device=device, dtype=torch.int64)
        parts.append(
            model.future_token_entropy(to_float_frames(given), actions, steps=steps)
            .float()
            .cpu()
            .numpy()
        )
    return np.concatenate(parts)


def to_consecutive_frames(frames_B5HWC: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return a copy of the frames (B + 4, H, W, C) that overlapping windows were cut from; None for
    other windows.

    Overlapping windows are views, which their strides show. The frames are a fifth of the windows
    to send.
    """
    if len(frames_B5HWC) < 2 or frames_B5HWC.strides[0] != frames_B5HWC.strides[1]:
        return None
    return np.concatenate([frames_B5HWC[0], frames_B5HWC[1:, -1]])


def to_windows(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return windows (B, 5, H, W, C) unchanged, and consecutive frames (B + 4, H, W, C) as
    overlapping windows.
    """
    if frames.ndim == 5:
        return frames
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(frames, WINDOW, axis=0), -1, 1)


def validate_windows(
    model: "WorldModel", frames: NDArray[np.uint8], actions_B4: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """Return the windows of a request. Raises InputError where this model cannot score them."""
    size, actions = model.cfg.size, model.actions
    shape = (size, size, 3)
    fits = (frames.ndim == 5 and frames.shape[1:] == (WINDOW, *shape)) or (
        frames.ndim == 4 and frames.shape[1:] == shape and len(frames) >= WINDOW
    )
    if not fits or frames.dtype != np.uint8:
        raise InputError(
            f"windows to score: expected uint8 (B, {WINDOW}, {size}, {size}, "
            f"3) or consecutive frames without the {WINDOW}, "
            f"got {frames.dtype} {frames.shape}"
        )
    windows = to_windows(frames)
    if actions_B4.shape != (len(windows), WINDOW - 1):
        raise InputError(
            f"windows to score: {len(windows)} need as many rows of 4 actions, "
            f"got {actions_B4.shape}"
        )
    if actions_B4.size and not 0 <= actions_B4.min() <= actions_B4.max() < actions:
        raise InputError(
            f"windows to score: actions {actions_B4.min()} to {actions_B4.max()}, "
            f"the model has {actions}"
        )
    return windows
