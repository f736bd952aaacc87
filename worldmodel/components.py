"""The components that the one training loop trains: how each is built, and what a run of it needs. One row for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from envs.errors import InputError
from worldmodel import checkpoint
from worldmodel.dynamics import Dynamics
from worldmodel.job import Job
from worldmodel.latent_action import LatentActionModel, check_lam
from worldmodel.latent_objectives import JointObjective, LatentDynamicsObjective
from worldmodel.objectives import DynamicsObjective, FrameObjective, Objective, TokenizerObjective, UpscalerObjective
from worldmodel.tokenizer import Tokenizer
from worldmodel.upscaler import Upscaler, shape


@dataclass(frozen=True)
class Component:
    """What the training loop must know of a component."""

    build: Callable[[Job, torch.device], Objective]
    """Its first weights (random from the current seed, or those of `job.init`), and what is optimised."""
    needs_tokenizer: bool = False
    """Whether it is trained on the output of a trained, frozen tokenizer."""
    decoder_only: bool = False
    """Whether its decoder can be fine-tuned alone."""
    takes_lam: bool = False
    """Whether it can be trained on the actions of a latent action model."""
    needs_pairs: bool = False
    """Whether it is trained on frames beside the same frames larger."""


def _tokenizer(job: Job, device: torch.device) -> Objective:
    tokenizer = Tokenizer(job.config)
    if job.init is not None:
        checkpoint.load_component(tokenizer, "tokenizer", job.init)
    return TokenizerObjective(tokenizer.to(device), decoder_only=job.decoder_only)


def _lam(job: Job, device: torch.device) -> Objective:
    lam = LatentActionModel(job.config)
    if job.init is not None:
        checkpoint.load_component(lam, "lam", job.init)
    return FrameObjective(lam.to(device), labels=job.recipe.labels)


def _dynamics(job: Job, device: torch.device) -> Objective:
    assert job.tokenizer is not None
    frozen = checkpoint.load_tokenizer(job.tokenizer, device)
    if (frozen.cfg.tokenizer, frozen.cfg.size) != (job.config.tokenizer, job.config.size):
        raise InputError(
            f"{job.tokenizer}: not a tokenizer of the given configuration: train both with the same preset"
        )
    dynamics = Dynamics(job.config).to(device)
    if job.init is not None:
        checkpoint.load_component(dynamics, "dynamics", job.init)
        checkpoint.check_tokenizer(frozen, dynamics, job.tokenizer)
    dynamics.set_codebook(frozen.codebook)
    if not job.config.dynamics.latent_actions:
        return DynamicsObjective(dynamics, frozen)
    lam = _lam_of_dynamics(job, dynamics).to(device)
    if job.joint_lam:
        return JointObjective(dynamics, frozen, lam, labels=job.recipe.labels)
    return LatentDynamicsObjective(dynamics, frozen, lam)


def _lam_of_dynamics(job: Job, dynamics: Dynamics) -> LatentActionModel:
    """The latent action model of a run on latent actions; one that stays as it is has to be that of `init`."""
    source = job.lam or job.init
    lam = LatentActionModel(job.config) if source is None else checkpoint.load_lam(source)
    if (lam.cfg.lam, lam.cfg.size) != (job.config.lam, job.config.size):
        raise InputError(f"{source}: not a latent action model of the given configuration: train both with one preset")
    if not job.joint_lam:
        check_lam(dynamics, lam)
    return lam


def _upscaler(job: Job, device: torch.device) -> Objective:
    upscaler = Upscaler(shape(job.recipe.upscaler))
    if job.init is not None:
        checkpoint.load_weights(upscaler, Upscaler.load(job.init).state_dict(), job.init)
    return UpscalerObjective(upscaler.to(device))


TRAINED: dict[str, Component] = {
    "tokenizer": Component(_tokenizer, decoder_only=True),
    "lam": Component(_lam),
    "dynamics": Component(_dynamics, needs_tokenizer=True, takes_lam=True),
    "upscaler": Component(_upscaler, needs_pairs=True),
}
"""By the names of `worldmodel.recipes.RECIPES`, which says how long each is trained."""
