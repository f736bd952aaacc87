"""Map of where the players of a game went, and films of what explorers found and models predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_distance import FrameDistance, shrink_frames
from envs.utils.images import Frames, enlarged, gif, png
from experiments.reports.charts import COLOURS
from experiments.reports.comparison import PLAYERS
from experiments.reports.images import labelled_panels, predict
from experiments.reports.page import Picture, embed_picture
from experiments.reports.results import EvalResults, game_title
from worldmodel import GenieReduxG
from worldmodel.config import CONTEXT, Precision

COLOUR_NAMES = {"base": "blue", "random": "orange", "archive": "green", "agent": "violet"}
"""Words for `charts.COLOURS`."""
BACKGROUND = (24, 24, 24)
MAP_CELLS, MAP_SCALE = 80, 4
FILM_SCALE = 4
FILM_PANELS = ("real", "predicted before", "predicted after")
FoundExcerpt = tuple[Frames, NDArray[np.uint8]]
"""Frames (T, H, W, 3) of an episode and the actions (T - 1,) between them."""
MAP_FRAMES = 2_000
"""Largest number of frames of each player on a map, evenly spaced."""
FILM_CLIPS = 4
"""Excerpts of a film."""
FILM_EVERY, FILM_KNOWN = 16, 500
"""Frames from one compared frame of an episode to the next, and number of frames of each random
player that they are compared with."""


@dataclass(frozen=True)
class Places:
    """Pictures of where the players of a game went: a map, and films of what explorers found."""

    map: Picture
    films: dict[str, Picture]
    """Film of each explorer of which an episode is long enough."""


def draw_places(
    root: Path,
    game: str,
    plan: Mapping[str, Any],
    results: EvalResults,
    models: Mapping[str, GenieReduxG],
) -> Places:
    """Return the map of a game in the run in `root`, and a film of what each explorer found.

    Play that was known before comes first on the map: that of the base model, then the random play
    that explorers are compared with. `models` are those of the run, by name; they predict the films
    with the evaluation settings of its `plan`.
    """
    data = root / "data"
    folders = {"base": data / "random", "random": data / "more-random"}
    explorers = [name for name in results.explorers if game in EpisodeReader(data / name).games]
    folders |= {explorer: data / explorer for explorer in explorers}
    frames = {player: read_frames(folder, game) for player, folder in folders.items()}
    names = {"base": "the base model's data", "random": "more random play"}
    names |= {explorer: f"the {PLAYERS[explorer]}" for explorer in explorers}
    legend = ", ".join(f"{COLOUR_NAMES[player]} {names[player]}" for player in frames)
    caption = (
        f"{game_title(game)}: where each player went, screens by their ranks along the two "
        "directions in which they differ most. A cell has the colour of the first of these that "
        f"saw it: {legend}."
    )
    colours = [COLOURS[player] for player in frames]
    drawn = embed_picture(png(place_map(list(frames.values()), colours)), caption)
    known_NHWC = np.concatenate(
        [frames[name][:: max(1, len(frames[name]) // FILM_KNOWN)] for name in ("base", "random")]
    )
    films = {}
    for explorer in explorers:
        pair = [models["base"], models[explorer]]
        found = find_excerpts(folders[explorer], game, known_NHWC, CONTEXT + results.horizon)
        if found:
            panels = dict(
                zip(FILM_PANELS, film_of_finds(found, pair, sampling_of(plan)), strict=True)
            )
            moving = gif(labelled_panels(panels, FILM_SCALE), 1, CONTEXT, clips=len(found))
            caption = (
                f"{game_title(game)}: what only the {PLAYERS[explorer]} found, the screens least "
                f"like any random play. {CONTEXT} frames (grey bar) and the buttons pressed are "
                f"given, {results.horizon} frames (orange bar) predicted: before by the base model "
                f"and after by that fine-tuned on the {PLAYERS[explorer]}'s data, to which these "
                "excerpts belong."
            )
            films[explorer] = embed_picture(moving, caption)
    return Places(drawn, films)


def load_models(root: Path, names: Sequence[str], precision: Precision) -> dict[str, GenieReduxG]:
    """Return world models of the run in `root`, by name."""
    return {
        name: GenieReduxG.load(root / "models" / name, "auto", precision, compile=False)
        for name in names
    }


def sampling_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the films of a run are sampled: as in its evaluation."""
    chosen = {key: plan["evaluate"][key] for key in ("steps", "mode") if key in plan["evaluate"]}
    return chosen | {"seed": plan["seed"]}


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


def find_excerpts(folder: Path, game: str, known_NHWC: Frames, length: int) -> list[FoundExcerpt]:
    """Return the excerpts of a player's episodes that are farthest from known frames, in order.

    At most FILM_CLIPS of `length` frames, one of an episode; none if every episode is too short.
    """
    distance = FrameDistance(known_NHWC)
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
    chosen = sorted(found, reverse=True)[:FILM_CLIPS]
    excerpts = []
    for _, index, start in chosen:
        episode = reader[index]
        frames_THWC = episode.frames_THWC[start : start + length]
        excerpts.append((frames_THWC, episode.actions[start : start + length - 1]))
    return excerpts


def film_of_finds(
    excerpts: Sequence[FoundExcerpt], models: Sequence[GenieReduxG], sampling: Mapping[str, Any]
) -> list[Frames]:
    """Return the frames of excerpts, one after the other, then each model's predictions of them.

    The first CONTEXT frames of an excerpt are given, and its recorded actions.
    """
    films = [np.concatenate([frames_THWC for frames_THWC, _ in excerpts])]
    for model in models:
        predicted = [
            predict(model, frames_THWC[:CONTEXT], actions, **sampling)
            for frames_THWC, actions in excerpts
        ]
        films.append(np.concatenate(predicted))
    return films
