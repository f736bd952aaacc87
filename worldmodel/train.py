"""Training a component of the world model through Ray Train: in this process, or on workers that average gradients.

    train("tokenizer", config=preset("cpu"), recipe=recipe("tokenizer", "cpu"), data=["data"], out="runs/tokenizer")
    train("dynamics", ..., tokenizer="runs/tokenizer", out="runs/dynamics")
    train("dynamics", ..., tokenizer="runs/tokenizer", joint_lam=True, out="runs/genie")

The run's folder holds config.json, metrics.jsonl, tensorboard/ and checkpoints/. The loop is in `worldmodel.trainer`.
"""

import logging
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from envs.cluster import machines, ray_session
from envs.errors import InputError
from envs.places import is_remote
from envs.runs import console, progress, read_metrics
from worldmodel import checkpoint
from worldmodel.clips import Clips
from worldmodel.components import TRAINED
from worldmodel.config import WorldModelConfig
from worldmodel.job import Job
from worldmodel.latent_objectives import JointObjective, LatentDynamicsObjective
from worldmodel.objectives import DynamicsObjective, Objective
from worldmodel.pairs import PairClips, check_sizes
from worldmodel.recipes import COMPONENTS, TrainConfig, recipe
from worldmodel.stopping import Interrupt, StopFile
from worldmodel.streaming import StreamClips
from worldmodel.token_cache import Sharing, TokenClips, cache_tokens
from worldmodel.trainer import NonFiniteLoss, Trainer, Validation, Windows, seed_everything
from worldmodel.transformer import Stack
from worldmodel.upscaler import shape

__all__ = ["NonFiniteLoss", "TrainConfig", "recipe", "train"]

RESTARTS = 3
"""How often workers that died are replaced, each time from the newest checkpoint."""


def train(
    component: str,
    *,
    config: WorldModelConfig,
    recipe: TrainConfig,
    data: Sequence[str | Path],
    out: str | Path,
    workers: int = 0,
    resume: bool = False,
    init: str | Path | None = None,
    tokenizer: str | Path | None = None,
    lam: str | Path | None = None,
    joint_lam: bool = False,
    decoder_only: bool = False,
    pairs: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Train a component of `worldmodel.components` on the train split of `data`; return the newest checkpoint.

    `workers`: Ray Train workers, on the Ray that is there or on a local one; 0 trains in this process without starting
    Ray. `init`: weights to start from. `tokenizer`: for dynamics, the trained tokenizer that is frozen. `lam`: for
    dynamics on latent actions, the latent action model that reads them, frozen too. All are a run's folder, a
    checkpoint, or a saved world model. `joint_lam`: train the latent action model with the dynamics, that in `lam` or
    `init`, or a new one where neither is given.
    `decoder_only`: a tokenizer's decoder alone is trained, token ids stay the same.
    `cache_dir` holds staged episodes and tokens, for all runs beside each other (default: `cache` beside `out`).
    `resume` continues the run in `out` bit for bit; a run that is complete already is left as it is.

    Raises InputError for settings that do not fit together, data or weights that cannot be used, and a folder that
    holds another run; NonFiniteLoss where training breaks down; KeyboardInterrupt after Ctrl+C, a checkpoint saved.
    """
    out = Path(out).absolute()
    job = Job(
        component=component,
        config=config.with_latent_actions() if lam is not None or joint_lam else config,
        recipe=recipe,
        data=tuple(str(folder if is_remote(folder) else Path(folder).absolute()) for folder in data),
        out=out,
        cache_dir=Path(cache_dir or out.parent / "cache").absolute(),
        init=None if init is None else Path(init).absolute(),
        tokenizer=None if tokenizer is None else Path(tokenizer).absolute(),
        lam=None if lam is None else Path(lam).absolute(),
        joint_lam=joint_lam,
        decoder_only=decoder_only,
        pairs=None if pairs is None else str(pairs if is_remote(pairs) else Path(pairs).absolute()),
    )
    _check(job, workers, resume, config.actions)
    newest = checkpoint.newest_checkpoint(job.out)
    if newest is None or checkpoint.open_checkpoint(newest).step < recipe.iterations:
        finished = _fit_on_workers(job, workers) if workers else _fit_here(job)
        newest = checkpoint.open_checkpoint(job.out).path
        if not finished:
            line = f"stopped; {newest.name} of {recipe.iterations} is saved in {job.out}: go on with --resume"
            console.print(line, soft_wrap=True)
            raise KeyboardInterrupt
    return newest


def _check(job: Job, workers: int, resume: bool, real_actions: int) -> None:
    """Refuse what a person can have got wrong, before anything starts."""
    if job.component not in COMPONENTS:
        raise InputError(f"unknown component {job.component!r}: choose one of {', '.join(COMPONENTS)}")
    if not job.data:
        raise InputError("no data given: name one or more folders of episodes")
    component = TRAINED[job.component]
    if component.needs_tokenizer and job.tokenizer is None:
        raise InputError(f"training {job.component} needs --tokenizer: the run or checkpoint of a trained tokenizer")
    if job.tokenizer is not None and not component.needs_tokenizer:
        raise InputError(f"--tokenizer is not for {job.component}; to continue from its weights give --init")
    if (job.lam is not None or job.joint_lam) and not component.takes_lam:
        raise InputError(f"--lam and --joint-lam are not for {job.component}: they are for dynamics on latent actions")
    if job.recipe.labels and not job.trains_lam:
        raise InputError(f"--labels are for a latent action model: train {job.component} without, or with --joint-lam")
    if job.recipe.labels and real_actions > job.config.lam.codes:
        raise InputError(f"--labels: {real_actions} actions, {job.config.lam.codes} codes: lam.codes must be as many")
    if job.decoder_only and not (component.decoder_only and job.init is not None):
        raise InputError("--recipe finetune trains the decoder of a trained tokenizer: give it with --init")
    if component.needs_pairs != (job.pairs is not None) or (component.needs_pairs and job.recipe.stream_sessions):
        what = "needs --pairs, made of its data by `autoexplore data replay`, and cannot stream"
        raise InputError(f"training {job.component} {what if component.needs_pairs else 'takes no --pairs'}")
    if job.recipe.batch_size % max(workers, 1):
        raise InputError(f"a batch of {job.recipe.batch_size} cannot be split over {workers} workers: use a multiple")
    if (job.out / "config.json").exists():
        if not resume:
            raise InputError(f"{job.out} already holds a run: give another --out, or --resume to continue it")
        job.check_resumable()


def build_objective(job: Job, device: torch.device) -> Objective:
    """The component with its first weights (random from the seed, or those of `init`), and what is optimised."""
    seed_everything(job.recipe.seed, "first weights")
    return TRAINED[job.component].build(job, device)


def open_data(
    job: Job, objective: Objective, device: torch.device, *, part: int = 0, parts: int = 1
) -> tuple[Windows, Validation | None]:
    """Training windows and validation clips. `part` of `parts` is the rank on this machine: one stages, all encode."""
    recipe = job.recipe
    if recipe.stream_sessions:
        return _open_streams(job)
    if job.pairs is not None:
        return _open_pairs(job, part=part, parts=parts)
    if part == 0:
        Clips(job.data, job.cache_dir, length=recipe.clip_length)
    _barrier(parts)
    train, validation = (
        Clips(job.data, job.cache_dir, length=recipe.clip_length, stride=recipe.clip_stride, split=split)
        for split in ("train", "val")
    )
    if job.trains_lam:
        train.show_actions(recipe.labels)
    windows: Clips | TokenClips = train
    pays = recipe.token_cache and recipe.iterations * recipe.batch_size >= len(train)
    if isinstance(objective, DynamicsObjective | JointObjective) and pays:
        windows = cache_tokens(
            objective.tokenizer,
            train,
            job.cache_dir,
            lam=objective.lam if isinstance(objective, LatentDynamicsObjective) else None,
            frames=isinstance(objective, JointObjective),  # its latent action model changes and reads them
            device=device,
            sharing=Sharing(part, parts, lambda: _barrier(parts)),
        )
    return windows, validation if len(validation) else None


def _open_pairs(job: Job, *, part: int, parts: int) -> tuple[PairClips, PairClips | None]:
    """`open_data` for an upscaler: frames beside the same frames larger."""
    sides: list[list[str]] = [list(job.data), [str(job.pairs)]]
    length, stride = job.recipe.clip_length, job.recipe.clip_stride
    if part == 0:
        for uris in sides:
            Clips(uris, job.cache_dir, length=length)
    _barrier(parts)
    shape_of = shape(job.recipe.upscaler)
    train, validation = (
        PairClips(*(Clips(uris, job.cache_dir, length=length, stride=stride, split=split) for uris in sides))
        for split in ("train", "val")
    )
    check_sizes(train, shape_of.size, shape_of.factor)
    return train, validation if len(validation) else None


def _open_streams(job: Job) -> tuple[StreamClips, StreamClips | None]:
    """`open_data` without a local copy: tokens are encoded in each step."""
    recipe = job.recipe
    train, validation = (
        StreamClips(
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
        train.show_actions(recipe.labels)
    return train, validation if len(validation) else None


def _barrier(parts: int) -> None:
    if parts > 1:
        torch.distributed.barrier()


def run_worker(options: dict[str, Any]) -> bool:
    """What Ray Train runs on each worker: build, restore, train. True where the run came to its end."""
    import ray.train
    import ray.train.torch

    job: Job = options["job"]
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if job.recipe.threads:
        torch.set_num_threads(job.recipe.threads)
    objective = build_objective(job, device)
    for module in objective.model.modules():
        if isinstance(module, Stack):
            module.recompute = job.recipe.recompute
    part, parts = context.get_local_rank(), context.get_local_world_size()
    windows, validation = open_data(job, objective, device, part=part, parts=parts)
    trainer = Trainer(
        job,
        objective,
        windows,
        validation,
        rank=rank,
        ranks=ranks,
        device=device,
        stop=(options["stop"] or StopFile(job.out)).asked,
        saved=lambda step: ray.train.report({"step": step}),
    )
    return trainer.train()


def _fit(job: Job, workers: int, stop: "Interrupt | None" = None) -> bool:
    """One run of Ray Train. Its own folder for bookkeeping holds nothing that a later run needs."""
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        run_worker,  # type: ignore[arg-type]  # Ray's annotation does not know of return values
        train_loop_config={"job": job, "stop": stop},
        scaling_config=_scaling(workers),
        run_config=RunConfig(name=f"{job.component}-{os.getpid()}", storage_path=str(job.out / "ray")),
    )
    try:
        return bool(trainer.fit().return_value)  # type: ignore[attr-defined]
    finally:
        shutil.rmtree(job.out / "ray", ignore_errors=True)


def _scaling(workers: int) -> Any:
    """What each worker asks for: its kind of machine, and a GPU where those have some, or where there are enough."""
    import ray
    from ray.train import ScalingConfig

    if not workers:
        return ScalingConfig(num_workers=0)
    place = machines("train")
    gpu = bool(place.gpus) or ray.cluster_resources().get("GPU", 0) >= workers
    resources = {"GPU" if gpu else "CPU": 1.0, **place.resources}
    return ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources)


def _fit_here(job: Job) -> bool:
    """Train in this process, without starting Ray; what is set for the whole process is set back afterwards."""
    logger, threads = logging.getLogger("ray.train"), torch.get_num_threads()
    level = logger.level
    logger.setLevel(logging.WARNING)  # below it, Ray Train says that this mode is one for debugging
    try:
        with Interrupt() as stop:
            return _fit(job, 0, stop)
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)


@ray_session()
def _fit_on_workers(job: Job, workers: int) -> bool:
    """Train on Ray workers; those that die are replaced, and go on from the newest checkpoint."""
    from ray.train import WorkerGroupError

    for restart in range(RESTARTS + 1):
        try:
            return _fit_watched(job, workers)
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                cause = _own_error(failure)
                if cause is not None:
                    raise cause from None
            if restart == RESTARTS:
                raise
            newest = checkpoint.newest_checkpoint(job.out)
            start = newest.name if newest else "the start"
            line = f"a training worker died: going on from {start} with new ones ({restart + 1} of {RESTARTS})"
            console.print(line, soft_wrap=True)
    raise AssertionError("unreachable")


def _own_error(failure: BaseException | None) -> InputError | None:
    """The InputError that a worker raised, out of what Ray wrapped it in."""
    while failure is not None:
        if isinstance(failure, InputError):
            return failure
        failure = getattr(failure, "_base_exc", None) or failure.__cause__
    return None


def _fit_watched(job: Job, workers: int) -> bool:
    """Run Ray Train in a thread; meanwhile show its progress here and pass Ctrl+C on to the workers as a stop file."""
    outcome: list[bool | BaseException] = []

    def fit() -> None:
        try:
            outcome.append(_fit(job, workers))
        except BaseException as error:  # handed over to the thread that waits
            outcome.append(error)

    stop = StopFile(job.out)
    stop.clear()
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    done = _last_step(job.out)
    with Interrupt() as interrupt, progress(f"training {job.component}", job.recipe.iterations, done) as bar:
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.5)
            if interrupt.asked():
                stop.ask()
            step = _last_step(job.out)
            if step > done:
                bar.advance(step - done)
                done = step
    stop.clear()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _last_step(run: Path) -> int:
    rows = read_metrics(run)
    return int(rows[-1]["step"]) if rows else 0
