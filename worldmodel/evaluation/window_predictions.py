"""Predictions of windows: by a world model on recorded or on inferred actions, or by its LAM.

Shapes: B windows, T = context + F frames, F predicted frames.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.config import GenerationMode, ReplacedActions
from worldmodel.metrics import delta_psnr
from worldmodel.models.genie import GenieRedux, WorldModel
from worldmodel.models.latent_action import LatentActionModel


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
    actions: Literal["recorded", "inferred"] = "recorded"
    """recorded, or inferred: those that the latent action model of a GenieRedux infers from the
    true frames, also the predicted ones."""
    predictor: Literal["dynamics", "lam"] = "dynamics"
    """dynamics, or lam: the latent action model of a GenieRedux itself, which predicts each frame
    from the true ones before it and the inferred action."""
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
    def infers(self) -> bool:
        """True if no recorded action is used."""
        return self.actions == "inferred" or self.predictor == "lam"

    @property
    def delta_frame(self) -> int:
        """Predicted frame at which delta-PSNR is measured, from 1."""
        return min(self.delta_t, self.horizon)


def driven_model(model: Any, game: str | None, settings: Settings) -> Any:
    """Return the model on the buttons of a game, or on latent actions if they are inferred.

    Raises InputError if actions are to be inferred by a model without a latent action model.
    """
    if not settings.infers:
        return model.for_game(game)
    if not isinstance(model, GenieRedux):
        raise InputError(
            f"{type(model).__name__} infers no actions: give a GenieRedux, or actions recorded"
        )
    return model


def predict_windows(
    model: WorldModel, frames_BTCHW: Tensor, actions_BT: Tensor, settings: Settings, seed: int
) -> tuple[Tensor, Tensor]:
    """Predict frames (B, F, C, H, W) and compute each window's delta-PSNR (B,).

    That of a latent action model is NaN: it never predicts from its own frames.
    """
    if settings.predictor == "lam":
        predicted = _lam(model).predict_next(frames_BTCHW)[:, settings.context - 1 :]
        return predicted, torch.full((len(predicted),), torch.nan)
    if settings.infers:
        actions_BT = _lam(model).encode(frames_BTCHW)
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


def _lam(model: WorldModel) -> LatentActionModel:
    assert isinstance(model, GenieRedux)
    return model.lam
