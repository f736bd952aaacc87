"""Token entropies of the newest frame of a window (Eq. 2), from the saved model to the numbers.

Shapes: T frames of a clip, which hold T - 4 windows, B windows of 5 frames and 4 actions, N tokens.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from envs.utils.errors import InputError
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.data.batch import to_float_frames
from worldmodel.devices import copy_to

if TYPE_CHECKING:
    from worldmodel.models.genie import WorldModel

Frames = NDArray[np.uint8]
Actions = NDArray[np.integer]


class Windows(NamedTuple):
    """Windows with the actions between their frames; action i turned frame i into frame i + 1."""

    frames_B5HWC: Frames
    actions_B4: Actions

    def select(self, rows: slice | NDArray[np.integer]) -> "Windows":
        """Return some of the windows."""
        return Windows(self.frames_B5HWC[rows], self.actions_B4[rows])


def load_model(
    path: Path | str,
    device: str = "cpu",
    precision: str = "fp32",
    *,
    compile: bool | None = None,
) -> "WorldModel":
    """Load a saved world model, driven by real actions, see `saved_model.read_model`."""
    from worldmodel.models.genie import load_world_model

    return load_world_model(path, device, precision, compile=compile).for_game(None)


def cut_windows(frames_THWC: Frames, actions_T: Actions) -> Windows:
    """Return all windows of T >= 5 consecutive frames and the T - 1 actions between them, as views.

    Window i ends in frame i + 4.
    """
    if len(actions_T) != len(frames_THWC) - 1:
        raise ValueError(f"{len(actions_T)} actions cannot lie between {len(frames_THWC)} frames")
    frames = sliding_window_view(frames_THWC, WINDOW, axis=0)
    return Windows(np.moveaxis(frames, -1, 1), sliding_window_view(actions_T, WINDOW - 1))


def check_clip(model: "WorldModel", frames_THWC: Frames, actions_T: Actions) -> None:
    """Raise InputError unless the model can score the windows of this clip."""
    size, count = model.cfg.size, len(frames_THWC)
    fits = frames_THWC.shape[1:] == (size, size, 3) and count >= WINDOW
    if not fits or frames_THWC.dtype != np.uint8:
        raise InputError(
            f"clip to score: expected {WINDOW} or more frames, uint8 (T, {size}, {size}, 3), "
            f"got {frames_THWC.dtype} {frames_THWC.shape}"
        )
    if actions_T.shape != (count - 1,):
        raise InputError(
            f"clip to score: {count} frames need {count - 1} actions, got shape {actions_T.shape}"
        )
    if not 0 <= actions_T.min() <= actions_T.max() < model.actions:
        raise InputError(
            f"clip to score: actions {actions_T.min()} to {actions_T.max()}, "
            f"the model has {model.actions}"
        )


@torch.inference_mode()
def window_entropies(
    model: "WorldModel",
    frames_B5HWC: Frames,
    actions_B4: Actions,
    *,
    steps: int = 1,
    batch: int = 0,
) -> NDArray[np.float32]:
    """Compute the token entropies (B, N) in [0, 1] of the newest frames in `steps` MaskGIT passes.

    Frames after the CONTEXT are not used and may be left out. A forward pass takes `batch` windows,
    0 for `WorldModel.query_batch`.
    """
    device = model.device
    batch = batch or model.query_batch
    parts = []
    for start in range(0, len(frames_B5HWC), batch):
        # Copies only the context frames: windows overlap and are read-only.
        context = torch.tensor(frames_B5HWC[start : start + batch, :CONTEXT])
        actions = torch.tensor(actions_B4[start : start + batch], dtype=torch.int64)
        entropies = model.future_token_entropy(
            to_float_frames(copy_to(device, context)),
            copy_to(device, actions),
            steps=steps,
            batch=batch,
        )
        parts.append(entropies.float())
    return torch.cat(parts).cpu().numpy()
