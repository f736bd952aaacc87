"""Training runs on Ray Train: in this process, or on data-parallel workers."""

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import torch

from envs.utils.errors import InputError
from envs.utils.interrupt import GracefulInterrupt, StopFile
from envs.utils.progress import console, progress
from envs.utils.ray_session import node_resources, ray_session
from envs.utils.run_dir import read_metrics
from worldmodel import checkpoint
from worldmodel.devices import resolve_device
from worldmodel.training.distributed import Worker
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.setup import build_objective, build_trainer, open_data

RESTARTS = 3
"""Number of times that dead workers are replaced before a run fails."""


def run_worker(options: dict[str, Any]) -> bool:
    """Train on one worker of Ray Train, from the newest checkpoint; True if the run is complete."""
    import ray.train
    import ray.train.torch

    run: TrainingRun = options["run"]
    if run.recipe.deterministic:
        # cuBLAS reads this before its first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.recipe.deterministic)
    context = ray.train.get_context()
    device = resolve_device(ray.train.torch.get_device())
    worker = Worker(device, context.get_world_rank(), context.get_world_size())
    if run.recipe.num_threads:
        torch.set_num_threads(run.recipe.num_threads)
    objective = build_objective(run, device)
    data, validation = open_data(run, objective, worker)
    trainer = build_trainer(
        run,
        objective,
        data,
        validation,
        worker,
        stop=(options["stop"] or StopFile(run.out)).requested,
        saved=lambda step: ray.train.report({"step": step}),
    )
    return trainer.train()


def _fit(run: TrainingRun, workers: int, stop: GracefulInterrupt | None = None) -> bool:
    """Run Ray Train once and delete its folder of bookkeeping afterwards."""
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        run_worker,  # type: ignore[arg-type]  # Ray's annotation has no return value
        train_loop_config={"run": run, "stop": stop},
        scaling_config=_scaling(workers),
        run_config=RunConfig(
            name=f"{run.component}-{os.getpid()}", storage_path=str(run.out / "ray")
        ),
    )
    try:
        return bool(trainer.fit().return_value)  # type: ignore[attr-defined]
    finally:
        shutil.rmtree(run.out / "ray", ignore_errors=True)


def _scaling(workers: int) -> Any:
    """Request the resources of each worker: a GPU if its kind of node or the cluster has enough."""
    import ray
    from ray.train import ScalingConfig

    if not workers:
        return ScalingConfig(num_workers=0)
    node = node_resources("train")
    # A labelled cluster may still start machines; any other has what it has.
    gpu = bool(node.gpus) and (
        bool(node.resources) or ray.cluster_resources().get("GPU", 0) >= workers
    )
    resources = {"GPU" if gpu else "CPU": 1.0, **node.resources}
    return ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources)


def fit_here(run: TrainingRun) -> bool:
    """Train in this process without starting Ray, and restore process-wide settings afterwards."""
    logger, threads = logging.getLogger("ray.train"), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    level = logger.level
    logger.setLevel(logging.WARNING)  # hide Ray Train's note that this mode is for debugging
    try:
        with GracefulInterrupt() as stop:
            return _fit(run, 0, stop)
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@ray_session()
def fit_on_workers(run: TrainingRun, workers: int) -> bool:
    """Train on Ray workers. Dead ones are replaced and resume from the newest checkpoint."""
    from ray.train import WorkerGroupError

    for restart in range(RESTARTS + 1):
        try:
            return _fit_watched(run, workers)
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                cause = _input_error(failure)
                if cause is not None:
                    raise cause from None
            if restart == RESTARTS:
                raise
            newest = checkpoint.newest_checkpoint(run.out)
            start = newest.name if newest else "the start"
            line = (
                f"a training worker died: continuing from {start} with new ones "
                f"({restart + 1} of {RESTARTS})"
            )
            console.print(line, soft_wrap=True)
    raise AssertionError("unreachable")


def _input_error(failure: BaseException | None) -> InputError | None:
    """Return the InputError that a worker raised, from inside Ray's exceptions; None if none."""
    while failure is not None:
        if isinstance(failure, InputError):
            return failure
        failure = getattr(failure, "_base_exc", None) or failure.__cause__
    return None


def _fit_watched(run: TrainingRun, workers: int) -> bool:
    """Run Ray Train in a thread and show its progress; Ctrl+C becomes a stop file."""
    outcome: list[bool | BaseException] = []

    def fit() -> None:
        try:
            outcome.append(_fit(run, workers))
        except BaseException as error:  # raised again in the waiting thread
            outcome.append(error)

    stop = StopFile(run.out)
    stop.clear()
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    shown = _last_step(run.out)
    with (
        GracefulInterrupt() as interrupt,
        progress(f"training {run.component}", run.recipe.iterations, shown) as bar,
    ):
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.5)
            if interrupt.requested():
                stop.request()
            step = _last_step(run.out)
            if step > shown:
                bar.advance(step - shown)
                shown = step
    stop.clear()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _last_step(out: Path) -> int:
    rows = read_metrics(out)
    return int(rows[-1]["step"]) if rows else 0
