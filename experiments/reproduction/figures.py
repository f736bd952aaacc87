"""Figures of the paper: the models and episodes that they show, and how they are drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from envs.controls import numbered_actions
from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError
from envs.utils.images import Frames, png
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from experiments.reports.images import film_strip, predict, predict_held, write_labelled_films
from experiments.reproduction.plans import Model, Play, TablePlan, exploration_models
from experiments.reproduction.stages import plan_stages
from experiments.studies.arguments import ModelArgs
from worldmodel import GenieReduxG
from worldmodel.config import CONTEXT

AnyModelArgs = TypeVar("AnyModelArgs", bound=ModelArgs)
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
    """Models and episodes, without rows."""
    draw: Callable[[StageContext], list[str]]
    """Returns a line of text for each picture."""
    settings: Any = None
    """Everything else that decides what it shows."""


@dataclass(frozen=True)
class StripWindow:
    """The window of a film strip: CONTEXT given frames and PREDICTED more."""

    episode: Episode
    start: int
    """Index of its first frame."""

    @property
    def frames_THWC(self) -> Frames:
        """Frames of the window."""
        return self.episode.frames_THWC[self.start : self.start + CONTEXT + PREDICTED]

    @property
    def actions(self) -> NDArray[np.integer[Any]]:
        """Actions between the frames."""
        return self.episode.actions[self.start : self.start + CONTEXT + PREDICTED - 1]


def figure_stages(name: str, figure: Figure, c: PipelineConfig, test_player: str) -> list[Stage]:
    """Return the stages of a figure with one seed, in order; the last one draws it."""
    stages = plan_stages(c, figure.plan, test_player)

    def run(context: StageContext) -> dict[str, Any]:
        context.out.mkdir(parents=True, exist_ok=True)
        return {"lines": figure.draw(context)}

    inputs = (
        *(["model-base"] if figure.plan.trains_base else []),
        *(f"model-{model.name}" for model in figure.plan.models),
        *(f"data-{play.name}" for play in figure.plan.more_plays),
    )
    settings = [c.evaluate, c.seed, *([] if c.precision == "auto" else [c.precision])]
    if figure.settings is not None:
        settings.append(figure.settings)
    return [*stages, Stage(name, f"draw {name}", run, inputs, f"figures/{name}", settings)]


def study_args(
    kind: type[AnyModelArgs],
    context: StageContext,
    c: PipelineConfig,
    model: str,
    test: Play,
    **flags: Any,
) -> AnyModelArgs:
    """Return the flags of a study of a model on a test set, which writes to the figure's folder."""
    data = (context.path(f"data-{test.name}"),)
    folder = context.path(f"model-{model}")
    return kind(model=folder, data=data, out=context.out, precision=c.precision, **flags)


def study_figure(
    c: PipelineConfig, study: Callable[[Any], None], args: type[ModelArgs], **flags: Any
) -> Figure:
    """Return what a study draws of the base model on random play that no training has seen."""
    test = Play("held-out", c.games)

    def draw(context: StageContext) -> list[str]:
        study(study_args(args, context, c, "base", test, **flags))
        return [str(file) for file in sorted(context.out.glob("*.png"))]

    return Figure(TablePlan((), (), more_plays=(test,)), draw)


def base_strips(c: PipelineConfig) -> Figure:
    """Return figure 9: the base model's predictions of each game."""
    return _strips(c, (), Play("held-out", c.games))


def held_strips(c: PipelineConfig, games: Sequence[str]) -> Figure:
    """Return figure 4 or 10: what the base model predicts of one start while each action is held.

    The start is that of the window of each game that moves most.
    """
    test = Play("held-out", c.games)

    def draw(context: StageContext) -> list[str]:
        base = GenieReduxG.load(context.path("model-base"), "auto", c.precision)
        reader, lines = EpisodeReader(context.path(f"data-{test.name}")), []
        for game in games:
            model, window = base.for_game(game), most_moving(reader, game)
            given, before = window.frames_THWC[:CONTEXT], window.actions[: CONTEXT - 1]
            names = window.episode.action_names or numbered_actions(model.actions)
            rows = predict_held(model, given, before, names, PREDICTED, **strip_sampling(c))
            written = write_labelled_films(context.out / game, rows, SCALE, CONTEXT)
            lines.append(f"{written}: from above {', '.join(rows)}")
        return lines

    return Figure(TablePlan((), (), more_plays=(test,)), draw)


def compared_strips(c: PipelineConfig, games: Sequence[str]) -> Figure:
    """Return figure 7 or 11: what the models on random and on explored data predict."""
    models = [
        model for game in games for model in exploration_models(c, (game,)) if model.start == "base"
    ]
    return _strips(c, models, *(Play("test", (game,)) for game in games))


def _strips(c: PipelineConfig, models: Sequence[Model], *tests: Play) -> Figure:
    def draw(context: StageContext) -> list[str]:
        lines = []
        for test in tests:
            reader = EpisodeReader(context.path(f"data-{test.name}"))
            for game in test.games:
                own = [m.name for m in models if m.play[0].games == (game,)] or ["base"]
                folders = {name: context.path(f"model-{name}") for name in own}
                rows = predicted_rows(reader, game, folders, c)
                written = write_labelled_films(context.out / game, rows, SCALE, CONTEXT)
                lines.append(f"{written}: {', '.join(rows)}")
        return lines

    return Figure(TablePlan(tuple(models), (), more_plays=tests), draw)


def predicted_rows(
    reader: EpisodeReader, game: str, models: Mapping[str, Path], c: PipelineConfig
) -> dict[str, Frames]:
    """Return name -> frames: the real window that moves most, and what each model predicts."""
    window = most_moving(reader, game)
    rows = {"real": window.frames_THWC}
    for name, folder in models.items():
        model = GenieReduxG.load(folder, "auto", c.precision).for_game(game)
        given = window.frames_THWC[:CONTEXT]
        rows[name] = predict(model, given, window.actions, **strip_sampling(c))
    return rows


def strip_sampling(c: PipelineConfig) -> dict[str, Any]:
    """Return how the predictions of a film strip are sampled."""
    return {"seed": c.seed, "steps": c.evaluate.get("steps", 25), "mode": "autoregressive"}


def most_moving(reader: EpisodeReader, game: str) -> StripWindow:
    """Return the window that moves most.

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
    return StripWindow(reader[best[0]], best[1])


def agents_play(c: PipelineConfig) -> Figure:
    """Return figure 13: an episode of the explorer in each game."""
    plays = tuple(Play(c.explorers[0], (game,)) for game in c.games)

    def draw(context: StageContext) -> list[str]:
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

    return Figure(TablePlan((), (), more_plays=plays), draw)
