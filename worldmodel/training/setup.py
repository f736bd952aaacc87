"""Construction of a training run: objective, datasets, optimizer, loader and trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from envs.utils.artifact_dir import copy_weights
from envs.utils.errors import InputError
from worldmodel import checkpoint
from worldmodel.data.cache_sharing import CacheSharing, share_cache
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.dataset import Dataset
from worldmodel.data.loader import ClipLoader
from worldmodel.data.pair_dataset import PairDataset, check_sizes
from worldmodel.data.streaming_dataset import StreamingDataset
from worldmodel.data.token_dataset import cache_tokens
from worldmodel.loading import load_component, load_lam, load_tokenizer, load_upscaler
from worldmodel.models.compilation import optimize_model
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import STTransformer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.models.weights import check_lam, check_tokenizer, tensors_sha256
from worldmodel.training.clip_weights import clip_uncertainty, clip_weights
from worldmodel.training.distributed import Worker, load_optimizer, wrap_model
from worldmodel.training.ema import EMA
from worldmodel.training.flops import cost_of
from worldmodel.training.objectives import (
    DynamicsObjective,
    JointObjective,
    LatentActionObjective,
    Objective,
    TokenizerObjective,
    UpscalerObjective,
)
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.throughput import ThroughputMeter, device_peak, keep_freed_memory
from worldmodel.training.trainer import Trainer, seed_everything
from worldmodel.uncertainty import load_model


def build_objective(run: TrainingRun, device: torch.device) -> Objective:
    """Build a component and its losses, with random weights of the seed or those of `run.init`."""
    seed_everything(run.recipe.seed, "first weights")
    match run.component:
        case "tokenizer":
            tokenizer = Tokenizer(run.config)
            _load_init(tokenizer, run)
            return TokenizerObjective(tokenizer.to(device), decoder_only=run.decoder_only)
        case "lam":
            lam = LatentActionModel(run.config)
            _load_init(lam, run)
            return LatentActionObjective(lam.to(device), label_fraction=run.recipe.label_fraction)
        case "dynamics":
            return _build_dynamics(run, device)
        case "upscaler":
            upscaler = Upscaler(upscaler_config(run.recipe.upscaler))
            if run.init is not None:
                copy_weights(upscaler, load_upscaler(run.init).state_dict(), run.init)
            return UpscalerObjective(upscaler.to(device))
        case unknown:
            raise InputError(f"unknown component {unknown!r}")


def _load_init(model: nn.Module, run: TrainingRun) -> None:
    if run.init is not None:
        load_component(model, run.component, run.init)


def _build_dynamics(run: TrainingRun, device: torch.device) -> Objective:
    # The dynamics predicts tokens of a frozen tokenizer.
    assert run.tokenizer is not None
    tokenizer = load_tokenizer(run.tokenizer, device, compile=run.recipe.compiles)
    if (tokenizer.cfg.tokenizer, tokenizer.cfg.size) != (run.config.tokenizer, run.config.size):
        raise InputError(
            f"{run.tokenizer}: not a tokenizer of the given configuration: train both with "
            "the same preset"
        )
    dynamics = Dynamics(run.config).to(device)
    _load_init(dynamics, run)
    if run.init is not None:
        check_tokenizer(tokenizer, dynamics, run.tokenizer)
    dynamics.set_codebook(tokenizer.codebook)
    if not run.config.dynamics.latent_actions:
        return DynamicsObjective(dynamics, tokenizer)

    # Latent actions come from a model that is trained jointly, or from a frozen one.
    source = run.lam or run.init
    compile = run.recipe.compiles
    lam = (
        LatentActionModel(run.config)
        if source is None
        else load_lam(source, device, compile=compile)
    )
    if (lam.cfg.lam, lam.cfg.size) != (run.config.lam, run.config.size):
        raise InputError(
            f"{source}: not a latent action model of the given configuration: train both "
            "with the same preset"
        )
    if run.joint_lam:
        share = run.recipe.label_fraction
        return JointObjective(dynamics, tokenizer, lam.to(device), label_fraction=share)
    check_lam(dynamics, lam)
    return DynamicsObjective(dynamics, tokenizer, lam.to(device))


def open_data(
    run: TrainingRun, objective: Objective, worker: Worker
) -> tuple[Dataset, Dataset | None]:
    """Open the training split and the validation split, None if it is empty, for an objective.

    All ranks must call this. Of those that see the same cache folder one copies episodes, and all
    encode tokens.
    """
    train: Dataset
    validation: Dataset
    if run.recipe.streaming_buffer and "large_frames" not in objective.needs:
        train, validation = _open_streams(run)
    else:
        with share_cache(run.cache, worker.rank, worker.ranks) as sharing:
            train, validation = _open_cached(run, objective, worker.device, sharing)
    return train, validation if len(validation) else None


def _open_cached(
    run: TrainingRun, objective: Objective, device: torch.device, sharing: CacheSharing
) -> tuple[Dataset, Dataset]:
    """Open both splits of the local copy, which is made first where it is missing."""
    if "large_frames" in objective.needs:
        return _open_pairs(run, sharing)
    clips, validation = _open_clips(run.data, run, sharing)
    if run.trains_lam:
        clips.reveal_actions(run.recipe.label_fraction)
    train = _encode_tokens(run, objective, clips, device, sharing)
    if run.recipe.draws_by_weight:
        _weigh_clips(run, clips, device, sharing)
        train.manifest_hash = clips.manifest_hash
    return train, validation


def _weigh_clips(
    run: TrainingRun, clips: ClipDataset, device: torch.device, sharing: CacheSharing
) -> None:
    """Set the weights of the clips; one of the ranks that see the cache folder scores them."""
    shares, prioritised = run.recipe.data_shares, run.recipe.prioritised
    uncertainty_N, origin = None, "data shares"
    if run.priority_model is not None:
        world = load_model(run.priority_model, str(device), compile=run.recipe.compiles)
        origin = tensors_sha256(world.state_dict())
        if sharing.part == 0:
            clip_uncertainty(clips, world, run.cache)
        sharing.meet()
        uncertainty_N = clip_uncertainty(clips, world, run.cache)
    clips.weigh(clip_weights(clips, shares, prioritised, uncertainty_N), origin)


def _encode_tokens(
    run: TrainingRun,
    objective: Objective,
    clips: ClipDataset,
    device: torch.device,
    sharing: CacheSharing,
) -> Dataset:
    """Store the tokens of all windows, if the run reads each of them about once or more often."""
    reads_all = run.recipe.iterations * run.recipe.batch_size >= len(clips)
    if not ("tokens" in objective.needs and run.recipe.token_cache and reads_all):
        return clips
    return cache_tokens(
        objective.encoders["tokens"],
        clips,
        run.cache,
        lam=objective.encoders.get("latent_actions"),
        frames="frames" in objective.needs,
        device=device,
        sharing=sharing,
    )


def _open_clips(
    uris: Sequence[str | Path], run: TrainingRun, sharing: CacheSharing
) -> tuple[ClipDataset, ClipDataset]:
    """Open both splits of data sets, after one rank has copied the episodes to the cache folder."""
    length, stride = run.recipe.clip_length, run.recipe.clip_stride
    if sharing.part == 0:
        ClipDataset(uris, run.cache, length=length)
    sharing.meet()
    train, validation = (
        ClipDataset(uris, run.cache, length=length, stride=stride, split=split)
        for split in ("train", "val")
    )
    # A shard that one machine could not read would shift the windows of its ranks.
    sharing.check_same(train.manifest_hash)
    return train, validation


def _open_pairs(run: TrainingRun, sharing: CacheSharing) -> tuple[PairDataset, PairDataset]:
    """Open both splits of the small and large frames that an upscaler needs."""
    small = _open_clips(run.data, run, sharing)
    large = _open_clips([str(run.pairs)], run, sharing)
    upscaler = upscaler_config(run.recipe.upscaler)
    train, validation = (PairDataset(*sides) for sides in zip(small, large, strict=True))
    check_sizes(train, upscaler.size, upscaler.factor)
    return train, validation


def _open_streams(run: TrainingRun) -> tuple[StreamingDataset, StreamingDataset]:
    """Open both splits without a local copy; tokens are encoded in each step."""
    recipe = run.recipe
    train, validation = (
        StreamingDataset(
            run.data,
            length=recipe.clip_length,
            stride=recipe.clip_stride,
            split=split,
            sessions=recipe.streaming_buffer,
            max_bytes=recipe.streaming_buffer_bytes,
        )
        for split in ("train", "val")
    )
    if run.trains_lam:
        train.reveal_actions(recipe.label_fraction)
    return train, validation


def _open_newest(out: Path, fingerprint: dict[str, str]) -> checkpoint.Checkpoint | None:
    """Open the newest checkpoint of a run's folder; None if there is none.

    Raise InputError if it was trained with other frozen models than those of `fingerprint`.
    """
    newest = checkpoint.newest_checkpoint(out)
    if newest is None:
        return None
    opened = checkpoint.open_checkpoint(newest)
    for name, value in fingerprint.items():
        recorded = opened.state.get(name)
        if recorded != value:
            raise InputError(
                f"{opened.path}: the run's {name} was another, {str(recorded)[:12]}, not "
                f"{value[:12]}: resume it with the models that it was started with"
            )
    return opened


def build_trainer(
    run: TrainingRun,
    objective: Objective,
    data: Dataset,
    validation: Dataset | None,
    worker: Worker,
    *,
    stop: Callable[[], bool] = lambda: False,
    saved: Callable[[int], None] = lambda step: None,
) -> Trainer:
    """Build one rank's trainer, restored from the newest checkpoint in `run.out` if there is one.

    `stop` and `saved` are those of `Trainer`.
    """
    recipe = run.recipe
    fingerprint = objective.fingerprint()
    restored = _open_newest(run.out, fingerprint)
    state = {} if restored is None else restored.state
    if restored is not None:
        copy_weights(objective.model, restored.weights(), restored.path)
    for module in objective.model.modules():
        if isinstance(module, STTransformer):
            module.activation_checkpointing = recipe.activation_checkpointing
    optimize_model(objective.model, worker.device, compile=recipe.compiles)
    if worker.device.type == "cpu":
        keep_freed_memory()

    # FSDP replaces the parameters by shards: load the weights before, build the optimizer after.
    wrapped_objective = wrap_model(
        objective,
        recipe.parallelism,
        worker,
        precision=recipe.precision,
        # From clips of two frames the decoder of a latent action model sees the first alone, and
        # leaves the embedding of later frames out.
        find_unused_parameters=run.trains_lam and recipe.clip_length == 2,
    )
    trainable = objective.trainable()
    optimizer = torch.optim.AdamW(
        trainable.values(),
        lr=recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    ema = EMA(trainable, recipe.ema) if recipe.ema else None
    if restored is not None:
        load_optimizer(objective.model, optimizer, restored)
        if ema is not None:
            ema.load(restored.average())

    step = int(state.get("step", 0))
    loader = ClipLoader(
        data,
        recipe.batch_size,
        seed=recipe.seed,
        rank=worker.rank,
        ranks=worker.ranks,
        threads=recipe.loader_threads,
        state=state.get("data_state"),
        batches=recipe.iterations - step,
        pin=worker.device.type == "cuda",
    )
    return Trainer(
        run=run,
        objective=objective,
        wrapped_objective=wrapped_objective,
        optimizer=optimizer,
        ema=ema,
        loader=loader,
        validation=validation,
        meter=_build_meter(run, worker, cached="tokens" in data.provides),
        worker=worker,
        fingerprint=fingerprint,
        stop=stop,
        saved=saved,
        step=step,
        best=state.get("best"),
    )


def _build_meter(run: TrainingRun, worker: Worker, *, cached: bool) -> ThroughputMeter:
    options = {"decoder_only": run.decoder_only, "cached": cached, "joint_lam": run.joint_lam}
    cost = cost_of(run.component, run.config, run.recipe, **options)
    # Only rank 0 logs, so that no other rank needs the peak of its hardware.
    peak = device_peak(worker.device, run.recipe.precision) if worker.rank == 0 else 0.0
    return ThroughputMeter(cost, peak)
