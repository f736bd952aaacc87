"""Frames as pictures: film strips, maps of tokens, montages, and what a model makes of them.

Frames are uint8 THWC. Pixels are repeated, never smoothed: what the model gets wrong stays seen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.utils.images import GAP, Frames, enlarged, png

if TYPE_CHECKING:
    from worldmodel import WorldModel
    from worldmodel.models.upscaler import Upscaler


def predict(
    model: "WorldModel", given_PHWC: Frames, actions: Sequence[int] | NDArray[Any], **sampling: Any
) -> Frames:
    """The given frames followed by what the model predicts, uint8 (P+F, H, W, 3). actions: P+F-1 of them.

    sampling: steps, temperature, mode and seed of `WorldModel.generate`.
    """
    import torch

    seed = sampling.pop("seed", 0)
    frames = load_float_frames(given_PHWC)
    chosen = torch.as_tensor(np.asarray(actions), dtype=torch.int64)[None]
    with torch.inference_mode():
        made = model.generate(
            frames, chosen, generator=torch.Generator().manual_seed(seed), **sampling
        )
    return np.concatenate([given_PHWC, picture_frames(made)])


def load_float_frames(frames_THWC: Frames) -> Any:
    """uint8 THWC -> float32 in [0, 1], 1TCHW, as the model takes them."""
    import torch

    return (
        torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)[None].float() / 255
    )


def picture_frames(frames_1TCHW: Any) -> Frames:
    """The way back: float in [0, 1], 1TCHW -> uint8 THWC."""
    pixels = (frames_1TCHW[0].clamp(0, 1) * 255).round().byte()
    return np.asarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def at_scale(frames_THWC: Frames, upscaler: "Upscaler | None", scale: int) -> tuple[Frames, int]:
    """Frames as an upscaler makes them, and the scale that is left to draw them at; unchanged without one."""
    if upscaler is None:
        return frames_THWC, scale
    large = picture_frames(upscaler.upscale(load_float_frames(frames_THWC)))
    return large, max(1, scale // upscaler.cfg.factor)


def film_strip(rows: Sequence[Frames], scale: int = 1) -> NDArray[np.uint8]:
    """Rows of T frames each as one RGBA picture, with see-through gaps. Rows: uint8 (T, H, W, 3) of equal shape."""
    count, height, width = rows[0].shape[:3]
    gap = GAP * scale
    picture = np.zeros(
        (len(rows) * (height * scale + gap) - gap, count * (width * scale + gap) - gap, 4), np.uint8
    )
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            top, left = y * (height * scale + gap), x * (width * scale + gap)
            picture[top : top + height * scale, left : left + width * scale, :3] = enlarged(
                frame, scale
            )
            picture[top : top + height * scale, left : left + width * scale, 3] = 255
    return picture


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


def montage(screens: Sequence[Frames], columns: int, scale: int = 2) -> NDArray[np.uint8]:
    """Single frames (H, W, 3) in rows of `columns`, as one RGBA picture."""
    blank = np.zeros_like(screens[0])
    padded = [*screens, *[blank] * (-len(screens) % columns)]
    picture = film_strip(
        [np.stack(padded[at : at + columns]) for at in range(0, len(padded), columns)], scale
    )
    missing = len(padded) - len(screens)
    if missing:
        height, width = (side * scale for side in screens[0].shape[:2])
        picture[-height:, -(missing * (width + GAP * scale)) :, 3] = 0
    return picture
