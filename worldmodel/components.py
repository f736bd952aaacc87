"""The components that the one training loop trains: how each is built, and what a run of it needs. One row for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from envs.errors import InputError
from worldmodel import checkpoint
from worldmodel.dynamics import Dynamics
from worldmodel.job import Job
from worldmodel.objectives import DynamicsObjective, Objective, TokenizerObjective
from worldmodel.tokenizer import Tokenizer


@dataclass(frozen=True)
class Component:
    """What the training loop must know of a component."""

    build: Callable[[Job, torch.device], Objective]
    """Its first weights (random from the current seed, or those of `job.init`), and what is optimised."""
    needs_tokenizer: bool = False
    """Whether it is trained on the output of a trained, frozen tokenizer."""
    decoder_only: bool = False
    """Whether its decoder can be fine-tuned alone."""


def _tokenizer(job: Job, device: torch.device) -> Objective:
    tokenizer = Tokenizer(job.config)
    if job.init is not None:
        checkpoint.load_component(tokenizer, "tokenizer", job.init)
    return TokenizerObjective(tokenizer.to(device), decoder_only=job.decoder_only)


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
    return DynamicsObjective(dynamics, frozen)


TRAINED: dict[str, Component] = {
    "tokenizer": Component(_tokenizer, decoder_only=True),
    "dynamics": Component(_dynamics, needs_tokenizer=True),
}
"""By the names of `worldmodel.recipes.RECIPES`, which says how long each is trained."""
