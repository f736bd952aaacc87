"""Maps of where players went, and films of what explorers found."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageSequence

from envs.episodes.dataset import EpisodeReader
from envs.utils.images import GAP
from experiments.pipeline.config import PRESETS
from experiments.reports.charts import COLOURS
from experiments.reports.images import load_float_frames, to_uint8_frames
from experiments.reports.places import (
    FILM_SCALE,
    draw_places,
    film_of_finds,
    find_excerpts,
    load_models,
    place_map,
    read_frames,
)
from experiments.reports.results import read_results
from tests.fixtures.datasets import record
from worldmodel import GenieReduxG
from worldmodel.config import CONTEXT

HORIZON = 4
SAMPLING = {"steps": 2, "mode": "autoregressive", "seed": 0}


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
    folder = Path(record(tmp_path / "data", episodes=2, steps=60))
    episode = EpisodeReader(folder)[1].frames_THWC
    found = find_excerpts(folder, "Counting", episode, CONTEXT + HORIZON)
    assert [len(frames) for frames, _ in found] == 2 * [6], "one excerpt of each episode"
    assert [len(actions) for _, actions in found] == 2 * [5]
    other = EpisodeReader(folder)[0]
    (start,) = np.flatnonzero((found[0][0][0] == other.frames_THWC).all((1, 2, 3)))
    assert (found[0][1] == other.actions[start : start + 5]).all(), "the unknown episode is first"
    assert find_excerpts(folder, "Corridor", episode, CONTEXT + HORIZON) == []
    assert find_excerpts(folder, "Counting", episode, 100) == []


def generated(model: GenieReduxG, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Frames that a model generates after the given ones of an excerpt."""
    with torch.inference_mode():
        predicted = model.generate(
            load_float_frames(frames[:CONTEXT]),
            torch.from_numpy(actions.astype(np.int64))[None],
            steps=2,
            mode="autoregressive",
            generator=torch.Generator().manual_seed(0),
        )
    return to_uint8_frames(predicted)


def read_panels(data: str) -> list[np.ndarray]:
    """Return the panels (T, 64, 64, 3) of a film, without labels and bar."""
    frames = np.stack(
        [
            np.asarray(frame.convert("RGB"))
            for frame in ImageSequence.Iterator(Image.open(io.BytesIO(base64.b64decode(data))))
        ]
    )
    side = 64 * FILM_SCALE
    lefts = range(0, frames.shape[2], side + GAP)
    return [frames[:, -side:, left : left + side][:, ::FILM_SCALE, ::FILM_SCALE] for left in lefts]


def test_a_film_shows_real_frames_and_those_of_both_models(
    finished_run: tuple[Path, str],
) -> None:
    root, plan = finished_run[0], PRESETS["debug"]
    models = load_models(root, ("base", *plan.explorers), "auto")
    results = read_results(root / "evaluation", plan.explorers, plan.tests)
    settings: dict[str, Any] = {"evaluate": plan.evaluate, "seed": plan.seed}
    places = draw_places(root, "Counting", settings, results, models)
    before = [read_frames(root / "data" / name, "Counting") for name in ("random", "more-random")]
    known = np.concatenate(before)
    for explorer, film in places.films.items():
        panels = read_panels(film.data)
        assert len(panels) == 3
        found = find_excerpts(root / "data" / explorer, "Counting", known, CONTEXT + HORIZON)
        given = np.tile(np.arange(CONTEXT + HORIZON) < CONTEXT, len(found))
        for predicted in panels[1:]:
            assert (predicted[given] == panels[0][given]).all()
        films = film_of_finds(found, [models["base"], models[explorer]], SAMPLING)
        assert (films[0] == np.concatenate([frames for frames, _ in found])).all()
        for name, film_THWC in zip(("base", explorer), films[1:], strict=True):
            whole = [
                np.concatenate([frames[:CONTEXT], generated(models[name], frames, actions)])
                for frames, actions in found
            ]
            assert (film_THWC == np.concatenate(whole)).all()
            assert (film_THWC[~given] != films[0][~given]).any()
        for panel, film_THWC in zip(panels, films, strict=True):
            # A GIF has 255 colours.
            assert np.abs(panel.astype(int) - film_THWC).mean() < 6
    assert set(places.films) == set(plan.explorers)


def test_the_report_begins_with_the_gain_the_film_and_the_map(
    finished_run: tuple[Path, str],
) -> None:
    root = finished_run[0]
    page = (root / "report" / "index.html").read_text()
    summary = json.loads((root / "config.json").read_text())["pipeline"]
    order = [
        f"a world model that learned from the {summary['explorers'][0]}&#39;s data gains",
        "what only the archive found",
        "where each player went",
        "<table>",
    ]
    places = [re.search(text, page).start() for text in order]  # type: ignore[union-attr]
    assert places == sorted(places)
