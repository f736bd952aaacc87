"""Frames as pictures: film strips, GIFs, maps of tokens and of uncertainty, montages.

Frames are uint8 THWC. Pixels are repeated, never smoothed: what the model gets wrong stays seen.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from worldmodel import WorldModel

Frames = NDArray[np.uint8]
GAP = 2
GIF_MILLISECONDS = 160
HOLD_MILLISECONDS = 900

INFERNO = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ],
    np.float32,
)
"""Eight points of the inferno colour map: dark to bright in the eyes of the colour-blind too."""


def predict(model: "WorldModel", given_PHWC: Frames, actions: Sequence[int] | NDArray[Any], **sampling: Any) -> Frames:
    """The given frames followed by what the model predicts, uint8 (P+F, H, W, 3). actions: P+F-1 of them.

    sampling: steps, temperature, mode and seed of `WorldModel.generate`.
    """
    import torch

    seed = sampling.pop("seed", 0)
    frames = model_frames(given_PHWC)
    chosen = torch.as_tensor(np.asarray(actions), dtype=torch.int64)[None]
    with torch.inference_mode():
        made = model.generate(frames, chosen, generator=torch.Generator().manual_seed(seed), **sampling)
    return np.concatenate([given_PHWC, picture_frames(made)])


def model_frames(frames_THWC: Frames) -> Any:
    """uint8 THWC -> float32 in [0, 1], 1TCHW, as the model takes them."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)[None].float() / 255


def picture_frames(frames_1TCHW: Any) -> Frames:
    """The way back: float in [0, 1], 1TCHW -> uint8 THWC."""
    pixels = (frames_1TCHW[0].clamp(0, 1) * 255).round().byte()
    return np.asarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def enlarged(frames: Frames, scale: int) -> Frames:
    """Each pixel of (..., H, W, 3) as a square of scale x scale."""
    return frames.repeat(scale, -3).repeat(scale, -2)


def film_strip(rows: Sequence[Frames], scale: int = 1) -> NDArray[np.uint8]:
    """Rows of T frames each as one RGBA picture, with see-through gaps. Rows: uint8 (T, H, W, 3) of equal shape."""
    count, height, width = rows[0].shape[:3]
    gap = GAP * scale
    picture = np.zeros((len(rows) * (height * scale + gap) - gap, count * (width * scale + gap) - gap, 4), np.uint8)
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            top, left = y * (height * scale + gap), x * (width * scale + gap)
            picture[top : top + height * scale, left : left + width * scale, :3] = enlarged(frame, scale)
            picture[top : top + height * scale, left : left + width * scale, 3] = 255
    return picture


def gif(panels: Sequence[Frames], scale: int = 4, context: int = 0) -> bytes:
    """Panels of T frames each, side by side, as an endless GIF with one palette for all frames.

    A bar at the top is grey during the `context` frames and orange while the model predicts; the last frame is held.
    """
    gap, bar = GAP * scale, 2 * scale
    count, height, width = panels[0].shape[:3]
    frames = np.full((count, height * scale + bar + gap, len(panels) * (width * scale + gap) - gap, 3), 24, np.uint8)
    for place, panel in enumerate(panels):
        left = place * (width * scale + gap)
        frames[:, bar + gap :, left : left + width * scale] = enlarged(panel, scale)
    frames[:context, :bar] = (140, 140, 140)
    frames[context:, :bar] = (230, 159, 0)
    palette = Image.fromarray(frames.reshape(-1, *frames.shape[2:])[:, :: max(scale // 2, 1)]).quantize(255)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=[GIF_MILLISECONDS] * (count - 1) + [HOLD_MILLISECONDS],
        loop=0,
    )
    return file.getvalue()


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3 or 4) as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    path.write_bytes(png(picture))


def code_colours(codebook_KD: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A colour (K, 3) for each code. Codes that lie near each other get colours that look alike.

    The codes' first three principal components, spread to equal ranks, are red, green and blue.
    """
    centred = codebook_KD - codebook_KD.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:3].T
    if projected.shape[1] < 3:
        projected = np.pad(projected, ((0, 0), (0, 3 - projected.shape[1])))
    ranks = projected.argsort(0).argsort(0) / max(len(projected) - 1, 1)
    return (55 + 200 * ranks).astype(np.uint8)


def token_map(tokens_Thw: NDArray[np.int64], colours_K3: NDArray[np.uint8], size: int) -> Frames:
    """Tokens as squares of their code's colour, (T, size, size, 3); the commonest code of the clip is near-black."""
    colours = colours_K3.copy()
    colours[np.bincount(tokens_Thw.reshape(-1)).argmax()] = (22, 22, 26)
    return enlarged(colours[tokens_Thw], size // tokens_Thw.shape[1])


def heat_map(values_Thw: NDArray[np.float32], frames_THWC: Frames, high: float) -> Frames:
    """Values in [0, high] in colour over the darkened grey frame, (T, H, W, 3) as frames_THWC."""
    size = frames_THWC.shape[1]
    shares = np.clip(values_Thw / max(high, 1e-9), 0, 1) * (len(INFERNO) - 1)
    low = np.minimum(shares.astype(np.int64), len(INFERNO) - 2)
    part = (shares - low)[..., None]
    colours = INFERNO[low] * (1 - part) + INFERNO[low + 1] * part
    shown = enlarged(colours, size // values_Thw.shape[1])
    grey = frames_THWC.mean(-1, keepdims=True)
    return np.clip(shown * 0.85 + grey * 0.25, 0, 255).astype(np.uint8)


def montage(screens: Sequence[Frames], columns: int, scale: int = 2) -> NDArray[np.uint8]:
    """Single frames (H, W, 3) in rows of `columns`, as one RGBA picture."""
    blank = np.zeros_like(screens[0])
    padded = [*screens, *[blank] * (-len(screens) % columns)]
    picture = film_strip([np.stack(padded[at : at + columns]) for at in range(0, len(padded), columns)], scale)
    missing = len(padded) - len(screens)
    if missing:
        height, width = (side * scale for side in screens[0].shape[:2])
        picture[-height:, -(missing * (width + GAP * scale)) :, 3] = 0
    return picture
