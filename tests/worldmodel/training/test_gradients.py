"""DDP waits for a gradient of each parameter: all have one, but for those that are searched for."""

import dataclasses
from typing import Any

import pytest
import torch

from worldmodel.config import WorldModelConfig, preset
from worldmodel.data.batch import Batch
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import SHAPES, Upscaler
from worldmodel.training.objectives import (
    DynamicsObjective,
    JointObjective,
    LatentActionObjective,
    Objective,
    TokenizerObjective,
    UpscalerObjective,
)

DEBUG = preset("debug")


def configured(codebook: str = "gradient", objective: str = "clean_past") -> WorldModelConfig:
    """Return `debug` with a quantiser that starts late, and an objective of the dynamics."""
    codes: dict[str, Any] = {"codebook": codebook, "quantizer_start": 0.5}
    return dataclasses.replace(
        DEBUG,
        tokenizer=dataclasses.replace(DEBUG.tokenizer, **codes),
        lam=dataclasses.replace(DEBUG.lam, **codes),
        dynamics=dataclasses.replace(DEBUG.dynamics, objective=objective),
    )


def dynamics(config: WorldModelConfig) -> Dynamics:
    model = Dynamics(config)
    model.set_codebook(torch.randn(config.tokenizer.codes, config.tokenizer.code_dim))
    return model


def joint(config: WorldModelConfig) -> Objective:
    latent = config.with_latent_actions()
    lam = LatentActionModel(latent)
    return JointObjective(dynamics(latent), Tokenizer(latent), lam, label_fraction=0.5)


OBJECTIVES: dict[str, Any] = {
    "tokenizer": lambda: TokenizerObjective(Tokenizer(configured())),
    "tokenizer, moving codes": lambda: TokenizerObjective(Tokenizer(configured("ema"))),
    "decoder": lambda: TokenizerObjective(Tokenizer(configured()), decoder_only=True),
    "lam": lambda: LatentActionObjective(LatentActionModel(configured())),
    "lam, moving codes": lambda: LatentActionObjective(LatentActionModel(configured("ema"))),
    "labelled lam": lambda: LatentActionObjective(
        LatentActionModel(configured()), label_fraction=0.5
    ),
    "joint": lambda: joint(configured()),
    "upscaler": lambda: UpscalerObjective(Upscaler(SHAPES["debug"])),
    **{
        objective: lambda objective=objective: DynamicsObjective(
            dynamics(configured(objective=objective)), Tokenizer(configured())
        )
        for objective in ("masked", "masked_frames", "clean_past")
    },
}


def without_gradient(objective: Objective, frames: int, progress: float) -> set[str]:
    """Return the trained parameters that get no gradient from a batch of clips."""
    batch = Batch(
        window_ids_B=torch.arange(2),
        frames_BTHWC=torch.randint(256, (2, frames, 64, 64, 3), dtype=torch.uint8),
        actions_BT=torch.randint(5, (2, frames - 1)),
        small_frames_BhwC=torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8),
        large_frames_BHWC=torch.randint(256, (2, 256, 256, 3), dtype=torch.uint8),
    )
    objective.zero_grad()
    objective(batch, progress)["loss"].backward()
    return {name for name, weight in objective.trainable().items() if weight.grad is None}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("frames", [2, 5])
def test_all_parameters_get_gradients_but_one_embedding_in_clips_of_two_frames(
    name: str, frames: int
) -> None:
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    for progress in (0.0, 0.9):  # before and after the quantiser starts
        unused = without_gradient(objective, frames, progress)
        if frames == 2 and ("lam" in name or name == "joint"):
            assert unused
            assert all("given_later." in parameter for parameter in unused)
        else:
            assert not unused
