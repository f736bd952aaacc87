"""Metrics of windows: prediction, reconstruction and copy baseline compared with the true frames.

Shapes: B windows, T = context + F frames, F predicted frames, K codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.config import GenerationMode, ReplacedActions
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.codebook_stats import count_codes
from worldmodel.evaluation.external_predictions import ExternalPredictions
from worldmodel.evaluation.feature_networks import FeatureNetwork
from worldmodel.metrics import (
    GaussianFit,
    delta_psnr,
    frame_psnr,
    frame_ssim,
    moving_pixels,
    moving_psnr,
)
from worldmodel.models.genie import WorldModel

MODEL_AND_BASELINE = ("prediction", "copy")
"""Predictions compared with the true frames: the model's, and a copy of the last given frame."""


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation, stored with its result."""

    context: int = 2
    """Given frames."""
    horizon: int = 10
    """Predicted frames."""
    stride: int = 20
    """Frames between the starts of neighbouring windows."""
    mode: GenerationMode = "one_pass"
    """one_pass or autoregressive, see `WorldModel.generate`."""
    steps: int = 25
    """MaskGIT passes."""
    temperature: float = 1.0
    """Temperature of the sampling noise."""
    delta_t: int = 4
    """Predicted frame at which delta-PSNR is measured; the last one of a shorter horizon."""
    delta_actions: ReplacedActions = "all"
    """Actions that delta-PSNR replaces, all or last, see `config.ReplacedActions`."""
    distance_frames: int = 0
    """Predicted frames per game that enter the Frechet distance, evenly spaced; 0 for all."""
    batch_size: int = 8
    """Windows predicted together."""
    seed: int = 0
    """Seed of the sampling noise and the random actions."""

    def __post_init__(self) -> None:
        for name in ("context", "horizon", "stride", "steps", "delta_t", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.delta_actions not in get_args(ReplacedActions):
            raise InputError(f"delta_actions = {self.delta_actions!r}: must be 'all' or 'last'")

    @property
    def delta_frame(self) -> int:
        """Predicted frame at which delta-PSNR is measured, from 1."""
        return min(self.delta_t, self.horizon)


@dataclass
class Scores:
    """Measurements of windows of one game; `concat_scores` joins those of several batches."""

    sessions: list[str]
    """Episode of each window."""
    reconstruction: dict[str, Tensor]
    """psnr, ssim (B, T) and moving_psnr (B, T - 1), NaN where nothing moved since the frame before.
    Empty for external predictions."""
    frames: dict[str, dict[str, Tensor]]
    """psnr, ssim, moving_psnr (B, F) of model and baseline; moving_psnr is NaN where nothing moved
    since the last given frame."""
    delta_B: Tensor
    """Delta-PSNR of each window; NaN for external predictions without random actions."""
    codes_2K: Tensor
    """See `codebook_stats.count_codes`; K = 0 for external predictions."""
    fits: dict[str, GaussianFit]
    """Features of `real` frames, model, baseline and reconstructions of the same frames; empty
    without a feature network."""

    def by_window(self) -> dict[str, Any]:
        """Return the metrics of each window, means over its frames (B,), and its `session`.

        Metrics: psnr, ssim, moving_psnr, delta_psnr, reconstruction (PSNR), and copy_psnr of the
        baseline. NaN where undefined.
        """
        model, copy = (self.frames[side] for side in MODEL_AND_BASELINE)
        metrics = {name: values.nanmean(1) for name, values in model.items()}
        metrics |= {"copy_psnr": copy["psnr"].mean(1), "delta_psnr": self.delta_B}
        if self.reconstruction:
            metrics["reconstruction"] = self.reconstruction["psnr"].mean(1)
        arrays = {name: values.cpu().numpy() for name, values in metrics.items()}
        return {"session": np.array(self.sessions), **arrays}


def concat_scores(parts: Sequence[Scores]) -> Scores:
    """Concatenate the scores of several sets of windows."""
    first = parts[0]

    def concat(metrics: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in metrics]) for name in metrics[0]}

    fits = {name: GaussianFit(fit.dimensions) for name, fit in first.fits.items()}
    for name, fit in fits.items():
        for part in parts:
            fit.merge(part.fits[name])
    return Scores(
        [session for part in parts for session in part.sessions],
        concat([part.reconstruction for part in parts]),
        {side: concat([part.frames[side] for part in parts]) for side in MODEL_AND_BASELINE},
        torch.cat([part.delta_B for part in parts]),
        torch.stack([part.codes_2K for part in parts]).sum(0),
        fits,
    )


def device_of(model: WorldModel | ExternalPredictions) -> torch.device:
    """Return the device of a model; external predictions are on the CPU."""
    return torch.device("cpu") if isinstance(model, ExternalPredictions) else model.device


@torch.no_grad()
def measure_windows(
    model: WorldModel | ExternalPredictions,
    clips: ClipDataset,
    window_ids: np.ndarray,
    settings: Settings,
    network: FeatureNetwork | None = None,
    *,
    seed: int = 0,
    distance_share: float = 1.0,
) -> Scores:
    """Measure one batch of windows, with noise of `seed`.

    `distance_share` of the predicted frames enter the Frechet distance.
    """
    device = device_of(model)
    batch = clips.batch(window_ids).to(device)
    frames, context = to_float_frames(batch.frames_BTHWC), settings.context
    given, truth = frames[:, :context], frames[:, context:]
    reconstruction, codes_2K = {}, torch.zeros(2, 0, dtype=torch.int64)
    reconstructed_truth: dict[str, Tensor] = {}
    if isinstance(model, ExternalPredictions):
        predicted, delta_B = model.predict(
            clips, window_ids, truth, settings.delta_frame, settings.delta_actions
        )
    else:
        with model.autocast():
            tokens = model.tokenizer.encode(frames)
            reconstructed = model.tokenizer.decode(tokens).float()
            predicted, delta_B = _predict(model, frames, batch.actions_BT, settings, seed)
        moving = moving_pixels(frames[:, 1:], frames[:, :-1])
        reconstruction = {
            "psnr": frame_psnr(reconstructed, frames).cpu(),
            "ssim": frame_ssim(reconstructed, frames).cpu(),
            "moving_psnr": moving_psnr(frames[:, 1:], reconstructed[:, 1:], moving).cpu(),
        }
        reconstructed_truth = {"reconstruction": reconstructed[:, context:]}
        codes_2K = count_codes(tokens, frames, model.cfg.tokenizer.codes).cpu()
    sides = {"prediction": predicted, "copy": given[:, -1:].expand_as(truth)}
    moving = moving_pixels(truth, given[:, -1:])
    fits: dict[str, GaussianFit] = {}
    if network is not None:
        sets = {"real": truth, **sides, **reconstructed_truth}
        fits = _fit_features(network, sets, distance_share)
    return Scores(
        [clips.episodes[clips.locate(number)[0]].session_id for number in window_ids.tolist()],
        reconstruction,
        {
            side: {
                "psnr": frame_psnr(truth, shown).cpu(),
                "ssim": frame_ssim(truth, shown).cpu(),
                "moving_psnr": moving_psnr(truth, shown, moving).cpu(),
            }
            for side, shown in sides.items()
        },
        delta_B.cpu(),
        codes_2K,
        fits,
    )


def _predict(
    model: WorldModel, frames_BTCHW: Tensor, actions_BT: Tensor, settings: Settings, seed: int
) -> tuple[Tensor, Tensor]:
    """Predict frames (B, F, C, H, W) and compute each window's delta-PSNR (B,)."""
    generator = torch.Generator(frames_BTCHW.device).manual_seed(seed)
    sampling: dict[str, Any] = {
        name: getattr(settings, name) for name in ("steps", "mode", "temperature")
    }
    given_BPCHW = frames_BTCHW[:, : settings.context]
    predicted = model.generate(given_BPCHW, actions_BT, generator=generator, **sampling).float()
    # The random branch generates only the frames that determine frame t: all of them in one pass,
    # otherwise up to the end of its chunk. Its noise is then that of the true branch.
    t, chunk = settings.delta_frame, model.cfg.dynamics.chunk_size
    frames_needed = settings.horizon
    if settings.mode != "one_pass":
        frames_needed = min(settings.horizon, math.ceil(t / chunk) * chunk)
    delta = delta_psnr(
        model,
        frames_BTCHW,
        actions_BT,
        t=t,
        replaced=settings.delta_actions,
        context=settings.context,
        seed=seed,
        predicted_BFCHW=predicted[:, :frames_needed],
        action_count=model.actions,
        **sampling,
    )
    return predicted, delta.values_B


def _fit_features(
    network: FeatureNetwork, sets: dict[str, Tensor], share: float
) -> dict[str, GaussianFit]:
    """Fit features of the same `share` of the frames (B, F, 3, H, W) of each set."""
    fits = {}
    windows, horizon = sets["real"].shape[:2]
    count = windows * horizon
    chosen = torch.arange(math.ceil(count * share)).div(share).long().clamp_max(count - 1)
    for name, frames_BFCHW in sets.items():
        fits[name] = GaussianFit(network.dimensions)
        if name == "copy":  # extracted once per window
            features = network.extract(frames_BFCHW[:, 0])[chosen // horizon]
        else:
            features = network.extract(frames_BFCHW.flatten(0, 1)[chosen])
        fits[name].add(features)
    return fits
