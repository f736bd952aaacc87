"""The components that the one training loop trains: how each is built, and what a run of it needs. One row for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from envs.utils.errors import InputError
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.pair_dataset import PairDataset, check_sizes
from worldmodel.data.streaming_dataset import StreamingDataset
from worldmodel.data.token_dataset import CacheBarrier, TokenDataset, cache_tokens
from worldmodel.loading import load_component, load_lam, load_tokenizer, load_upscaler
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, shape
from worldmodel.models.weights import check_lam, check_tokenizer, load_weights
from worldmodel.training.objectives import (
    DynamicsObjective,
    FrameObjective,
    JointObjective,
    LatentDynamicsObjective,
    Objective,
    TokenizerObjective,
    UpscalerObjective,
)
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.trainer import TrainData, Validation, seed_everything


@dataclass(frozen=True)
class Component:
    """What the training loop must know of a component."""

    build: Callable[[TrainingRun, torch.device], Objective]
    """Its first weights (random from the current seed, or those of `job.init`), and what is optimised."""
    needs_tokenizer: bool = False
    """Whether it is trained on the output of a trained, frozen tokenizer."""
    decoder_only: bool = False
    """Whether its decoder can be fine-tuned alone."""
    takes_lam: bool = False
    """Whether it can be trained on the actions of a latent action model."""
    needs_pairs: bool = False
    """Whether it is trained on frames beside the same frames larger."""


def _tokenizer(job: TrainingRun, device: torch.device) -> Objective:
    tokenizer = Tokenizer(job.config)
    if job.init is not None:
        load_component(tokenizer, "tokenizer", job.init)
    return TokenizerObjective(tokenizer.to(device), decoder_only=job.decoder_only)


def _lam(job: TrainingRun, device: torch.device) -> Objective:
    lam = LatentActionModel(job.config)
    if job.init is not None:
        load_component(lam, "lam", job.init)
    return FrameObjective(lam.to(device), labels=job.recipe.labels)


def _dynamics(job: TrainingRun, device: torch.device) -> Objective:
    assert job.tokenizer is not None
    frozen = load_tokenizer(job.tokenizer, device)
    if (frozen.cfg.tokenizer, frozen.cfg.size) != (job.config.tokenizer, job.config.size):
        raise InputError(
            f"{job.tokenizer}: not a tokenizer of the given configuration: train both with the same preset"
        )
    dynamics = Dynamics(job.config).to(device)
    if job.init is not None:
        load_component(dynamics, "dynamics", job.init)
        check_tokenizer(frozen, dynamics, job.tokenizer)
    dynamics.set_codebook(frozen.codebook)
    if not job.config.dynamics.latent_actions:
        return DynamicsObjective(dynamics, frozen)
    lam = _lam_of_dynamics(job, dynamics).to(device)
    if job.joint_lam:
        return JointObjective(dynamics, frozen, lam, labels=job.recipe.labels)
    return LatentDynamicsObjective(dynamics, frozen, lam)


def _lam_of_dynamics(job: TrainingRun, dynamics: Dynamics) -> LatentActionModel:
    """The latent action model of a run on latent actions; one that stays as it is has to be that of `init`."""
    source = job.lam or job.init
    lam = LatentActionModel(job.config) if source is None else load_lam(source)
    if (lam.cfg.lam, lam.cfg.size) != (job.config.lam, job.config.size):
        raise InputError(f"{source}: not a latent action model of the given configuration: train both with one preset")
    if not job.joint_lam:
        check_lam(dynamics, lam)
    return lam


def _upscaler(job: TrainingRun, device: torch.device) -> Objective:
    upscaler = Upscaler(shape(job.recipe.upscaler))
    if job.init is not None:
        load_weights(upscaler, load_upscaler(job.init).state_dict(), job.init)
    return UpscalerObjective(upscaler.to(device))


COMPONENTS: dict[str, Component] = {
    "tokenizer": Component(_tokenizer, decoder_only=True),
    "lam": Component(_lam),
    "dynamics": Component(_dynamics, needs_tokenizer=True, takes_lam=True),
    "upscaler": Component(_upscaler, needs_pairs=True),
}
"""By the names of `worldmodel.training.config.RECIPES`, which says how long each is trained."""


def build_objective(job: TrainingRun, device: torch.device) -> Objective:
    """The component with its first weights (random from the seed, or those of `init`), and what is optimised."""
    seed_everything(job.recipe.seed, "first weights")
    return COMPONENTS[job.component].build(job, device)


def open_data(
    job: TrainingRun, objective: Objective, device: torch.device, *, part: int = 0, parts: int = 1
) -> tuple[TrainData, Validation | None]:
    """Training windows and validation clips. `part` of `parts` is the rank on this machine: one stages, all encode."""
    recipe = job.recipe
    if recipe.stream_sessions:
        return _open_streams(job)
    if job.pairs is not None:
        return _open_pairs(job, part=part, parts=parts)
    if part == 0:
        ClipDataset(job.data, job.cache_dir, length=recipe.clip_length)
    _barrier(parts)
    train, validation = (
        ClipDataset(job.data, job.cache_dir, length=recipe.clip_length, stride=recipe.clip_stride, split=split)
        for split in ("train", "val")
    )
    if job.trains_lam:
        train.reveal_actions(recipe.labels)
    windows: ClipDataset | TokenDataset = train
    pays = recipe.token_cache and recipe.iterations * recipe.batch_size >= len(train)
    if isinstance(objective, DynamicsObjective | JointObjective) and pays:
        windows = cache_tokens(
            objective.tokenizer,
            train,
            job.cache_dir,
            lam=objective.lam if isinstance(objective, LatentDynamicsObjective) else None,
            frames=isinstance(objective, JointObjective),  # its latent action model changes and reads them
            device=device,
            sharing=CacheBarrier(part, parts, lambda: _barrier(parts)),
        )
    return windows, validation if len(validation) else None


def _open_pairs(job: TrainingRun, *, part: int, parts: int) -> tuple[PairDataset, PairDataset | None]:
    """`open_data` for an upscaler: frames beside the same frames larger."""
    sides: list[list[str]] = [list(job.data), [str(job.pairs)]]
    length, stride = job.recipe.clip_length, job.recipe.clip_stride
    if part == 0:
        for uris in sides:
            ClipDataset(uris, job.cache_dir, length=length)
    _barrier(parts)
    shape_of = shape(job.recipe.upscaler)
    train, validation = (
        PairDataset(*(ClipDataset(uris, job.cache_dir, length=length, stride=stride, split=split) for uris in sides))
        for split in ("train", "val")
    )
    check_sizes(train, shape_of.size, shape_of.factor)
    return train, validation if len(validation) else None


def _open_streams(job: TrainingRun) -> tuple[StreamingDataset, StreamingDataset | None]:
    """`open_data` without a local copy: tokens are encoded in each step."""
    recipe = job.recipe
    train, validation = (
        StreamingDataset(
            job.data,
            length=recipe.clip_length,
            stride=recipe.clip_stride,
            split=split,
            sessions=recipe.stream_sessions,
            max_bytes=recipe.stream_bytes,
        )
        for split in ("train", "val")
    )
    if job.trains_lam:
        train.reveal_actions(recipe.labels)
    return train, validation if len(validation) else None


def _barrier(parts: int) -> None:
    if parts > 1:
        torch.distributed.barrier()
