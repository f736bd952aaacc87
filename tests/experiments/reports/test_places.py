"""Maps of where players went, and films of what explorers found."""

from pathlib import Path

import numpy as np
from PIL import ImageColor

from envs.episodes.dataset import EpisodeReader
from experiments.reports.charts import COLOURS
from experiments.reports.places import CLIP_FRAMES, film_of_finds, place_map
from tests.fixtures.datasets import record


def still(level: int, count: int = 4) -> np.ndarray:
    """Frames of which all but a corner are the same."""
    frames = np.full((count, 64, 64, 3), level, np.uint8)
    frames[:, :8, :8] = np.linspace(0, 255, count).astype(np.uint8)[:, None, None, None]
    return frames


def test_a_map_shows_who_was_first_in_each_place() -> None:
    both, explored = still(40), still(200)
    names = [COLOURS["base"], COLOURS["archive"]]
    picture = place_map([both, np.concatenate([both, explored])], names)
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    drawn = {tuple(c): n for c, n in zip(colours.tolist(), counts.tolist(), strict=True)}
    blue, green = (ImageColor.getrgb(name) for name in names)
    assert drawn[blue] > 0
    assert drawn[green] > 0
    alone = place_map([both, both], names)
    assert not (alone == green).all(-1).any(), "the archive was nowhere first"


def test_a_film_shows_what_is_farthest_from_known_frames(tmp_path: Path) -> None:
    folder = record(tmp_path / "data", episodes=2, steps=60)
    episode = EpisodeReader(folder)[1].frames_THWC
    film = film_of_finds(Path(folder), "Counting", episode)
    assert film is not None
    assert len(film) == 2 * CLIP_FRAMES, "one excerpt of each episode"
    other = EpisodeReader(folder)[0].frames_THWC
    assert (film[0] == other).all((1, 2, 3)).any(), "the unknown episode comes first"
    assert film_of_finds(Path(folder), "Corridor", episode) is None
