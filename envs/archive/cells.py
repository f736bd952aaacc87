"""Cells: coarse screens, one of which stands for all moments of a game that look alike.

After Go-Explore (Ecoffet et al. 2021): a frame is shrunk to a few grey blocks with a few levels.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDES = (4, 6, 8, 11, 16)
LEVELS = (2, 4, 8, 16)
TARGET_SHARE = 0.125
"""Cells for each frame that a good grid divides a sample of frames into."""


@dataclass(frozen=True)
class CellGrid:
    """Size and number of grey levels of the coarse screens."""

    width: int = 8
    height: int = 8
    levels: int = 8

    def key(self, frame_HWC: NDArray[np.uint8]) -> bytes:
        """Return the cell of a frame uint8 (H, W, 3)."""
        grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
        size = (self.width, self.height)
        coarse_hw = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA).astype(np.uint16)
        return (coarse_hw * self.levels // 256).astype(np.uint8).tobytes()


def fit_grid(frames_NHWC: NDArray[np.uint8]) -> CellGrid:
    """Return the grid that divides frames most evenly into about TARGET_SHARE cells a frame.

    The measure is Go-Explore's: the normalised entropy of the cells' frequencies, divided by
    sqrt(|cells / target - 1| + 1).
    """
    target = max(2.0, TARGET_SHARE * len(frames_NHWC))

    def quality(grid: CellGrid) -> float:
        counts = np.array(list(Counter(map(grid.key, frames_NHWC)).values()))
        if len(counts) == 1:
            return 0.0
        share = counts / counts.sum()
        entropy = -(share * np.log(share)).sum() / np.log(len(counts))
        return float(entropy / np.sqrt(abs(len(counts) / target - 1) + 1))

    grids = (
        CellGrid(width, height, levels)
        for width, height, levels in itertools.product(SIDES, SIDES, LEVELS)
    )
    return max(grids, key=quality)
