"""How good a world model's predictions are on episodes that it has not seen (appendix A.2 of the paper).

Windows of context + horizon frames, one at every `stride`-th frame: the context is given, the rest predicted with the
true actions. Everything stands beside copying the last given frame, and on moving pixels too, since most of a retro
game's screen never moves. A batch of windows is scored with noise of its own, so that batches may be scored anywhere.

Shapes: B windows, T = context + F frames, F predicted frames.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError
from envs.files import write_json_atomic
from envs.runs import progress
from worldmodel.clips import Clips, model_frames
from worldmodel.features import FeatureNetwork, feature_network
from worldmodel.genie import WorldModel
from worldmodel.metrics import GaussianFit, delta_psnr, estimate, frame_psnr, frame_ssim, moving_pixels, moving_psnr

SIDES = ("prediction", "copy")
"""What is compared with the true frames: what the model predicts, and the last given frame."""


@dataclass(frozen=True)
class Settings:
    """What is measured. `Evaluation` and the result hold it."""

    context: int = 2
    """Frames given."""
    horizon: int = 10
    """Frames predicted."""
    stride: int = 20
    """Frames between the starts of neighbouring windows."""
    mode: str = "one_pass"
    """one_pass or autoregressive, see `WorldModel.generate`."""
    steps: int = 25
    """MaskGIT passes."""
    temperature: float = 1.0
    """Of the sampling's noise."""
    delta_t: int = 4
    """Which predicted frame delta-PSNR looks at; the last one where the horizon is shorter."""
    distance_frames: int = 0
    """Predicted frames of a game that the Frechet distance takes in, evenly spread; 0 for all."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast): about a third less time on a CPU, for figures that differ a little."""
    batch_size: int = 8
    """Windows predicted together."""
    seed: int = 0
    """Of the sampling's noise and the random actions."""

    def __post_init__(self) -> None:
        for name in ("context", "horizon", "stride", "steps", "delta_t", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision = {self.precision!r}: choose fp32 or bf16")


@dataclass
class Scores:
    """What was measured on windows of one game. Parts are joined by `joined`, in any split."""

    sessions: list[str]
    """Episode of each window."""
    reconstruction: dict[str, Tensor]
    """psnr, ssim: (B, T); moving_psnr: (B, T - 1), NaN where nothing moved since the frame before."""
    frames: dict[str, dict[str, Tensor]]
    """Of each side: psnr, ssim, moving_psnr (B, F); the last is NaN where nothing moved since the last given frame."""
    delta_B: Tensor
    fits: dict[str, GaussianFit]
    """Features of `real` frames and of each side; empty where no feature network is there."""


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all windows of several parts."""
    first = parts[0]

    def cat(pick: Any) -> dict[str, Tensor]:
        return {name: torch.cat([pick(part)[name] for part in parts]) for name in pick(first)}

    fits = {}
    for name, fit in first.fits.items():
        fits[name] = GaussianFit(fit.dimensions)
        for part in parts:
            fits[name].merge(part.fits[name])
    return Scores(
        [session for part in parts for session in part.sessions],
        cat(lambda part: part.reconstruction),
        {side: cat(lambda part, side=side: part.frames[side]) for side in SIDES},
        torch.cat([part.delta_B for part in parts]),
        fits,
    )


@torch.no_grad()
def score_windows(
    model: WorldModel,
    clips: Clips,
    window_ids: np.ndarray,
    settings: Settings,
    network: FeatureNetwork | None = None,
    *,
    seed: int = 0,
    distance_share: float = 1.0,
) -> Scores:
    """Measure one batch of windows. `seed` decides its noise; `distance_share` of its frames enter the distance."""
    device = next(model.parameters()).device
    batch = clips.batch(window_ids).to(device)
    frames, context = model_frames(batch.frames_BTHWC), settings.context
    given, truth = frames[:, :context], frames[:, context:]
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        made = model.tokenizer.decode(model.tokenizer.encode(frames)).float()
        predicted, delta_B = _predict(model, frames, batch.actions_BT, settings, seed)
    sides = {"prediction": predicted, "copy": given[:, -1:].expand_as(truth)}
    moving = moving_pixels(truth, given[:, -1:])
    since_before = moving_pixels(frames[:, 1:], frames[:, :-1])
    return Scores(
        [clips.episodes[clips.locate(window_id)[0]].session_id for window_id in window_ids.tolist()],
        {
            "psnr": frame_psnr(made, frames).cpu(),
            "ssim": frame_ssim(made, frames).cpu(),
            "moving_psnr": moving_psnr(frames[:, 1:], made[:, 1:], since_before).cpu(),
        },
        {
            side: {
                "psnr": frame_psnr(truth, shown).cpu(),
                "ssim": frame_ssim(truth, shown).cpu(),
                "moving_psnr": moving_psnr(truth, shown, moving).cpu(),
            }
            for side, shown in sides.items()
        },
        delta_B.cpu(),
        {} if network is None else _fits(network, {"real": truth, **sides}, distance_share),
    )


def _predict(
    model: WorldModel, frames_BTCHW: Tensor, actions_BT: Tensor, settings: Settings, seed: int
) -> tuple[Tensor, Tensor]:
    """The predicted frames (B, F, C, H, W) and each window's delta-PSNR (B,)."""
    generator = torch.Generator(frames_BTCHW.device).manual_seed(seed)
    sampling: dict[str, Any] = {
        "steps": settings.steps,
        "mode": settings.mode,
        "temperature": settings.temperature,
    }
    predicted = model.generate(frames_BTCHW[:, : settings.context], actions_BT, generator=generator, **sampling).float()
    t = min(settings.delta_t, settings.horizon)
    delta = delta_psnr(
        model,
        frames_BTCHW,
        actions_BT,
        t=t,
        context=settings.context,
        seed=seed,
        predicted_BFCHW=predicted[:, : shared_frames(settings, t)],
        action_count=model.actions,
        **sampling,
    )
    return predicted, delta.values_B


def shared_frames(settings: Settings, t: int) -> int:
    """How many predicted frames decide frame t: all in one pass, those of its pair and before it in pairs.

    The branch with random actions needs to predict only these; its noise is then that of the branch with true ones.
    """
    return settings.horizon if settings.mode == "one_pass" else min(settings.horizon, t + t % 2)


def _fits(network: FeatureNetwork, sets: dict[str, Tensor], share: float) -> dict[str, GaussianFit]:
    """Features of the same frames of each set; the copied frame's are computed once a window."""
    fits = {}
    windows, horizon = sets["real"].shape[:2]
    chosen = torch.arange(math.ceil(windows * horizon * share)).div(share).long().clamp_max(windows * horizon - 1)
    for name, frames_BFCHW in sets.items():
        fits[name] = GaussianFit(network.dimensions)
        if name == "copy":
            fits[name].add(network.extract(frames_BFCHW[:, 0])[chosen // horizon])
        else:
            fits[name].add(network.extract(frames_BFCHW.flatten(0, 1)[chosen]))
    return fits


def evaluate(
    model: WorldModel,
    data: Sequence[str | Path],
    *,
    split: str | None = None,
    limit: int | None = None,
    inception: str | Path | None = None,
    distance: bool = True,
    cache_dir: str | Path | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model on episodes of `data` (of one `split`, or None for all); the result is JSON data.

    `limit`: at most so many windows of each game, evenly spread. `inception`: TorchScript file for FID proper, see
    `worldmodel.features`; `distance` False leaves the Frechet distance out. `options` are fields of `Settings`.
    `out`: write the result there too, atomically. `cache_dir` holds the staged episodes, by default for this call only.

        {"settings": ..., "distance_name": "FID-EfficientNetLite0" or null,
         "overall": SET, "games": {game: SET}}
        SET = {"windows", "episodes",
               "reconstruction": {"psnr", "ssim", "moving_psnr"},
               "prediction": SIDE, "copy": SIDE,
               "delta_psnr": {"t", "mean", "low", "high"}}
        SIDE = {"one_step": FIGURES, "mean": FIGURES, "by_step": {"psnr": [F values], ...}, "distance"}
        FIGURES = {"psnr", "ssim", "moving_psnr"}

    PSNR in dB, at most `metrics.PSNR_CAP`. A figure that nothing says anything about (no pixel moved, one episode only)
    is null. Raises InputError for bad settings, and where no episode is long enough for a window.
    """
    settings = Settings(**options)
    network = feature_network(inception, str(next(model.parameters()).device)) if distance else None
    with tempfile.TemporaryDirectory() as temporary:
        length = settings.context + settings.horizon
        clips = Clips(data, cache_dir or temporary, length=length, stride=settings.stride, split=split)
        plan = plan_windows(clips, limit)
        games: dict[str, Scores] = {}
        with progress("evaluating windows", sum(map(len, plan.values()))) as bar:
            for number, (game, window_ids) in enumerate(plan.items()):
                parts = []
                wanted = settings.distance_frames or len(window_ids) * settings.horizon
                share = min(1.0, wanted / (len(window_ids) * settings.horizon))
                driven = model.for_game(game)
                for start in range(0, len(window_ids), settings.batch_size):
                    ids = window_ids[start : start + settings.batch_size]
                    seed = settings.seed + 1_000_003 * number + start
                    parts.append(score_windows(driven, clips, ids, settings, network, seed=seed, distance_share=share))
                    bar.advance(len(ids), game)
                games[game] = joined(parts)
    result = {
        "settings": {**settings.__dict__, "split": split, "limit": limit, "data": [str(uri) for uri in data]},
        "distance_name": network.name if network else None,
        "overall": summarise(joined(list(games.values())), settings),
        "games": {game: summarise(scores, settings) for game, scores in games.items()},
    }
    if out is not None:
        write_json_atomic(Path(out), result)
    return result


def plan_windows(clips: Clips, limit: int | None) -> dict[str, np.ndarray]:
    """For each game the numbers of its windows, at most `limit`, evenly spread over them all."""
    of_game: dict[str, list[int]] = {game: [] for game in clips.games}
    for window_id in range(len(clips)):
        of_game[clips.window_game(window_id)].append(window_id)
    short = [game for game, window_ids in of_game.items() if not window_ids]
    if short or not of_game:
        named = ", ".join(short) or "the data"
        raise InputError(f"no episode of {named} has the {clips.length} frames of a window: give longer ones")
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}: must be 1 or more")
    plan = {}
    for game, window_ids in of_game.items():
        count = len(window_ids) if limit is None else min(limit, len(window_ids))
        plan[game] = np.array(window_ids)[np.arange(count) * len(window_ids) // count]
    return plan


def summarise(scores: Scores, settings: Settings) -> dict[str, Any]:
    """The figures of a set of windows, see `evaluate`."""
    numbers = {session: number for number, session in enumerate(dict.fromkeys(scores.sessions))}
    delta = estimate(scores.delta_B, torch.tensor([numbers[session] for session in scores.sessions]))
    sides = {}
    for side in SIDES:
        by_step = {name: values.nanmean(0) for name, values in scores.frames[side].items()}
        sides[side] = {
            "one_step": {name: _number(values[0]) for name, values in by_step.items()},
            "mean": {name: _number(values.nanmean()) for name, values in scores.frames[side].items()},
            "by_step": {name: [_number(value) for value in values] for name, values in by_step.items()},
            "distance": scores.fits[side].distance(scores.fits["real"]) if scores.fits else None,
        }
    return {
        "windows": len(scores.sessions),
        "episodes": len(numbers),
        "reconstruction": {name: _number(values.nanmean()) for name, values in scores.reconstruction.items()},
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
