"""Pictures of frames: film strips, token maps, montages, and predictions of a model.

Frames are uint8 THWC. Pixels are repeated, never smoothed, so that a model's errors stay visible.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.utils.atomic_io import write_atomic
from envs.utils.images import GAP, Frames, enlarged, gif, png
from worldmodel.data.batch import to_float_frames

if TYPE_CHECKING:
    from worldmodel import WorldModel
    from worldmodel.models.upscaler import Upscaler

LABEL_BACKGROUND, LABEL_INK = (24, 24, 24), (236, 236, 236)


def predict(
    model: "WorldModel",
    given_PHWC: Frames,
    actions: NDArray[np.integer],
    *,
    seed: int = 0,
    **sampling: Any,
) -> Frames:
    """Return the given frames followed by the predicted ones, uint8 (P + F, H, W, 3).

    actions: P + F - 1 of them. sampling: steps, temperature and mode of `WorldModel.generate`.
    """
    actions_1A = torch.from_numpy(actions.astype(np.int64))[None].to(model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    with torch.inference_mode():
        frames = load_float_frames(given_PHWC).to(model.device)
        predicted = model.generate(frames, actions_1A, generator=generator, **sampling)
    return np.concatenate([given_PHWC, to_uint8_frames(predicted)])


def predict_held(
    model: "WorldModel",
    given_PHWC: Frames,
    before: NDArray[np.integer],
    names: Sequence[str],
    horizon: int,
    **sampling: Any,
) -> dict[str, Frames]:
    """Return action -> the given frames and what the model predicts while that action is held.

    `before`: the P - 1 actions between the given frames. Every film starts from the same noise.
    """
    films = {}
    for action, name in enumerate(names):
        actions = np.append(before, np.full(horizon, action, before.dtype))
        films[name] = predict(model, given_PHWC, actions, **sampling)
    return films


def load_float_frames(frames_THWC: Frames) -> torch.Tensor:
    """Convert uint8 THWC to the model's float32 1TCHW in [0, 1]."""
    return to_float_frames(torch.from_numpy(np.ascontiguousarray(frames_THWC)))[None]


def to_uint8_frames(frames_1TCHW: torch.Tensor) -> Frames:
    """Convert float 1TCHW in [0, 1] to uint8 THWC."""
    pixels = (frames_1TCHW[0].clamp(0, 1) * 255).round().byte()
    return np.asarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def at_scale(frames_THWC: Frames, upscaler: "Upscaler | None", scale: int) -> tuple[Frames, int]:
    """Return frames enlarged by the upscaler, if any, and the scale at which to draw them."""
    if upscaler is None:
        return frames_THWC, scale
    large = to_uint8_frames(upscaler.upscale(load_float_frames(frames_THWC)))
    return large, max(1, scale // upscaler.cfg.factor)


def film_strip(rows: Sequence[Frames], scale: int = 1) -> NDArray[np.uint8]:
    """Return rows of frames, uint8 (T, H, W, 3) each, as one RGBA picture with transparent gaps."""
    gap = GAP * scale
    opaque = np.pad(enlarged(np.stack(rows), scale), [(0, 0)] * 4 + [(0, 1)], constant_values=255)
    spaced = np.pad(opaque, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)])
    return rearrange(spaced, "r t h w c -> (r h) (t w) c")[:-gap, :-gap]


def labelled_strip(rows: Mapping[str, Frames], scale: int = 1) -> NDArray[np.uint8]:
    """Return a `film_strip` with the name of each row on its left."""
    strip = film_strip(list(rows.values()), scale)
    height, gap = next(iter(rows.values())).shape[1] * scale, GAP * scale
    size = _label_size(height)
    width = max(_text_width(name, size) for name in rows) + size
    column = np.zeros((len(strip), width + gap, 4), np.uint8)
    for number, name in enumerate(rows):
        top = number * (height + gap)
        column[top : top + height, :width, :3] = draw_label(name, width, height, size)
        column[top : top + height, :width, 3] = 255
    return np.concatenate([column, strip], axis=1)


def labelled_panels(panels: Mapping[str, Frames], scale: int = 1) -> list[Frames]:
    """Return enlarged frames, (T, h, w, 3) each, with the name of each panel above its frames."""
    drawn = []
    for name, frames_THWC in panels.items():
        large = enlarged(frames_THWC, scale)
        width = large.shape[2]
        size = _label_size(width)
        while size > 6 and _text_width(name, size) > width - size // 2:
            size -= 1
        label = draw_label(name, width, 2 * _label_size(width), size)
        drawn.append(np.concatenate([np.stack([label] * len(large)), large], axis=1))
    return drawn


def write_labelled_films(name: Path, films: Mapping[str, Frames], scale: int, context: int) -> str:
    """Write <name>.png, a strip with a row for each film, and <name>.gif, all side by side.

    The first `context` frames are given ones. Return the names of both files as text.
    """
    write_atomic(Path(f"{name}.png"), png(labelled_strip(films, scale)))
    write_atomic(Path(f"{name}.gif"), gif(labelled_panels(films, scale), 1, context))
    return f"{name}.png and .gif"


def draw_label(text: str, width: int, height: int, size: int) -> NDArray[np.uint8]:
    """Return a picture (height, width, 3) of light text of `size` pixels on dark ground."""
    picture = Image.new("RGB", (width, height), LABEL_BACKGROUND)
    place = (size // 4, height // 2)
    ImageDraw.Draw(picture).text(place, text, LABEL_INK, ImageFont.load_default(size), anchor="lm")
    return np.asarray(picture)


def _label_size(side: int) -> int:
    """Return the size of text that names frames with this side, in pixels."""
    return min(max(side // 8, 9), 24)


def _text_width(text: str, size: int) -> int:
    return math.ceil(ImageFont.load_default(size).getlength(text))


def code_colours(codebook_KD: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a colour (K, 3) for each code; neighbouring codes get similar colours.

    Red, green and blue are the ranks along the codes' first three principal components.
    """
    centred = codebook_KD - codebook_KD.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:3].T
    if projected.shape[1] < 3:
        projected = np.pad(projected, ((0, 0), (0, 3 - projected.shape[1])))
    ranks = projected.argsort(0).argsort(0) / max(len(projected) - 1, 1)
    return (55 + 200 * ranks).astype(np.uint8)


def token_map(tokens_Thw: NDArray[np.int64], colours_K3: NDArray[np.uint8], size: int) -> Frames:
    """Return tokens as squares of their code's colour, (T, size, size, 3).

    The most frequent code of the clip is near-black.
    """
    colours = colours_K3.copy()
    colours[np.bincount(tokens_Thw.reshape(-1)).argmax()] = (22, 22, 26)
    return enlarged(colours[tokens_Thw], size // tokens_Thw.shape[1])


def montage(screens: Sequence[Frames], columns: int, scale: int = 2) -> NDArray[np.uint8]:
    """Return single frames (H, W, 3) in rows of `columns`, as one RGBA picture."""
    missing = -len(screens) % columns
    padded = np.stack([*screens, *[np.zeros_like(screens[0])] * missing])
    rows = list(rearrange(padded, "(r t) h w c -> r t h w c", t=columns))
    picture = film_strip(rows, scale)
    if missing:
        height, width = (side * scale for side in screens[0].shape[:2])
        picture[-height:, -missing * (width + GAP * scale) :, 3] = 0
    return picture
