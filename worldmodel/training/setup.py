"""Build the parts of a training run: objective, datasets, optimizer, loader and trainer."""

from collections.abc import Callable

import torch

from envs.utils.artifact_dir import copy_weights
from envs.utils.errors import InputError
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.dataset import Dataset
from worldmodel.data.loader import ClipLoader
from worldmodel.data.pair_dataset import PairDataset, check_sizes
from worldmodel.data.streaming_dataset import StreamingDataset
from worldmodel.data.token_dataset import CacheBarrier, cache_tokens
from worldmodel.loading import load_component, load_lam, load_tokenizer, load_upscaler
from worldmodel.models.cpu_kernels import optimize_model
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.models.weights import check_lam, check_tokenizer
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
from worldmodel.training.trainer import Trainer, open_newest, seed_everything


def build_objective(run: TrainingRun, device: torch.device) -> Objective:
    """Build a component with its first weights, random from the seed or those of `run.init`."""
    seed_everything(run.recipe.seed, "first weights")
    match run.component:
        case "tokenizer":
            return _build_tokenizer(run, device)
        case "lam":
            return _build_lam(run, device)
        case "dynamics":
            return _build_dynamics(run, device)
        case "upscaler":
            return _build_upscaler(run, device)
        case unknown:
            raise InputError(f"unknown component {unknown!r}")


def _build_tokenizer(run: TrainingRun, device: torch.device) -> Objective:
    tokenizer = Tokenizer(run.config)
    if run.init is not None:
        load_component(tokenizer, "tokenizer", run.init)
    return TokenizerObjective(tokenizer.to(device), decoder_only=run.decoder_only)


def _build_lam(run: TrainingRun, device: torch.device) -> Objective:
    lam = LatentActionModel(run.config)
    if run.init is not None:
        load_component(lam, "lam", run.init)
    return LatentActionObjective(lam.to(device), label_fraction=run.recipe.label_fraction)


def _build_dynamics(run: TrainingRun, device: torch.device) -> Objective:
    assert run.tokenizer is not None
    tokenizer = load_tokenizer(run.tokenizer, device)
    if (tokenizer.cfg.tokenizer, tokenizer.cfg.size) != (run.config.tokenizer, run.config.size):
        raise InputError(
            f"{run.tokenizer}: not a tokenizer of the given configuration: train both with "
            "the same preset"
        )
    dynamics = Dynamics(run.config).to(device)
    if run.init is not None:
        load_component(dynamics, "dynamics", run.init)
        check_tokenizer(tokenizer, dynamics, run.tokenizer)
    dynamics.set_codebook(tokenizer.codebook)
    if not run.config.dynamics.latent_actions:
        return DynamicsObjective(dynamics, tokenizer)
    lam = _lam_of_dynamics(run, dynamics).to(device)
    if run.joint_lam:
        return JointObjective(dynamics, tokenizer, lam, label_fraction=run.recipe.label_fraction)
    return DynamicsObjective(dynamics, tokenizer, lam)


def _lam_of_dynamics(run: TrainingRun, dynamics: Dynamics) -> LatentActionModel:
    """Build the latent action model of a dynamics run. A frozen one has to be that of `init`."""
    source = run.lam or run.init
    lam = LatentActionModel(run.config) if source is None else load_lam(source)
    if (lam.cfg.lam, lam.cfg.size) != (run.config.lam, run.config.size):
        raise InputError(
            f"{source}: not a latent action model of the given configuration: train both "
            "with one preset"
        )
    if not run.joint_lam:
        check_lam(dynamics, lam)
    return lam


def _build_upscaler(run: TrainingRun, device: torch.device) -> Objective:
    upscaler = Upscaler(upscaler_config(run.recipe.upscaler))
    if run.init is not None:
        copy_weights(upscaler, load_upscaler(run.init).state_dict(), run.init)
    return UpscalerObjective(upscaler.to(device))


def open_data(
    run: TrainingRun, objective: Objective, device: torch.device, *, part: int = 0, parts: int = 1
) -> tuple[Dataset, Dataset | None]:
    """Open the training and validation split with the fields that the objective needs.

    `part` of `parts` is the rank on this machine: one copies episodes, all encode tokens.
    """
    if "large_frames" in objective.needs:
        return _open_pairs(run, part=part, parts=parts)
    if run.recipe.streaming_buffer:
        return _open_streams(run)
    train, validation = _open_clips(list(run.data), run, part=part, parts=parts)
    if run.trains_lam:
        train.reveal_actions(run.recipe.label_fraction)
    # Encoding all windows once is worthwhile where the run reads each of them about once.
    reads_all = run.recipe.iterations * run.recipe.batch_size >= len(train)
    if "tokens" in objective.needs and run.recipe.token_cache and reads_all:
        tokens = cache_tokens(
            objective.encoders["tokens"],
            train,
            run.cache_dir,
            lam=objective.encoders.get("latent_actions"),
            frames="frames" in objective.needs,
            device=device,
            sharing=CacheBarrier(part, parts, lambda: _barrier(parts)),
        )
        return tokens, _unless_empty(validation)
    return train, _unless_empty(validation)


def _open_clips(
    uris: list[str], run: TrainingRun, *, part: int, parts: int
) -> tuple[ClipDataset, ClipDataset]:
    """Open both splits of data sets, after one process of the machine has copied the episodes."""
    length, stride = run.recipe.clip_length, run.recipe.clip_stride
    if part == 0:
        ClipDataset(uris, run.cache_dir, length=length)
    _barrier(parts)
    return (
        ClipDataset(uris, run.cache_dir, length=length, stride=stride, split="train"),
        ClipDataset(uris, run.cache_dir, length=length, stride=stride, split="val"),
    )


def _open_pairs(run: TrainingRun, *, part: int, parts: int) -> tuple[Dataset, Dataset | None]:
    """Open the small and large frames that an upscaler needs."""
    small = _open_clips(list(run.data), run, part=part, parts=parts)
    large = _open_clips([str(run.pairs)], run, part=part, parts=parts)
    train, validation = (PairDataset(*sides) for sides in zip(small, large, strict=True))
    upscaler = upscaler_config(run.recipe.upscaler)
    check_sizes(train, upscaler.size, upscaler.factor)
    return train, _unless_empty(validation)


def _open_streams(run: TrainingRun) -> tuple[Dataset, Dataset | None]:
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
    return train, _unless_empty(validation)


def _unless_empty(dataset: Dataset) -> Dataset | None:
    return dataset if len(dataset) else None


def _barrier(parts: int) -> None:
    if parts > 1:
        torch.distributed.barrier()


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
    """Build one rank's trainer, restored from the newest checkpoint in `run.out`, if any.

    `stop` and `saved`: see `Trainer`.
    """
    recipe = run.recipe
    fingerprint = objective.fingerprint()
    restored = open_newest(run.out, fingerprint)
    if restored is not None:
        copy_weights(objective.model, restored.weights(), restored.path)
    optimize_model(objective.model, worker.device, compile=recipe.compile)
    if worker.device.type == "cpu":
        keep_freed_memory()

    # FSDP replaces the parameters by shards: restore weights before, build the optimizer after it.
    wrapped_objective = wrap_model(objective, recipe.parallelism, worker)
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

    step = 0 if restored is None else restored.step
    loader = ClipLoader(
        data,
        recipe.batch_size,
        seed=recipe.seed,
        rank=worker.rank,
        ranks=worker.ranks,
        threads=recipe.loader_threads,
        state=None if restored is None else dict(restored.state["data_state"]),
        batches=recipe.iterations - step,
    )
    return Trainer(
        run=run,
        objective=objective,
        wrapped_objective=wrapped_objective,
        optimizer=optimizer,
        ema=ema,
        loader=loader,
        validation=validation,
        meter=_build_meter(run, data, worker),
        worker=worker,
        fingerprint=fingerprint,
        stop=stop,
        saved=saved,
        step=step,
        best=None if restored is None else restored.state.get("best"),
    )


def _build_meter(run: TrainingRun, data: Dataset, worker: Worker) -> ThroughputMeter:
    """Build the meter of a run's speed; the peak of the hardware is measured for rank 0 alone."""
    cost = cost_of(
        run.component,
        run.config,
        run.recipe,
        decoder_only=run.decoder_only,
        cached="tokens" in data.provides,
        joint_lam=run.joint_lam,
    )
    peak = device_peak(worker.device, run.recipe.precision) if cost and worker.rank == 0 else 0.0
    return ThroughputMeter(cost, peak)
