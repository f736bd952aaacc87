"""Choice of the windows that are least like some episodes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.episodes.frame_distance import distances_by_game
from envs.utils.errors import InputError
from tests.fixtures.datasets import record
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.evaluate import windows_by_game
from worldmodel.evaluation.far_windows import FarWindows


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    folder = tmp_path_factory.mktemp("far")
    data = record(folder / "data", episodes=3, steps=50)
    return ClipDataset([data], folder / "cache", length=12, stride=5, split=None)


def test_windows_like_the_training_data_are_left_out(clips: ClipDataset, tmp_path: Path) -> None:
    training = record(tmp_path / "training", episodes=2, steps=50, seed=5)
    distance = distances_by_game([training])["Counting"]
    far_N = distance(
        np.concatenate([clips.batch(np.array([i])).frames_BTHWC[:, 1] for i in range(len(clips))])
    )
    count = math.ceil(len(clips) / 4)
    windows, means = FarWindows((training,), 0.25).choose(clips, windows_by_game(clips), context=2)
    chosen = windows["Counting"]
    assert len(chosen) == count
    assert list(chosen) == sorted(chosen)
    assert far_N[chosen].min() >= np.delete(far_N, chosen).max()
    assert means["Counting"] == pytest.approx(np.sort(far_N)[-count:].mean())


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="far share 0"):
        FarWindows(("data",), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": ("Corridor",)}, "no episode of Counting"),
        ({"seed": 0}, "2 of 3 episodes to evaluate are in"),
    ],
)
def test_training_data_that_cannot_be_compared_is_told(
    options: dict[str, Any], message: str, clips: ClipDataset, tmp_path: Path
) -> None:
    training = record(tmp_path / "training", episodes=2, steps=50, **{"seed": 5, **options})
    with pytest.raises(InputError, match=message):
        FarWindows((training,)).choose(clips, windows_by_game(clips), context=2)
