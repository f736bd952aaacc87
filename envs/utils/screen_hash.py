"""Distinct screens: the common measure of the reports, the explorers and their baselines."""

import numpy as np
from numpy.typing import NDArray

from envs.utils.errors import InputError

CELLS = 8
GREY_BITS = 4


def distinct_screens(frames_THWC: NDArray[np.uint8]) -> set[bytes]:
    """Return the distinct `screen_keys`; unite the sets of several episodes with `|`."""
    return set(screen_keys(frames_THWC))


def screen_keys(frames_THWC: NDArray[np.uint8]) -> list[bytes]:
    """Return the key of the coarse screen of each frame; H and W are multiples of 8.

    Two frames have the same key if the mean grey of each of 8x8 cells falls into the same of 16
    levels. The key tells rooms and sprite positions apart (once a sprite crosses into another
    cell), but not a blinking pixel, a score that changes by one digit, or a sprite that moves by a
    pixel.

    Raises: InputError for frames of another shape or type.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise InputError(
            f"frames must be uint8 (T, H, W, 3), not {frames_THWC.dtype} {frames_THWC.shape}"
        )
    length, height, width, _ = frames_THWC.shape
    if height % CELLS or width % CELLS:
        raise InputError(f"frames of {height}x{width} cannot be cut into {CELLS}x{CELLS} cells")
    cells = frames_THWC.reshape(length, CELLS, height // CELLS, CELLS, width // CELLS, 3)
    sums_TyxC = cells.sum(axis=(2, 4), dtype=np.uint32)
    pixels = (height // CELLS) * (width // CELLS)
    # BT.601 grey in whole numbers: the same key on every machine.
    grey_Tyx = sums_TyxC @ np.array([299, 587, 114], np.uint32) // (1000 * pixels)
    levels = (grey_Tyx >> (8 - GREY_BITS)).astype(np.uint8).reshape(length, -1)
    packed = levels[:, ::2] << GREY_BITS | levels[:, 1::2]
    return [row.tobytes() for row in packed]
