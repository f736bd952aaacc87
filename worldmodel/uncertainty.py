"""How unsure a world model is of the last frame of five: the one calculation behind every scorer and service.

Shapes: B windows of 5 frames and 4 actions, N tokens of a frame.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from worldmodel.genie import WorldModel

BATCH_CPU, BATCH_GPU = 4, 128


def load_model(path: Path | str, device: str = "cpu") -> "WorldModel":
    """A saved world model, driven by real actions. Raises InputError for a folder that is none."""
    from worldmodel.genie import load_world_model

    return load_world_model(path, device).for_game(None)


@torch.inference_mode()
def score_windows(
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
    and all actions; `steps` are MaskGIT passes (spec: reward).
    """
    device = next(model.parameters()).device
    # On a processor a few windows at a time stay in its cache: 17 windows a second and core where 32 together do 14.
    batch = batch or (BATCH_CPU if device.type == "cpu" else BATCH_GPU)
    parts = []
    for at in range(0, len(frames_B5HWC), batch):
        frames = torch.tensor(frames_B5HWC[at : at + batch], device=device)  # a copy: windows overlap, or are read-only
        actions = torch.tensor(actions_B4[at : at + batch], device=device, dtype=torch.int64)
        frames_B5CHW = frames.permute(0, 1, 4, 2, 3).float() / 255
        parts.append(model.token_entropy(frames_B5CHW, actions, context=context, steps=steps).float().cpu().numpy())
    return np.concatenate(parts)
