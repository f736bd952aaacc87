"""Figures of the case study on CoinRun (App. F): motion, and each action from one start."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from envs.controls import numbered_actions
from envs.episodes.dataset import EpisodeReader
from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.images import Frames
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import StageContext
from experiments.reports.images import (
    load_float_frames,
    predict,
    predict_held,
    write_labelled_films,
)
from experiments.reproduction.coinrun_plans import (
    base_play,
    basic_play,
    diverse_plan,
    jafar_sized_models,
)
from experiments.reproduction.figures import (
    PREDICTED,
    SCALE,
    Figure,
    most_moving,
    strip_sampling,
    study_args,
)
from experiments.reproduction.plans import TablePlan
from experiments.studies.arguments import HorizonArgs
from experiments.studies.common import open_study_model
from experiments.studies.horizon import measure_horizon, plot_horizon
from worldmodel import GenieRedux, WorldModel
from worldmodel.config import CONTEXT
from worldmodel.models.genie import load_world_model

GIVEN_FRAMES = {1: 34.79, 4: 38.31}
"""Number of given frames -> PSNR of the paper's GenieRedux-G-TA over ten frames (App. F.2)."""


def random_strips(c: PipelineConfig) -> Figure:
    """Return figure 17: motion and actions of GenieRedux-G on random play."""
    plan = TablePlan((), (), more_plays=(basic_play(c),), base=base_play(c))
    return _figure(c, plan, "base", "GenieRedux-G", "motion", "actions")


def agent_strips(c: PipelineConfig, *, model: str, label: str, part: str) -> Figure:
    """Return a figure of a model on the trained agent's play: its motion or its actions."""
    # GenieRedux-TA has the tokenizer of GenieRedux-G-TA, which is needed either way.
    plan = diverse_plan(c, "ta", model)
    return _figure(c, plan, model, label, part)


def jafar_sized_strips(c: PipelineConfig) -> Figure:
    """Return figure 21: motion and actions of GenieRedux with the sizes of Jafar."""
    models = jafar_sized_models(c)
    plan = TablePlan(models, (), more_plays=(basic_play(c),), base=base_play(c))
    return _figure(c, plan, models[0].name, "GenieRedux, Jafar's sizes", "motion", "actions")


def horizon_figure(c: PipelineConfig) -> Figure:
    """Return figure 16: quality and control of GenieRedux-G-TA, frame by frame.

    One given frame says nothing of motion, so that the figure compares it with four.
    """
    plan = diverse_plan(c, "ta")
    (test,) = plan.more_plays

    def draw(context: StageContext) -> list[str]:
        args = study_args(
            HorizonArgs,
            context,
            c,
            "ta",
            test,
            horizon=PREDICTED,
            limit=c.evaluate.get("limit") or HorizonArgs.limit,
            sampling_steps=c.evaluate.get("steps", HorizonArgs.sampling_steps),
            seed=c.seed,
            threads=c.threads or None,
        )
        world = open_study_model(args)
        modes, lines = {}, []
        for given, paper in GIVEN_FRAMES.items():
            name = f"{given} given frame{'s' if given > 1 else ''}"
            modes[name] = measure_horizon(replace(args, context=given), world, "one_pass")
            quality, control = (
                np.mean([frame["mean"] for frame in modes[name]["overall"][measure]])
                for measure in ("psnr", "delta_psnr")
            )
            lines.append(
                f"{name}: {quality:.2f} dB over {PREDICTED} frames (paper: {paper:.2f}), "
                f"delta-PSNR {control:.2f} dB"
            )
        results = {"window": world.cfg.frames, "modes": modes}
        write_json_atomic(context.out / "horizon.json", results)
        picture = context.out / "horizon.png"
        write_atomic(picture, plot_horizon(results, max(GIVEN_FRAMES)))
        return [str(picture), *lines]

    return Figure(plan, draw)


def _figure(c: PipelineConfig, plan: TablePlan, model: str, label: str, *parts: str) -> Figure:
    """Return a figure of a model on the only episodes of a plan that are not learned from.

    parts: motion, real and predicted frames; actions, what follows when each is held.
    """
    (test,) = plan.more_plays

    def draw(context: StageContext) -> list[str]:
        world = load_world_model(context.path(f"model-{model}"), "auto", c.precision)
        reader = EpisodeReader(context.path(f"data-{test.name}"))
        window = most_moving(reader, test.games[0])
        real = window.frames_THWC
        actions = _driving_actions(world, real, window.actions)
        given, before = real[:CONTEXT], actions[: CONTEXT - 1]
        names = numbered_actions(world.actions)
        if not isinstance(world, GenieRedux):
            names = window.episode.action_names or names
        sampling = strip_sampling(c)
        lines = []
        for part in parts:
            if part == "actions":
                rows = predict_held(world, given, before, names, PREDICTED, **sampling)
            else:
                rows = {"real": real, label: predict(world, given, actions, **sampling)}
            written = write_labelled_films(context.out / part, rows, SCALE, CONTEXT)
            lines.append(f"{written}: from above {', '.join(rows)}")
        return lines

    return Figure(plan, draw)


def _driving_actions(
    world: WorldModel, frames_THWC: Frames, recorded: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return the recorded actions or, for a GenieRedux, those that its LAM infers."""
    if not isinstance(world, GenieRedux):
        return recorded
    with torch.inference_mode(), world.autocast():
        inferred_1A = world.lam.encode(load_float_frames(frames_THWC).to(world.device))
    return np.asarray(inferred_1A[0].cpu().numpy())
