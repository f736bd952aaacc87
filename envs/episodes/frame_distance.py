"""Distance of frames from reference frames: how far play is from what a model was shown."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader

SIDE = 16
"""Height and width to which frames are shrunk: sprites hardly count, other places do."""
UNSEEN = 1.0
"""Distance in grey levels from which a frame counts as unlike every reference frame."""
MAX_REFERENCES = 2_000
"""Largest number of reference frames, evenly spaced."""


class FrameDistance:
    """Mean absolute difference in grey levels to the nearest of the reference frames."""

    def __init__(self, frames_NHWC: NDArray[np.uint8]) -> None:
        every = max(1, -(-len(frames_NHWC) // MAX_REFERENCES))
        self._references_NP = shrink_frames(frames_NHWC[::every])

    def __call__(self, frames_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the distance of each frame uint8 (N, H, W, C), float32 (N,)."""
        nearest = [
            np.abs(self._references_NP - frame_P).mean(axis=1).min()
            for frame_P in shrink_frames(frames_NHWC)
        ]
        return np.array(nearest, np.float32)


def shrink_frames(frames_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrink frames to SIDE x SIDE pixels by area averaging, float32 (N, SIDE * SIDE * C)."""
    size = (SIDE, SIDE)
    small = [
        cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel()
        for frame in frames_NHWC
    ]
    return np.array(small, np.float32).reshape(-1, SIDE * SIDE * frames_NHWC.shape[-1])


def distances_by_game(folders: Sequence[Path | str]) -> dict[str, FrameDistance]:
    """Return the distance from the episodes of some folders, for each game."""
    readers = [EpisodeReader(folder) for folder in folders]
    totals: Counter[str] = Counter()
    for reader in readers:
        for record in reader.records:
            totals[record.game] += record.num_frames
    # Thinned while reading: all frames of a large data set need more memory than there is.
    frames: dict[str, list[NDArray[np.uint8]]] = {}
    read: Counter[str] = Counter()
    for reader in readers:
        for index, game in enumerate(reader.games):
            frames_THWC = reader[index].frames_THWC
            every = max(1, -(-totals[game] // MAX_REFERENCES))
            frames.setdefault(game, []).append(frames_THWC[-read[game] % every :: every].copy())
            read[game] += len(frames_THWC)
    return {game: FrameDistance(np.concatenate(parts)) for game, parts in frames.items()}
