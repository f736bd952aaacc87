"""Figures of the paper: the models and episodes that they show, and how they are drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from envs.episodes.dataset import EpisodeReader
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError
from envs.utils.images import Frames, gif, png
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from experiments.reports.images import film_strip, predict
from experiments.reproduction.plans import Model, Play, TablePlan, exploration_models
from experiments.reproduction.stages import plan_stages
from experiments.studies import horizon, representation, uncertainty
from experiments.studies.arguments import HorizonArgs, RepresentationArgs, UncertaintyArgs
from worldmodel import GenieReduxG
from worldmodel.config import CONTEXT

PREDICTED = 10
"""Predicted frames of a film strip, after CONTEXT given ones."""
PLAYED = 12
"""Frames of the strip of an agent's play, evenly spread over an episode."""
SCALE = 3
"""Picture pixels per frame pixel."""


@dataclass(frozen=True)
class Figure:
    """A figure: what it needs, and the function that draws it into a folder."""

    plan: TablePlan
    plays: tuple[Play, ...]
    draw: Callable[[StageContext, PipelineConfig], list[str]]
    """Returns a line of text for each picture."""


def figure_stages(name: str, c: PipelineConfig, test_player: str) -> list[Stage]:
    """Return the stages of a figure with one seed, in order; the last one draws it."""
    figure = FIGURES[name](c)
    stages = plan_stages(c, figure.plan, test_player)

    def run(context: StageContext) -> dict[str, Any]:
        context.out.mkdir(parents=True, exist_ok=True)
        return {"lines": figure.draw(context, c)}

    inputs = (
        "model-base",
        *(f"model-{model.name}" for model in figure.plan.models),
        *(f"data-{play.name}" for play in figure.plays),
    )
    settings = [c.evaluate, c.seed]
    return [*stages, Stage(name, f"draw {name}", run, inputs, f"figures/{name}", settings)]


def _of_base(c: PipelineConfig, study: Callable[[StageContext, Path, Path], None]) -> Figure:
    """Return a figure of the base model on random play that no training has seen."""
    test = Play("held-out", c.games)

    def draw(context: StageContext, c: PipelineConfig) -> list[str]:
        study(context, context.path("model-base"), context.path(f"data-{test.name}"))
        return [str(file) for file in sorted(context.out.glob("*.png"))]

    return Figure(_only_plays(test), (test,), draw)


def _only_plays(*plays: Play, models: Sequence[Model] = ()) -> TablePlan:
    """Return the plan of models and episodes, without scores."""
    return TablePlan(tuple(models), (), more_plays=plays)


def _tokens(context: StageContext, model: Path, data: Path) -> None:
    representation.run(RepresentationArgs(model=model, data=(data,), out=context.out))


def _idle_and_moving(context: StageContext, model: Path, data: Path) -> None:
    uncertainty.run(UncertaintyArgs(model=model, data=(data,), out=context.out))


def _over_horizon(
    context: StageContext, model: Path, data: Path, *, limit: int, steps: int
) -> None:
    horizon.run(
        HorizonArgs(
            model=model, data=(data,), out=context.out, limit=limit, sampling_steps=steps,
        )
    )  # fmt: skip


def horizon_figure(c: PipelineConfig) -> Figure:
    """Return figure 16: quality and control of the base model, frame by frame."""
    limit, steps = c.evaluate.get("limit") or 16, c.evaluate.get("steps", 25)
    return _of_base(c, partial(_over_horizon, limit=limit, steps=steps))


def base_strips(c: PipelineConfig) -> Figure:
    """Return figure 9: the base model's predictions of each game."""
    return _strips(c, (), Play("held-out", c.games))


def compared_strips(c: PipelineConfig, games: Sequence[str]) -> Figure:
    """Return figure 7 or 11: what the models on random and on explored data predict."""
    models = [
        model for game in games for model in exploration_models(c, (game,)) if model.start == "base"
    ]
    return _strips(c, models, *(Play("test", (game,)) for game in games))


def _strips(c: PipelineConfig, models: Sequence[Model], *tests: Play) -> Figure:
    def draw(context: StageContext, c: PipelineConfig) -> list[str]:
        lines = []
        for test in tests:
            for game in test.games:
                shown = [model.name for model in models if model.name.endswith(game)] or ["base"]
                reader = EpisodeReader(context.path(f"data-{test.name}"))
                folders = [context.path(f"model-{name}") for name in shown]
                rows = predicted_rows(reader, game, folders, c)
                path = context.out / f"{game}.png"
                write_atomic(path, png(film_strip(rows, SCALE)))
                write_atomic(path.with_suffix(".gif"), gif(rows, SCALE))
                lines.append(f"{path} and .gif: from above real, {', '.join(shown)}")
        return lines

    return Figure(_only_plays(*tests, models=models), tuple(tests), draw)


def predicted_rows(
    reader: EpisodeReader, game: str, models: Sequence[Path], c: PipelineConfig
) -> list[Frames]:
    """Return the real frames of the window that moves most, and what each model predicts.

    Raises InputError if no episode of the game is long enough.
    """
    length = CONTEXT + PREDICTED
    best, most = None, -1.0
    for index, name in enumerate(reader.games):
        if name != game or reader.num_frames(index) < length:
            continue
        frames = reader[index].frames_THWC.astype(np.int16)
        moved = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
        sums = np.convolve(moved, np.ones(length - 1), mode="valid")
        if sums.max() > most:
            best, most = (index, int(sums.argmax())), float(sums.max())
    if best is None:
        raise InputError(f"{game}: no episode of the test set has {length} frames")
    episode, start = reader[best[0]], best[1]
    real = episode.frames_THWC[start : start + length]
    actions = episode.actions[start : start + length - 1]
    steps = c.evaluate.get("steps", 25)
    rows = [real]
    for folder in models:
        model = GenieReduxG.load(folder, "auto", c.precision).for_game(game)
        rows.append(
            predict(model, real[:CONTEXT], actions, seed=c.seed, steps=steps, mode="autoregressive")
        )
    return rows


def agents_play(c: PipelineConfig) -> Figure:
    """Return figure 13: an episode of the explorer in each game."""
    plays = tuple(Play(c.explorers[0], (game,)) for game in c.games)

    def draw(context: StageContext, c: PipelineConfig) -> list[str]:
        lines = []
        for play in plays:
            reader = EpisodeReader(context.path(f"data-{play.name}"))
            longest = max(range(len(reader)), key=reader.num_frames)
            frames = reader[longest].frames_THWC
            chosen = frames[np.linspace(0, len(frames) - 1, PLAYED).astype(int)]
            path = context.out / f"{play.games[0]}.png"
            write_atomic(path, png(film_strip([chosen], SCALE)))
            lines.append(f"{path}: {len(frames)} frames of {play.player}")
        return lines

    return Figure(_only_plays(*plays), plays, draw)


FIGURES: Mapping[str, Callable[[PipelineConfig], Figure]] = {
    "figure5": partial(_of_base, study=_tokens),
    "figure6": partial(_of_base, study=_idle_and_moving),
    "figure7": lambda c: compared_strips(c, c.games[:1]),
    "figure9": base_strips,
    "figure11": lambda c: compared_strips(c, c.games),
    "figure13": agents_play,
    "figure16": horizon_figure,
}
