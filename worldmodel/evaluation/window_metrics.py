"""Metrics of windows: prediction, reconstruction and copy baseline compared with the true frames.

Shapes: B windows, T = context + F frames, F predicted frames, K codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.evaluation.codebook_stats import count_codes
from worldmodel.evaluation.external_predictions import ExternalPredictions
from worldmodel.evaluation.feature_networks import FeatureNetwork
from worldmodel.evaluation.window_predictions import Settings, predict_windows
from worldmodel.metrics import (
    GaussianFit,
    frame_psnr,
    frame_ssim,
    moving_pixels,
    moving_psnr,
)
from worldmodel.models.genie import WorldModel

MODEL_AND_BASELINE = ("prediction", "copy")
"""Predictions compared with the true frames: the model's, and a copy of the last given frame."""


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
            predicted, delta_B = predict_windows(model, frames, batch.actions_BT, settings, seed)
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
