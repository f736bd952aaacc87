"""Scores of one cell of the study of exploration, and the summary of what its arms did."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from envs import action_names
from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_distance import UNSEEN, FrameDistance, distances_by_game
from envs.utils.run_dir import read_metrics
from experiments.pipeline.runner import Stage, StageContext
from experiments.pipeline.stages import DEEP_SHARE
from experiments.studies.exploration_cell import AGENTS, CONTROL_TESTS, TESTS, StudyCell
from worldmodel import GenieReduxG
from worldmodel.evaluation.evaluate import (
    ClipSource,
    EvalWorker,
    plan_batches,
    windows_by_game,
)
from worldmodel.evaluation.far_windows import FarWindows, last_given_frames
from worldmodel.evaluation.window_metrics import concat_scores
from worldmodel.evaluation.window_predictions import Settings


def windows_stage(cell: StudyCell, test: str) -> Stage:
    """Return the stage that chooses the windows of a test set, which are the same for all models.

    It stores their numbers as `ids` and how far their last given frames are from the base data as
    `distance`.
    """

    def run(context: StageContext) -> dict[str, Any]:
        settings, base = settings_of(cell), context.path("data-base")
        clips = source_of(test, context).open(settings)
        windows = windows_by_game(clips)
        if test == "deep":
            far = FarWindows((str(base),), DEEP_SHARE)
            windows, _ = far.choose(clips, windows, settings.context)
        batches = plan_batches(windows, settings, cell.limit)
        ids = np.concatenate([batch.window_ids for batch in batches])
        given_NHWC = last_given_frames(clips, ids.tolist(), settings.context)
        context.out.parent.mkdir(parents=True, exist_ok=True)
        distance = distances_by_game([base])[cell.game](given_NHWC)
        np.savez(context.out, ids=ids, distance=distance)
        return {"windows": len(ids)}

    name, inputs = f"windows-{test}", ("data-base", f"data-{test}")
    settings = [cell.limit, DEEP_SHARE]
    return Stage(name, f"choose windows of {test}", run, inputs, f"windows/{test}.npz", settings)


def score_stage(cell: StudyCell, model: str) -> Stage:
    """Return the stage that scores the windows of every test set with a model."""

    def run(context: StageContext) -> dict[str, Any]:
        world = GenieReduxG.load(context.path(f"model-{model}"), "auto", cell.precision)
        context.out.mkdir(parents=True, exist_ok=True)
        for test in TESTS:
            np.savez(context.out / f"{test}.npz", **score_windows(cell, world, test, context))
        return {}

    tests = (f"{part}-{test}" for test in TESTS for part in ("data", "windows"))
    inputs = (f"model-{model}", *tests)
    name, settings = f"score-{model}", cell.chosen_precision
    return Stage(name, f"score {model}", run, inputs, f"scores/{model}", settings)


def score_windows(
    cell: StudyCell, world: GenieReduxG, test: str, context: StageContext
) -> dict[str, Any]:
    """Return the scores of each window of a test set, and the distance of its given frame.

    Of a test of control it has the Frechet distance of all windows besides, if there is a network.
    """
    settings, source = settings_of(cell), source_of(test, context)
    chosen = np.load(context.path(f"windows-{test}"))
    batches = plan_batches({cell.game: chosen["ids"].tolist()}, settings, None)
    worker = EvalWorker(world, settings, source, None, distance=test in CONTROL_TESTS)
    scores = concat_scores(list(worker.score(batches)))
    result = scores.by_window() | {"distance": chosen["distance"]}
    if scores.fits:
        result["fid"] = scores.fits["prediction"].distance(scores.fits["real"])
    return result


def settings_of(cell: StudyCell) -> Settings:
    """Return the settings of the evaluation of a cell."""
    return Settings(mode="autoregressive", steps=1, seed=cell.seed)


def source_of(test: str, context: StageContext) -> ClipSource:
    """Return the episodes of a test set."""
    return ClipSource([str(context.path(f"data-{test}"))], str(context.root / "cache"), None)


def summary_stage(cell: StudyCell, models: Sequence[str]) -> Stage:
    """Return the last stage, which writes `cell.json` when all models are scored."""
    inputs = (
        "data-base",
        *(f"score-{model}" for model in models),
        *(f"data-{test}" for test in TESTS),
        *(f"data-{arm}" for arm in cell.arms),
        *(AGENTS[arm] for arm in cell.arms if arm in AGENTS),
    )
    run, settings = partial(summarise, cell), [cell.game, cell.seed, cell.settings]
    return Stage("cell", "summarise the cell", run, inputs, "cell.json", settings)


def summarise(cell: StudyCell, context: StageContext) -> dict[str, Any]:
    """Write `cell.json`: settings, what each arm did, where it went, the test frames it holds."""
    base = distances_by_game([context.path("data-base")])[cell.game]
    tests = {}
    for test in TESTS:
        reader = EpisodeReader(context.path(f"data-{test}"))
        frames = (reader[index].frames_THWC for index in range(len(reader)))
        tests[test] = {digest for part_THWC in frames for digest in frame_hashes(part_THWC)}
    arms = {}
    for arm in cell.arms:
        arms[arm] = describe_play(context.path(f"data-{arm}"), cell.game, base, tests)
        if arm in AGENTS:
            last = read_metrics(context.path(AGENTS[arm]))[-1]
            arms[arm] |= {
                "mutual_information": last[f"explore/mutual_information/{cell.game}"],
                "training_steps": int(last["explore/env_steps"]),
            }
    record = {"game": cell.game, "seed": cell.seed, "arms": arms, "settings": cell.settings}
    context.out.write_text(json.dumps(record, indent=2) + "\n")
    return {}


def describe_play(
    folder: Path, game: str, base: FrameDistance, tests: dict[str, set[int]]
) -> dict[str, Any]:
    """Return what a player did and where it went.

    frames: their number; distance, unseen: mean distance from the base data and share of frames
    beyond UNSEEN, of every eighth one; actions: share of each; leak: share of each test's different
    frames that the data hold bit for bit, `tests` being their hashes.
    """
    reader = EpisodeReader(folder)
    seen: set[int] = set()
    actions, distances, frames = [], [], 0
    for index in range(len(reader)):
        episode = reader[index]
        frames += len(episode.frames_THWC)
        seen |= frame_hashes(episode.frames_THWC)
        actions.append(episode.actions)
        distances.append(base(episode.frames_THWC[::8]))
    action_N, distance_M = np.concatenate(actions), np.concatenate(distances)
    return {
        "frames": frames,
        "distance": float(distance_M.mean()),
        "unseen": float((distance_M > UNSEEN).mean()),
        "actions": {
            name: float((action_N == a).mean()) for a, name in enumerate(action_names([game]))
        },
        "leak": {test: len(seen & hashes) / len(hashes) for test, hashes in tests.items()},
    }


def frame_hashes(frames_THWC: np.ndarray) -> set[int]:
    """Return hashes of the different frames of an episode."""
    return {hash(frame_HWC.tobytes()) for frame_HWC in frames_THWC}
