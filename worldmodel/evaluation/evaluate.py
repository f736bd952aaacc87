"""Evaluation of a world model's predictions on held-out episodes (App. A.2).

Windows of context + horizon frames, one at every `stride`-th frame: the context is given, the rest
predicted with the true actions. Everything is compared with copying the last given frame, and on
moving pixels too, since most of a retro game's screen never moves. A batch of windows is scored
with noise of its own, so that batches may be scored anywhere.
"""

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.controls import ACTIONS
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.ray_session import node_resources, ray_session
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.codebook_stats import static_token_stats
from worldmodel.evaluation.external_predictions import ExternalPredictions, export_windows
from worldmodel.evaluation.feature_networks import feature_network, network_name
from worldmodel.evaluation.ray_tasks import map_ray_tasks
from worldmodel.evaluation.window_metrics import (
    MODEL_AND_BASELINE,
    Scores,
    Settings,
    concat_scores,
    measure_windows,
)
from worldmodel.models.genie import WorldModel
from worldmodel.statistics import estimate

__all__ = [
    "ExternalPredictions",
    "Scores",
    "Settings",
    "concat_scores",
    "evaluate",
    "export",
    "measure_windows",
    "plan_windows",
    "summarise",
]

_JOIN_EVERY = 64


def evaluate(
    model: WorldModel | ExternalPredictions,
    data: Sequence[str | Path],
    *,
    split: str | None = None,
    limit: int | None = None,
    inception: str | Path | None = None,
    distance: bool = True,
    cache_dir: str | Path | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model on episodes of `data` (of one `split`, or None for all); the result is JSON
    data.

    `limit`: most windows per game, evenly spaced. `inception`: TorchScript file for
    FID proper, see `worldmodel.evaluation.feature_networks`; `distance` False leaves the Frechet
    distance out. `options` are fields of `Settings`. `out`: write the result there too, atomically.
    `cache_dir` holds the staged episodes, by default for this call only. `workers` Ray workers
    score the windows, each with one thread; 0 does it in this process. The numbers are the same. A
    `ExternalPredictions` is scored by the pictures that it made.

        {"settings": ..., "distance_name": "FID-EfficientNetLite0" or null,
         "overall": SET, "games": {game: SET}}
        SET = {"windows", "episodes",
               "reconstruction": {"psnr", "ssim", "moving_psnr"},
               "background": {"static", "moving", "codes_used", "perplexity"},
               "prediction": SIDE, "copy": SIDE,
               "delta_psnr": {"t", "mean", "low", "high"}}
        SIDE = {"one_step": FIGURES, "mean": FIGURES, "by_step": {"psnr": [F values], ...},
                "distance"}
        FIGURES = {"psnr", "ssim", "moving_psnr"}

    PSNR in dB, at most `metrics.PSNR_CAP`. A figure that nothing says anything about (no pixel
    moved, one episode only) is null. Raise InputError for bad settings, and where no episode is
    long enough for a window.
    """
    settings = Settings(**options)
    with tempfile.TemporaryDirectory() as temporary:
        length = settings.context + settings.horizon
        clips = ClipDataset(
            data, cache_dir or temporary, length=length, stride=settings.stride, split=split
        )
        batches = plan_batches(clips, settings, limit)
        sources = ([str(uri) for uri in data], str(cache_dir or temporary), split)
        how = EvalWorker(model, settings, sources, str(inception) if inception else None, distance)
        games = _gather(how, clips, batches, workers)
    result = {
        "settings": {
            **settings.__dict__,
            "split": split,
            "limit": limit,
            "data": [str(uri) for uri in data],
        },
        "distance_name": network_name(inception) if distance else None,
        "overall": summarise(concat_scores(list(games.values())), settings),
        "games": {game: summarise(scores, settings) for game, scores in games.items()},
    }
    if out is not None:
        write_json_atomic(Path(out), result)
    return result


@dataclass(frozen=True)
class EvalBatch:
    """Windows of one game that are scored together, with the same noise on any process."""

    game: str
    window_ids: np.ndarray
    seed: int
    distance_share: float


@dataclass(frozen=True)
class EvalWorker:
    """Everything a process needs to score batches."""

    model: WorldModel | ExternalPredictions
    settings: Settings
    sources: tuple[list[str], str, str | None]
    """Data sets, the folder of their local copies, and the split."""
    inception: str | None
    distance: bool

    def score(
        self, batches: Sequence[EvalBatch], clips: ClipDataset | None = None
    ) -> Iterator[Scores]:
        """Yield the scores of batches, in order."""
        if clips is None:
            length = self.settings.context + self.settings.horizon
            uris, cache, split = self.sources
            clips = ClipDataset(
                uris, cache, length=length, stride=self.settings.stride, split=split
            )
        device = (
            "cpu"
            if isinstance(self.model, ExternalPredictions)
            else str(next(self.model.parameters()).device)
        )
        network = feature_network(self.inception, device) if self.distance else None
        for batch in batches:
            yield measure_windows(
                self.model
                if isinstance(self.model, ExternalPredictions)
                else self.model.for_game(batch.game),
                clips,
                batch.window_ids,
                self.settings,
                network,
                seed=batch.seed,
                distance_share=batch.distance_share,
            )


def _score_elsewhere(scorer: EvalWorker, batches: Sequence[EvalBatch]) -> list[Scores]:
    """Score batches on a Ray worker, on its GPU if it has one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (
        scorer.model if isinstance(scorer.model, ExternalPredictions) else scorer.model.to(device)
    )
    return list(dataclasses.replace(scorer, model=model).score(batches))


def _gather(
    scorer: EvalWorker, clips: ClipDataset, batches: Sequence[EvalBatch], workers: int
) -> dict[str, Scores]:
    """Collect the scores of each game, batches concatenated in their order.

    Statistics of the distance are summed up as they come, so that a large test set needs no more
    memory.
    """
    games: dict[str, list[Scores]] = {}
    with progress("evaluating windows", sum(len(batch.window_ids) for batch in batches)) as bar:
        parts = scorer.score(batches, clips) if workers < 1 else _spread(scorer, batches, workers)
        for batch, scores in zip(batches, parts, strict=True):
            parts_of_game = games.setdefault(batch.game, [])
            parts_of_game.append(scores)
            if len(parts_of_game) == _JOIN_EVERY:
                games[batch.game] = [concat_scores(parts_of_game)]
            bar.advance(len(batch.window_ids), batch.game)
    return {game: concat_scores(parts) for game, parts in games.items()}


def _spread(scorer: EvalWorker, batches: Sequence[EvalBatch], workers: int) -> Iterator[Scores]:
    """Score batches on Ray workers, a few batches per task, and yield them in order."""
    gpu = (
        not isinstance(scorer.model, ExternalPredictions)
        and next(scorer.model.parameters()).device.type == "cuda"
    )
    model = scorer.model.to("cpu") if gpu else scorer.model  # type: ignore[union-attr]
    size = max(1, min(16, len(batches) // (4 * workers)))
    early: dict[int, list[Scores]] = {}
    wanted = 0
    with ray_session():
        import ray

        place = node_resources("train")
        if gpu:
            place = dataclasses.replace(place, gpus=1.0)
        kept = ray.put(dataclasses.replace(scorer, model=model))
        calls = [(kept, batches[at : at + size]) for at in range(0, len(batches), size)]
        for number, scores in map_ray_tasks(_score_elsewhere, calls, at_a_time=workers, on=place):
            early[number] = scores
            while wanted in early:
                yield from early.pop(wanted)
                wanted += 1


def plan_batches(clips: ClipDataset, settings: Settings, limit: int | None) -> list[EvalBatch]:
    """List all windows to score, in batches of one game each."""
    batches = []
    for number, (game, window_ids) in enumerate(plan_windows(clips, limit).items()):
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
    """Write the windows that `evaluate` scores with these settings for another model to predict;
    return their number. See `worldmodel.evaluation.external_predictions`.

    Their random actions are those that a model of 5 actions gets with mode = one_pass.
    """
    settings = Settings(**options)
    with tempfile.TemporaryDirectory() as cache:
        length = settings.context + settings.horizon
        clips = ClipDataset(data, cache, length=length, stride=settings.stride, split=split)
        batches = plan_batches(clips, settings, limit)
        with progress("writing windows", sum(len(batch.window_ids) for batch in batches)) as bar:
            for batch in batches:
                export_windows(
                    Path(root),
                    clips,
                    batch.window_ids,
                    context=settings.context,
                    delta_t=settings.delta_t,
                    seed=batch.seed,
                    action_count=len(ACTIONS),
                )
                bar.advance(len(batch.window_ids), batch.game)
    return sum(len(batch.window_ids) for batch in batches)


def plan_windows(clips: ClipDataset, limit: int | None) -> dict[str, np.ndarray]:
    """Choose the windows of each game: at most `limit`, evenly spaced."""
    of_game: dict[str, list[int]] = {game: [] for game in clips.games}
    for window_id in range(len(clips)):
        of_game[clips.window_game(window_id)].append(window_id)
    short = [game for game, window_ids in of_game.items() if not window_ids]
    if short or not of_game:
        named = ", ".join(short) or "the data"
        raise InputError(
            f"no episode of {named} has the {clips.length} frames of a window: give longer ones"
        )
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}: must be 1 or more")
    plan = {}
    for game, window_ids in of_game.items():
        count = len(window_ids) if limit is None else min(limit, len(window_ids))
        plan[game] = np.array(window_ids)[np.arange(count) * len(window_ids) // count]
    return plan


def summarise(scores: Scores, settings: Settings) -> dict[str, Any]:
    """Compute the metrics of a set of windows, see `evaluate`."""
    numbers = {session: number for number, session in enumerate(dict.fromkeys(scores.sessions))}
    known = ~scores.delta_B.isnan()
    groups_B = torch.tensor([numbers[session] for session in scores.sessions])
    delta = estimate(scores.delta_B[known], groups_B[known])
    background = static_token_stats(scores.codes_2K) if scores.codes_2K.shape[1] else {}
    sides = {}
    for side in MODEL_AND_BASELINE:
        by_step = {name: values.nanmean(0) for name, values in scores.frames[side].items()}
        sides[side] = {
            "one_step": {name: _number(values[0]) for name, values in by_step.items()},
            "mean": {
                name: _number(values.nanmean()) for name, values in scores.frames[side].items()
            },
            "by_step": {
                name: [_number(value) for value in values] for name, values in by_step.items()
            },
            "distance": scores.fits[side].distance(scores.fits["real"]) if scores.fits else None,
        }
    return {
        "windows": len(scores.sessions),
        "episodes": len(numbers),
        "reconstruction": {
            name: _number(values.nanmean()) for name, values in scores.reconstruction.items()
        },
        "background": {name: _number(value) for name, value in background.items()},
        **sides,
        "delta_psnr": {
            "t": min(settings.delta_t, settings.horizon),
            "mean": _number(delta.mean),
            "low": _number(delta.low),
            "high": _number(delta.high),
        },
    }


def _number(value: Tensor | float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
