"""Evaluation of a world model's predictions on held-out episodes (App. A.2).

A window of context + horizon frames starts at every `stride`-th frame. The context is given, the
rest predicted with the true actions. The baseline copies the last given frame. Moving pixels are
also measured on their own, because most of a retro game's screen never moves. Each batch of windows
has its own noise seed, so that any process can score it.
"""

import copy
import dataclasses
import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.episodes.dataset import recorded_actions
from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.ray_session import node_resources, ray_session
from worldmodel.config import FidResize
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.devices import resolve_device
from worldmodel.evaluation.codebook_stats import static_token_stats
from worldmodel.evaluation.external_predictions import ExternalPredictions, export_windows
from worldmodel.evaluation.far_windows import FarWindows
from worldmodel.evaluation.feature_networks import (
    feature_network,
    inception_sha256,
    network_name,
)
from worldmodel.evaluation.ray_tasks import map_ray_tasks
from worldmodel.evaluation.window_metrics import (
    MODEL_AND_BASELINE,
    Scores,
    concat_scores,
    device_of,
    measure_windows,
)
from worldmodel.evaluation.window_predictions import Settings, driven_model
from worldmodel.models.genie import WorldModel
from worldmodel.statistics import estimate

_CONCAT_EVERY = 64


def evaluate(
    model: WorldModel | ExternalPredictions,
    data: Sequence[str | Path],
    *,
    split: str | None = None,
    limit: int | None = None,
    far: FarWindows | None = None,
    inception: str | Path | None = None,
    fid_resize: FidResize = "nearest",
    distance: bool = True,
    cache_dir: str | Path | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model on the episodes of `data`; return JSON data, also written to `out`.

    Beside `out`, a file with suffix .npz gets the metrics of each window, see `Scores.by_window`.

    `split`: "train", "val" or None for both. `limit`: maximum number of windows per game, evenly
    spaced. `far`: evaluate only the windows that it chooses. `inception`: TorchScript file for FID,
    for which frames are enlarged as `fid_resize` says, see `feature_networks`; `distance` False
    omits the Frechet distance. `cache_dir` holds the staged episodes, by default during this call.
    `workers`: number of Ray workers, with one thread each; 0 uses this process, with the same
    result. `options` are fields of `Settings`.

        {"settings": ..., "distance_name": "FID-nearest", "FID-EfficientNetLite0" or null,
         "far": {game: mean distance of the windows that `far` chose, in grey levels},
         "overall": SET, "games": {game: SET}}
        SET = {"windows", "episodes",
               "reconstruction": {"psnr", "ssim", "moving_psnr", "distance"},
               "background": {"static", "moving", "codes_used", "perplexity"},
               "prediction": SIDE, "copy": SIDE,
               "delta_psnr": {"t", "replaced": "all" or "last", "mean", "low", "high"}}
        SIDE = {"one_step": FIGURES, "mean": FIGURES, "by_step": {"psnr": [F values], ...},
                "distance"}
        FIGURES = {"psnr", "ssim", "moving_psnr"}

    PSNR is in dB, at most `metrics.PSNR_CAP`. Undefined figures (no moving pixel, a single episode)
    are null. Raises InputError for bad settings, for data with other actions than the model, and
    for a game without an episode of a window's length.
    """
    settings = Settings(**options)
    uris = [str(uri) for uri in data]
    if isinstance(model, WorldModel):
        driven = driven_model(model, None, settings)
        if not settings.infers:
            driven.check_action_names(recorded_actions(uris), "the data have")
    with tempfile.TemporaryDirectory() as temporary:
        source = ClipSource(uris, str(cache_dir or temporary), split)
        clips = source.open(settings)
        windows = windows_by_game(clips)
        distances: dict[str, float] = {}
        if far is not None:
            windows, distances = far.choose(clips, windows, settings.context)
        batches = plan_batches(windows, settings, limit)
        worker = EvalWorker(
            model, settings, source, str(inception) if inception else None, distance, fid_resize
        )
        games = _score_games(worker, clips, batches, workers)
    overall = concat_scores(list(games.values()))
    result = {
        "settings": {
            **settings.__dict__,
            "precision": getattr(model, "precision", None),
            "split": split,
            "limit": limit,
            "data": uris,
            "far": far and dataclasses.asdict(far),
            "fid_resize": fid_resize if inception and distance else None,
            "inception_sha256": inception_sha256(inception) if inception and distance else None,
        },
        "distance_name": network_name(inception, fid_resize) if distance else None,
        "far": distances,
        "overall": summarise_scores(overall, settings),
        "games": {game: summarise_scores(scores, settings) for game, scores in games.items()},
    }
    if out is not None:
        arrays = io.BytesIO()
        np.savez(arrays, **overall.by_window())
        write_atomic(Path(out).with_suffix(".npz"), arrays.getvalue())
        write_json_atomic(Path(out), result)
    return result


@dataclass(frozen=True)
class ClipSource:
    """Data sets, the folder of their staged copies, and the split."""

    data: list[str]
    cache_dir: str
    split: str | None

    def open(self, settings: Settings) -> ClipDataset:
        """Open the windows of an evaluation."""
        return ClipDataset(
            self.data,
            self.cache_dir,
            length=settings.context + settings.horizon,
            stride=settings.stride,
            split=self.split,
        )


@dataclass(frozen=True)
class EvalBatch:
    """Windows of one game that are scored together, with the seed of their noise."""

    game: str
    window_ids: np.ndarray
    seed: int
    distance_share: float
    """Share of the predicted frames that enter the Frechet distance."""


@dataclass(frozen=True)
class EvalWorker:
    """Everything that a process needs to score batches."""

    model: WorldModel | ExternalPredictions
    settings: Settings
    source: ClipSource
    inception: str | None
    distance: bool
    fid_resize: FidResize = "nearest"

    def score(
        self, batches: Sequence[EvalBatch], clips: ClipDataset | None = None
    ) -> Iterator[Scores]:
        """Yield the scores of batches, in order."""
        clips = clips or self.source.open(self.settings)
        device = str(device_of(self.model))
        network = None
        if self.distance:
            network = feature_network(self.inception, device, self.fid_resize)
        for batch in batches:
            yield measure_windows(
                driven_model(self.model, batch.game, self.settings),
                clips,
                batch.window_ids,
                self.settings,
                network,
                seed=batch.seed,
                distance_share=batch.distance_share,
            )


def _score_remotely(worker: EvalWorker, batches: Sequence[EvalBatch]) -> list[Scores]:
    """Score batches on a Ray worker, on its GPU if it has one."""
    model = worker.model.to(str(resolve_device()))
    return list(dataclasses.replace(worker, model=model).score(batches))


def _score_games(
    worker: EvalWorker, clips: ClipDataset, batches: Sequence[EvalBatch], workers: int
) -> dict[str, Scores]:
    """Score all batches and concatenate those of each game.

    Scores are concatenated on the way, so that a large test set needs no more memory.
    """
    games: dict[str, list[Scores]] = {}
    with progress("evaluating windows", sum(len(batch.window_ids) for batch in batches)) as bar:
        parts = (
            worker.score(batches, clips) if workers < 1 else _distribute(worker, batches, workers)
        )
        for batch, scores in zip(batches, parts, strict=True):
            scores_of_game = games.setdefault(batch.game, [])
            scores_of_game.append(scores)
            if len(scores_of_game) == _CONCAT_EVERY:
                games[batch.game] = [concat_scores(scores_of_game)]
            bar.advance(len(batch.window_ids), batch.game)
    return {game: concat_scores(scores) for game, scores in games.items()}


def _distribute(worker: EvalWorker, batches: Sequence[EvalBatch], workers: int) -> Iterator[Scores]:
    """Score batches on Ray workers, several batches per task, and yield the scores in order."""
    gpu = device_of(worker.model).type == "cuda"
    size = max(1, min(16, len(batches) // (4 * workers)))
    finished: dict[int, list[Scores]] = {}
    next_task = 0
    with ray_session():
        import ray

        nodes = node_resources("train")
        if gpu:
            nodes = dataclasses.replace(nodes, gpus=1.0)
        stored = ray.put(dataclasses.replace(worker, model=_copy_on_cpu(worker.model)))
        calls = [(stored, batches[start : start + size]) for start in range(0, len(batches), size)]
        for number, scores in map_ray_tasks(_score_remotely, calls, at_a_time=workers, on=nodes):
            finished[number] = scores
            while next_task in finished:
                yield from finished.pop(next_task)
                next_task += 1


def _copy_on_cpu(model: WorldModel | ExternalPredictions) -> Any:
    """Return a copy of a model on the CPU; the caller's stays where it is."""
    if isinstance(model, ExternalPredictions):
        return model
    copies: dict[int, Any] = {id(buffer): buffer.cpu() for buffer in model.buffers()}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().cpu(), parameter.requires_grad)
    return copy.deepcopy(model, copies)


def plan_batches(
    windows: dict[str, Sequence[int]], settings: Settings, limit: int | None
) -> list[EvalBatch]:
    """List the windows to score, at most `limit` of each game, in batches of one game each."""
    batches = []
    for number, (game, window_ids) in enumerate(spread_windows(windows, limit).items()):
        frames = len(window_ids) * settings.horizon
        share = min(1.0, (settings.distance_frames or frames) / frames)
        for start in range(0, len(window_ids), settings.batch_size):
            ids = window_ids[start : start + settings.batch_size]
            batches.append(EvalBatch(game, ids, settings.seed + 1_000_003 * number + start, share))
    return batches


def export(
    root: str | Path,
    data: Sequence[str | Path],
    *,
    split: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> int:
    """Write the windows that `evaluate` scores with these settings for another model to predict.

    Returns their number. The random actions are those of a model of the data's actions in mode
    one_pass. See `worldmodel.evaluation.external_predictions`.
    """
    settings = Settings(**options)
    uris = [str(uri) for uri in data]
    actions = len(recorded_actions(uris))
    with tempfile.TemporaryDirectory() as cache:
        clips = ClipSource(uris, cache, split).open(settings)
        batches = plan_batches(windows_by_game(clips), settings, limit)
        count = sum(len(batch.window_ids) for batch in batches)
        with progress("writing windows", count) as bar:
            for batch in batches:
                export_windows(
                    Path(root),
                    clips,
                    batch.window_ids,
                    context=settings.context,
                    delta_t=settings.delta_frame,
                    replaced=settings.delta_actions,
                    seed=batch.seed,
                    action_count=actions,
                )
                bar.advance(len(batch.window_ids), batch.game)
    return count


def windows_by_game(clips: ClipDataset) -> dict[str, Sequence[int]]:
    """Return the windows of each game. Raises InputError for a game without one."""
    by_game: dict[str, list[int]] = {game: [] for game in clips.games}
    for window_id in range(len(clips)):
        by_game[clips.window_game(window_id)].append(window_id)
    too_short = [game for game, window_ids in by_game.items() if not window_ids]
    if too_short or not by_game:
        raise InputError(
            f"no episode of {', '.join(too_short) or 'the data'} has the {clips.length} frames "
            "of a window: give longer ones"
        )
    return dict(by_game)


def spread_windows(
    windows: dict[str, Sequence[int]], limit: int | None
) -> dict[str, NDArray[np.int64]]:
    """Select at most `limit` windows of each game, evenly spaced."""
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}: must be 1 or more")
    plan = {}
    for game, window_ids in windows.items():
        count = len(window_ids) if limit is None else min(limit, len(window_ids))
        plan[game] = np.array(window_ids)[np.arange(count) * len(window_ids) // count]
    return plan


def summarise_scores(scores: Scores, settings: Settings) -> dict[str, Any]:
    """Compute the metrics of a set of windows, see `evaluate`."""
    numbers = {session: number for number, session in enumerate(dict.fromkeys(scores.sessions))}
    groups_B = torch.tensor([numbers[session] for session in scores.sessions])
    known = ~scores.delta_B.isnan()
    delta = estimate(scores.delta_B[known], groups_B[known])
    background = static_token_stats(scores.codes_2K) if scores.codes_2K.shape[1] else {}
    sides = {}
    for side in MODEL_AND_BASELINE:
        metrics = scores.frames[side]
        by_step = {
            name: [_number(value) for value in values.nanmean(0)]
            for name, values in metrics.items()
        }
        sides[side] = {
            "one_step": {name: values[0] for name, values in by_step.items()},
            "mean": {name: _number(values.nanmean()) for name, values in metrics.items()},
            "by_step": by_step,
            "distance": _distance(scores, side),
        }
    reconstruction = {
        name: _number(values.nanmean()) for name, values in scores.reconstruction.items()
    }
    if reconstruction:
        reconstruction["distance"] = _distance(scores, "reconstruction")
    return {
        "windows": len(scores.sessions),
        "episodes": len(numbers),
        "reconstruction": reconstruction,
        "background": {name: _number(value) for name, value in background.items()},
        **sides,
        "delta_psnr": {
            "t": settings.delta_frame,
            "replaced": settings.delta_actions,
            **{name: _number(getattr(delta, name)) for name in ("mean", "low", "high")},
        },
    }


def _distance(scores: Scores, side: str) -> float | None:
    """Compute the Frechet distance of frames to the real ones, None if it was not measured."""
    return scores.fits[side].distance(scores.fits["real"]) if scores.fits else None


def _number(value: Tensor | float) -> float | None:
    """Return a number for JSON, None unless it is finite."""
    value = float(value)
    return value if math.isfinite(value) else None
