"""Metrics of single windows: predictions, reconstructions and the copy baseline against the truth.

Shapes: B windows, T = context + F frames, F predicted frames, K codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.config import GenerationMode
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
"""The two predictions compared with the true frames: the model's, and a copy of the last given
frame."""


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation, stored with its result."""

    context: int = 2
    """Frames given."""
    horizon: int = 10
    """Frames predicted."""
    stride: int = 20
    """Frames between the starts of neighbouring windows."""
    mode: GenerationMode = "one_pass"
    """one_pass or autoregressive, see `WorldModel.generate`."""
    steps: int = 25
    """MaskGIT passes."""
    temperature: float = 1.0
    """Temperature of the sampling noise."""
    delta_t: int = 4
    """Predicted frame that delta-PSNR is measured at; the last one of a shorter horizon."""
    distance_frames: int = 0
    """Predicted frames per game that enter the Frechet distance, evenly spaced; 0 for all."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast): about a third less time on a CPU, for figures that differ a little.
    """
    batch_size: int = 8
    """Windows predicted together."""
    seed: int = 0
    """Seed of the sampling noise and the random actions."""

    def __post_init__(self) -> None:
        for name in ("context", "horizon", "stride", "steps", "delta_t", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision = {self.precision!r}: choose fp32 or bf16")


@dataclass
class Scores:
    """Measurements of windows of one game; `concat_scores` joins parts, however they are split."""

    sessions: list[str]
    """Episode of each window."""
    reconstruction: dict[str, Tensor]
    """psnr, ssim: (B, T); moving_psnr: (B, T - 1), NaN where nothing moved since the frame before.
    Empty for another model."""
    frames: dict[str, dict[str, Tensor]]
    """psnr, ssim, moving_psnr (B, F) of the model and the baseline; the last is NaN where nothing
    moved since the last given frame."""
    delta_B: Tensor
    """Delta-PSNR of each window; NaN where another model has no random branch."""
    codes_2K: Tensor
    """`worldmodel.evaluation.codebook_stats.count_codes`; no codes for another model."""
    fits: dict[str, GaussianFit]
    """Features of `real` frames and of model and baseline; empty without a feature network."""


def concat_scores(parts: Sequence[Scores]) -> Scores:
    """Concatenate the scores of several sets of windows."""
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
        {side: cat(lambda part, side=side: part.frames[side]) for side in MODEL_AND_BASELINE},
        torch.cat([part.delta_B for part in parts]),
        torch.stack([part.codes_2K for part in parts]).sum(0),
        fits,
    )


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
    """Measure one batch of windows. `seed` seeds its noise; `distance_share` of its frames enter
    the Frechet distance.
    """
    device = (
        torch.device("cpu")
        if isinstance(model, ExternalPredictions)
        else next(model.parameters()).device
    )
    batch = clips.batch(window_ids).to(device)
    frames, context = to_float_frames(batch.frames_BTHWC), settings.context
    given, truth = frames[:, :context], frames[:, context:]
    reconstruction, codes_2K = {}, torch.zeros(2, 0, dtype=torch.int64)
    if isinstance(model, ExternalPredictions):
        predicted, delta_B = model.predict(
            clips, window_ids, truth, min(settings.delta_t, settings.horizon)
        )
    else:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            tokens = model.tokenizer.encode(frames)
            reconstruction = _reconstruction(frames, model.tokenizer.decode(tokens).float())
            predicted, delta_B = _predict(model, frames, batch.actions_BT, settings, seed)
        codes_2K = count_codes(tokens, frames, model.cfg.tokenizer.codes).cpu()
    sides = {"prediction": predicted, "copy": given[:, -1:].expand_as(truth)}
    moving = moving_pixels(truth, given[:, -1:])
    return Scores(
        [
            clips.episodes[clips.locate(window_id)[0]].session_id
            for window_id in window_ids.tolist()
        ],
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
        {} if network is None else _fits(network, {"real": truth, **sides}, distance_share),
    )


def _reconstruction(frames_BTCHW: Tensor, made_BTCHW: Tensor) -> dict[str, Tensor]:
    """Measure the tokenizer's reconstruction of all frames, see `Scores`."""
    moved = moving_pixels(frames_BTCHW[:, 1:], frames_BTCHW[:, :-1])
    return {
        "psnr": frame_psnr(made_BTCHW, frames_BTCHW).cpu(),
        "ssim": frame_ssim(made_BTCHW, frames_BTCHW).cpu(),
        "moving_psnr": moving_psnr(frames_BTCHW[:, 1:], made_BTCHW[:, 1:], moved).cpu(),
    }


def _predict(
    model: WorldModel, frames_BTCHW: Tensor, actions_BT: Tensor, settings: Settings, seed: int
) -> tuple[Tensor, Tensor]:
    """Predict frames (B, F, C, H, W) and compute each window's delta-PSNR (B,)."""
    generator = torch.Generator(frames_BTCHW.device).manual_seed(seed)
    sampling: dict[str, Any] = {
        "steps": settings.steps,
        "mode": settings.mode,
        "temperature": settings.temperature,
    }
    predicted = model.generate(
        frames_BTCHW[:, : settings.context], actions_BT, generator=generator, **sampling
    ).float()
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
    """Return how many predicted frames determine frame t: all in one pass, else its pair and those
    before.

    The branch with random actions needs to predict only these; its noise is then that of the branch
    with true ones.
    """
    return settings.horizon if settings.mode == "one_pass" else min(settings.horizon, t + t % 2)


def _fits(network: FeatureNetwork, sets: dict[str, Tensor], share: float) -> dict[str, GaussianFit]:
    """Extract features of the same frames of each set; the copied frame's once per window."""
    fits = {}
    windows, horizon = sets["real"].shape[:2]
    chosen = (
        torch.arange(math.ceil(windows * horizon * share))
        .div(share)
        .long()
        .clamp_max(windows * horizon - 1)
    )
    for name, frames_BFCHW in sets.items():
        fits[name] = GaussianFit(network.dimensions)
        if name == "copy":
            fits[name].add(network.extract(frames_BFCHW[:, 0])[chosen // horizon])
        else:
            fits[name].add(network.extract(frames_BFCHW.flatten(0, 1)[chosen]))
    return fits
