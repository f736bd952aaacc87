"""Windows of an evaluation that are least like the frames that a model was trained on."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.episodes.frame_distance import distances_by_game
from envs.episodes.overlap import refuse_shared_episodes
from envs.utils.errors import InputError
from worldmodel.data.clip_dataset import ClipDataset


@dataclass(frozen=True)
class FarWindows:
    """Choice of the windows whose start is farthest from the frames of some episodes."""

    folders: tuple[str, ...]
    """Folders of the episodes, usually the training data of the base model."""
    share: float = 0.5
    """Share of the windows of each game that is chosen, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"far share {self.share}: must be above 0 and at most 1")

    def choose(
        self, clips: ClipDataset, windows: dict[str, Sequence[int]], context: int
    ) -> tuple[dict[str, Sequence[int]], dict[str, float]]:
        """Choose among the windows of each game; return those, in order, and their mean distance.

        The distance of a window is that of its last given frame, see `FrameDistance`. It depends on
        no model, so that it favours none.

        Raises: InputError for an episode that is in both, and for a game without one in `folders`.
        """
        folders = [Path(folder) for folder in self.folders]
        refuse_shared_episodes({episode.session_id for episode in clips.episodes}, folders)
        distances = distances_by_game(folders)
        if missing := sorted(windows.keys() - distances.keys()):
            raise InputError(
                f"no episode of {', '.join(missing)} in {', '.join(self.folders)}: give the "
                "training data of the games that are evaluated"
            )
        chosen: dict[str, Sequence[int]] = {}
        means = {}
        for game, window_ids in windows.items():
            distance_N = distances[game](last_given_frames(clips, window_ids, context))
            count = math.ceil(self.share * len(window_ids))
            places = np.sort(np.argsort(-distance_N, kind="stable")[:count])
            chosen[game] = [window_ids[place] for place in places]
            means[game] = float(distance_N[places].mean())
        return chosen, means


def last_given_frames(
    clips: ClipDataset, window_ids: Iterable[int], context: int
) -> NDArray[np.uint8]:
    """Return the last given frame of each window, uint8 (N, H, W, C)."""
    return np.concatenate(
        [
            clips.batch(np.array([window_id])).frames_BTHWC[:, context - 1].numpy()
            for window_id in window_ids
        ]
    )
