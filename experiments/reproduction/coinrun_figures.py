"""Figures of the case study on CoinRun (App. F): motion, and each action from one start."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.controls import numbered_actions
from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.utils.atomic_io import write_atomic
from envs.utils.images import Frames, gif, png
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import StageContext
from experiments.reports.images import labelled_panels, labelled_strip, load_float_frames, predict
from experiments.reproduction.coinrun_plans import (
    base_play,
    basic_play,
    diverse_play,
    jafar_sized_models,
    trained_agent_models,
)
from experiments.reproduction.figures import PREDICTED, SCALE, Figure, most_moving
from experiments.reproduction.plans import Play, TablePlan
from worldmodel import GenieRedux, WorldModel
from worldmodel.config import CONTEXT
from worldmodel.models.genie import load_world_model


def random_strips(c: PipelineConfig) -> Figure:
    """Return figure 17: motion and actions of GenieRedux-G on random play."""
    plan = TablePlan((), (), more_plays=(basic_play(c),), base=base_play(c))
    parts = ("motion", "actions")
    draw = partial(_draw, c=c, model="base", label="GenieRedux-G", test=basic_play(c), parts=parts)
    return Figure(plan, draw)


def agent_strips(c: PipelineConfig, *, model: str, label: str, part: str) -> Figure:
    """Return a figure of a model on the trained agent's play: its motion or its actions."""
    test = diverse_play(c)
    # GenieRedux-TA has the tokenizer of GenieRedux-G-TA, which is needed either way.
    models = tuple(found for found in trained_agent_models(c) if found.name in ("ta", model))
    plan = TablePlan(models, (), more_plays=(test,), base=base_play(c), trains_base=False)
    draw = partial(_draw, c=c, model=model, label=label, test=test, parts=(part,))
    return Figure(plan, draw)


def jafar_sized_strips(c: PipelineConfig) -> Figure:
    """Return figure 21: motion of GenieRedux with the sizes of Jafar."""
    test, models = basic_play(c), jafar_sized_models(c)
    plan = TablePlan(models, (), more_plays=(test,), base=base_play(c))
    label = "GenieRedux, Jafar's sizes"
    draw = partial(
        _draw, c=c, model=models[0].name, label=label, test=test, parts=("motion", "actions")
    )
    return Figure(plan, draw)


def _draw(
    context: StageContext,
    *,
    c: PipelineConfig,
    model: str,
    label: str,
    test: Play,
    parts: Sequence[str],
) -> list[str]:
    world = load_world_model(context.path(f"model-{model}"), "auto", c.precision)
    reader = EpisodeReader(context.path(f"data-{test.name}"))
    episode, start = most_moving(reader, test.games[0])
    real = episode.frames_THWC[start : start + CONTEXT + PREDICTED]
    actions = _driving_actions(world, real, episode.actions[start : start + len(real) - 1])
    options = {"seed": c.seed, "steps": c.evaluate.get("steps", 25), "mode": "autoregressive"}
    lines = []
    for part in parts:
        rows = {"real": real, label: predict(world, real[:CONTEXT], actions, **options)}
        if part == "actions":
            rows = held_rows(world, episode, real[:CONTEXT], actions[: CONTEXT - 1], options)
        path = context.out / f"{part}.png"
        write_atomic(path, png(labelled_strip(rows, SCALE)))
        write_atomic(path.with_suffix(".gif"), gif(labelled_panels(rows, SCALE), 1, CONTEXT))
        lines.append(f"{path} and .gif: from above {', '.join(rows)}")
    return lines


def _driving_actions(
    world: WorldModel, frames_THWC: Frames, recorded: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return the recorded actions or, for a GenieRedux, those that its LAM infers."""
    if not isinstance(world, GenieRedux):
        return recorded
    with torch.inference_mode(), world.autocast():
        inferred_1A = world.lam.encode(load_float_frames(frames_THWC).to(world.device))
    return np.asarray(inferred_1A[0].cpu().numpy())


def held_rows(
    world: WorldModel,
    episode: Episode,
    given: Frames,
    before: NDArray[np.integer],
    options: dict[str, Any],
) -> dict[str, Frames]:
    """Return action -> given frames and what the model predicts while that action is held."""
    latent = isinstance(world, GenieRedux)
    names = numbered_actions(world.actions) if latent else episode.action_names
    rows = {}
    for action, name in enumerate(names or numbered_actions(world.actions)):
        actions = np.append(before, np.full(PREDICTED, action, before.dtype))
        rows[name] = predict(world, given, actions, **options)
    return rows
