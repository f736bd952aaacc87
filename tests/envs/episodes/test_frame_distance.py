"""Distance of frames from recorded ones."""

from pathlib import Path

import numpy as np

from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_distance import MAX_REFERENCES, FrameDistance, distances_by_game
from tests.fixtures.datasets import record


def test_distance_is_the_mean_difference_to_the_nearest_frame() -> None:
    references = np.zeros((3, 64, 64, 3), np.uint8)
    references[1], references[2] = 100, 200
    distance = FrameDistance(references)
    frames = np.stack([np.full((64, 64, 3), grey, np.uint8) for grey in (0, 7, 140, 190)])
    np.testing.assert_allclose(distance(frames), [0, 7, 40, 10], atol=1e-3)
    corner = references[:1].copy()
    corner[:, :16, :16] = 80  # a sixteenth of the frame
    np.testing.assert_allclose(distance(corner), [5], atol=1e-3)
    assert distance(frames[:0]).shape == (0,)


def test_episodes_are_the_reference_of_their_game(tmp_path: Path) -> None:
    data = record(tmp_path / "data", episodes=2, steps=30)
    distances = distances_by_game([data])
    assert list(distances) == ["Counting"]
    own = EpisodeReader(data)[1].frames_THWC
    assert distances["Counting"](own).max() < 1e-3
    assert distances["Counting"](255 - own).min() > 50
    many = FrameDistance(np.zeros((2 * MAX_REFERENCES + 1, 64, 64, 3), np.uint8))
    assert len(many._references_NP) <= MAX_REFERENCES
