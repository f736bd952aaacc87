"""Drawing of frames: enlarged pixels, heat maps, GIF and PNG files.

Frames are uint8 THWC. Pixels are repeated, never smoothed.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]
GAP = 2
GIF_MILLISECONDS = 160
HOLD_MILLISECONDS = 900

INFERNO = np.array(
    [
        *([0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99]),
        *([212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]),
    ],
    np.float32,
)
"""Eight points of the inferno colour map, which also works for colour-blind readers."""


def enlarged(frames: Frames, scale: int) -> Frames:
    """Return frames (..., H, W, 3) with each pixel as a square of scale x scale."""
    return frames.repeat(scale, -3).repeat(scale, -2)


def heat_map(values_Thw: NDArray[np.float32], frames_THWC: Frames, high: float) -> Frames:
    """Return (T, H, W, 3): values in [0, high] in colour over the darkened grey frame."""
    size = frames_THWC.shape[1]
    shares = np.clip(values_Thw / max(high, 1e-9), 0, 1) * (len(INFERNO) - 1)
    low = np.minimum(shares.astype(np.int64), len(INFERNO) - 2)
    part = (shares - low)[..., None]
    colours = INFERNO[low] * (1 - part) + INFERNO[low + 1] * part
    shown = enlarged(colours, size // values_Thw.shape[1])
    grey = frames_THWC.mean(-1, keepdims=True)
    return np.clip(shown * 0.85 + grey * 0.25, 0, 255).astype(np.uint8)


def gif(panels: Sequence[Frames], scale: int = 4, context: int = 0, clips: int = 1) -> bytes:
    """Return an endless GIF of panels side by side, T frames each, with one palette for all frames.

    The frames are those of `clips` equally long clips, one after the other. In each, a bar at the
    top is grey during the `context` frames and orange while the model predicts, and the last frame
    is held.
    """
    gap, bar = GAP * scale, 2 * scale
    count, height, width = panels[0].shape[:3]
    total = len(panels) * (width * scale + gap) - gap
    frames = np.full((count, height * scale + bar + gap, total, 3), 24, np.uint8)
    for index, panel in enumerate(panels):
        left = index * (width * scale + gap)
        frames[:, bar + gap :, left : left + width * scale] = enlarged(panel, scale)
    place_T = np.arange(count) % (count // clips)
    frames[place_T < context, :bar] = (140, 140, 140)
    frames[place_T >= context, :bar] = (230, 159, 0)
    stacked = frames.reshape(-1, *frames.shape[2:])[:, :: max(scale // 2, 1)]
    palette = Image.fromarray(stacked).quantize(255)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    last_T = place_T == count // clips - 1
    durations = np.where(last_T, HOLD_MILLISECONDS, GIF_MILLISECONDS).tolist()
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return file.getvalue()


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (H, W, 3 or 4) as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
