"""Map of where the players of a game went, and film of what an explorer found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_distance import FrameDistance, shrink_frames
from envs.utils.images import Frames, enlarged, gif, png
from experiments.reports.charts import COLOURS
from experiments.reports.comparison import PLAYERS
from experiments.reports.page import Picture, embed_picture

COLOUR_NAMES = {"base": "blue", "random": "orange", "archive": "green", "agent": "violet"}
"""Words for `charts.COLOURS`."""
BACKGROUND = (24, 24, 24)
MAP_CELLS, MAP_SCALE = 80, 4
FILM_SCALE = 4
MAP_FRAMES = 2_000
"""Largest number of frames of each player on a map, evenly spaced."""
FILM_CLIPS, CLIP_FRAMES = 4, 16
"""Excerpts of a film, and frames of each, which are every second one of an episode."""
FILM_EVERY, FILM_KNOWN = 16, 500
"""Frames from one compared frame of an episode to the next, and number of frames of each random
player that they are compared with."""


def draw_places(data: Path, game: str, explorers: Sequence[str]) -> list[Picture]:
    """Return the map of a game, and a film of what each explorer found.

    `data` is the folder of a run's data sets. Play that was known before comes first on the map:
    that of the base model, then the random play that explorers are compared with.
    """
    folders = {"base": data / "random", "random": data / "more-random"}
    folders |= {explorer: data / explorer for explorer in explorers}
    frames = {player: read_frames(folder, game) for player, folder in folders.items()}
    names = {"base": "the base model's data", "random": "more random play"}
    names |= {explorer: f"the {PLAYERS[explorer]}" for explorer in explorers}
    legend = ", ".join(f"{COLOUR_NAMES[player]} {names[player]}" for player in frames)
    caption = (
        "Where each player went: screens by their ranks along the two directions in which they "
        f"differ most. A cell has the colour of the first of these that saw it: {legend}."
    )
    colours = [COLOURS[player] for player in frames]
    pictures = [embed_picture(png(place_map(list(frames.values()), colours)), caption)]
    known_NHWC = np.concatenate(
        [frames[name][:: max(1, len(frames[name]) // FILM_KNOWN)] for name in ("base", "random")]
    )
    for explorer in explorers:
        film = film_of_finds(folders[explorer], game, known_NHWC)
        if film is not None:
            caption = (
                f"What only the {PLAYERS[explorer]} found: screens least like any random play."
            )
            pictures.append(embed_picture(gif([film], FILM_SCALE), caption))
    return pictures


def read_frames(folder: Path, game: str, limit: int = MAP_FRAMES) -> Frames:
    """Return up to `limit` evenly spaced frames of a game, uint8 (N, H, W, C)."""
    reader = EpisodeReader(folder)
    episodes = [
        reader[index].frames_THWC for index, name in enumerate(reader.games) if name == game
    ]
    every = max(1, -(-sum(map(len, episodes)) // limit))
    return np.concatenate(episodes)[::every]


def place_map(frames_by_player: Sequence[Frames], colours: Sequence[str]) -> NDArray[np.uint8]:
    """Draw the screens of several players on the two principal axes of all of them.

    A cell has the colour, #rrggbb, of the first player that was there. Returns RGB (H, W, 3).
    """
    small = [shrink_frames(frames_NHWC) for frames_NHWC in frames_by_player]
    every = np.concatenate(small)
    centred = every - every.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    projected_N2 = centred @ directions[:, :-3:-1]
    # Ranks, because the scenes of a game are far apart and each is small. Equal screens share one.
    cells_N2 = np.stack([_ranks(axis_N) for axis_N in projected_N2.T], 1) * (MAP_CELLS - 1)
    picture = np.full((MAP_CELLS, MAP_CELLS, 3), BACKGROUND, np.uint8)
    # Later players first, so that the first one is on top.
    ends = np.cumsum([len(part) for part in small])
    for colour, end, part in reversed(list(zip(colours, ends, small, strict=True))):
        column, row = cells_N2[end - len(part) : end].round().astype(np.int64).T
        picture[row, column] = ImageColor.getrgb(colour)
    return enlarged(picture, MAP_SCALE)


def _ranks(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rank of each value among the different ones, from 0 to 1."""
    different, ranks_N = np.unique(values_N.round(3), return_inverse=True)
    return ranks_N / max(len(different) - 1, 1)


def film_of_finds(folder: Path, game: str, known_NHWC: Frames) -> Frames | None:
    """Return the excerpts of a player's episodes that are farthest from known frames, as one film.

    At most one excerpt of an episode. Returns None if every episode is too short.
    """
    distance = FrameDistance(known_NHWC)
    length = 2 * CLIP_FRAMES
    found: list[tuple[float, int, int]] = []
    reader = EpisodeReader(folder)
    for index, name in enumerate(reader.games):
        if name != game or reader.num_frames(index) < length:
            continue
        frames_THWC = reader[index].frames_THWC
        starts_N = np.arange(0, len(frames_THWC) - length + 1, FILM_EVERY)
        distance_N = distance(frames_THWC[starts_N + length // 2])
        best = int(distance_N.argmax())
        found.append((float(distance_N[best]), index, int(starts_N[best])))
    if not found:
        return None
    clips = [
        reader[index].frames_THWC[start : start + length : 2]
        for _, index, start in sorted(found, reverse=True)[:FILM_CLIPS]
    ]
    return np.concatenate(clips)
