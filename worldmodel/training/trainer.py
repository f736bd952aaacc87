"""The training loop of every component, on one or several ranks, exact after any interruption.

Everything random in step k is a function of (seed, k, rank), and the data of step k one of (seed,
samples consumed). So weights, optimizer and those two numbers are the whole state of a run.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.utils.errors import InputError
from envs.utils.progress import Bar, progress
from envs.utils.run_dir import RunDir
from worldmodel import checkpoint
from worldmodel.data.batch import Batch
from worldmodel.data.dataset import Dataset
from worldmodel.data.loader import ClipLoader
from worldmodel.models.vector_quantizer import VectorQuantizer
from worldmodel.sharded_tensors import full_tensor
from worldmodel.training.distributed import Worker, gradient_sync, training_state
from worldmodel.training.ema import EMA
from worldmodel.training.objectives import Objective
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.throughput import ThroughputMeter

PROGRESS_METRICS = {
    f"{part}/{name}": f"{words}{name}"
    for part, words in (("train", ""), ("validation", "validation "))
    for name in ("loss", "psnr", "accuracy")
}
"""Metrics that the progress bar shows, and their names there."""


class NonFiniteLoss(InputError):
    """A loss or gradient is infinite or not a number; the weights are those before its step."""


def seed_everything(*key: object) -> None:
    """Seed torch, numpy and Python's `random` from a hash of `key`."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def open_newest(out: Path, fingerprint: dict[str, str]) -> checkpoint.Checkpoint | None:
    """Open the newest checkpoint of a run's folder, None without one.

    Raise InputError where it was trained with other frozen models than those of `fingerprint`.
    """
    newest = checkpoint.newest_checkpoint(out)
    if newest is None:
        return None
    found = checkpoint.open_checkpoint(newest)
    for name, value in fingerprint.items():
        recorded = found.state.get(name)
        if recorded != value:
            raise InputError(
                f"{found.path}: the run's {name} was another, {str(recorded)[:12]}, not "
                f"{value[:12]}: "
                "resume it with what it was started with"
            )
    return found


class MetricsLogger:
    """Write metrics to a run's folder and its progress bar; without them do nothing."""

    def __init__(
        self, run_dir: RunDir | None = None, bar: Bar | None = None, step: int = 0
    ) -> None:
        self._run_dir, self._bar, self._step = run_dir, bar, step

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step."""
        if self._run_dir is None or self._bar is None:
            return
        self._run_dir.log(step, metrics)
        shown = [
            f"{words} {metrics[name]:.4g}"
            for name, words in PROGRESS_METRICS.items()
            if name in metrics
        ]
        self._bar.advance(step - self._step, ", ".join(shown))
        self._step = step


@contextmanager
def open_logger(run: TrainingRun, step: int, worker: Worker) -> Iterator[MetricsLogger]:
    """Open a run's logger, which writes on rank 0 alone. Metrics after `step` are cut off."""
    if worker.rank != 0:
        yield MetricsLogger()
        return
    checkpoint.remove_partial_checkpoints(run.out)
    with (
        RunDir(run.out, run.identity(), resume=True, resume_step=step) as run_dir,
        progress(f"training {run.component}", run.recipe.iterations, step) as bar,
    ):
        yield MetricsLogger(run_dir, bar, step)


@dataclass(kw_only=True)
class Trainer:
    """One rank of a run. `worldmodel.training.setup.build_trainer` builds its parts."""

    run: TrainingRun
    objective: Objective
    wrapped_objective: nn.Module
    """The objective, or its DDP or FSDP wrapper."""
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    loader: ClipLoader
    validation: Dataset | None
    meter: ThroughputMeter
    worker: Worker
    fingerprint: dict[str, str]
    """Hashes of the frozen models, saved in every checkpoint."""
    stop: Callable[[], bool] = lambda: False
    """Asked in every step: end the run after it, with a checkpoint?"""
    saved: Callable[[int], None] = lambda step: None
    """Called on every rank with the step of each checkpoint."""
    step: int = 0
    best: dict[str, Any] | None = None
    """Step and loss of the best validation."""
    parameters: list[nn.Parameter] = field(init=False)
    quantizers: list[VectorQuantizer] = field(init=False)

    def __post_init__(self) -> None:
        self.recipe = self.run.recipe
        self.parameters = [
            weight for group in self.optimizer.param_groups for weight in group["params"]
        ]
        modules = self.objective.model.modules()
        self.quantizers = [module for module in modules if isinstance(module, VectorQuantizer)]

    def train(self) -> bool:
        """Run to the end, or to the step after which a stop is asked for; True if complete."""
        recipe = self.recipe
        stopping = False
        try:
            with open_logger(self.run, self.step, self.worker) as logger:
                self.objective.train()
                while self.step < recipe.iterations and not stopping:
                    with self.meter.waiting():
                        batch = next(self.loader)
                    with self.meter.working():
                        losses, stopping = self.train_step(batch)
                    self.step += 1
                    self.meter.add(losses)
                    last = stopping or self.step == recipe.iterations
                    save = last or self._due(recipe.checkpoint_every)
                    if last or self._due(recipe.log_every):
                        logger.log(self.step, self._metrics())
                    if (
                        self.validation
                        and recipe.validate_every
                        and (last or self._due(recipe.validate_every))
                    ):
                        metrics = self.validate(self.validation)
                        logger.log(self.step, metrics)
                        save = self._is_best(metrics["validation/loss"]) or save
                    if save:
                        self.save()
        finally:
            self.loader.close()
        return self.step == recipe.iterations

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], bool]:
        """Take one optimizer step -> (losses, learning rate and gradient norm; stop after it?).

        Raise NonFiniteLoss before the weights change where a loss or gradient of any rank is not
        finite.
        """
        recipe = self.recipe
        seed_everything(recipe.seed, "step", self.step, self.worker.rank)
        rate = recipe.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._backward(batch.to(self.worker.device))

        # Refuse the step on all ranks together, so that none of them waits for another.
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm(gradients))
        finite = bool(torch.isfinite(norm) & torch.isfinite(losses["loss"]))
        broken, stopping = self.worker.any_rank(not finite, self.stop())
        if broken:
            raise NonFiniteLoss(self._describe_failure(batch, losses, norm, finite))

        if recipe.grad_clip and norm > recipe.grad_clip:
            nn.utils.clip_grads_with_norm_(self.parameters, recipe.grad_clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for quantizer in self.quantizers:
            quantizer.reseed_dead_codes()
        if self.ema is not None:
            self.ema.update(self.step + 1)
        # On the losses' device, since all of them are added up there and fetched together.
        logged_rate = torch.full((), rate, device=self.worker.device)
        return {**losses, "grad_norm": norm.detach(), "lr": logged_rate}, stopping

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the gradients of a batch, microbatch by microbatch -> its mean losses."""
        count = self.recipe.grad_accum_steps
        totals: dict[str, Tensor] = {}
        for index in range(count):
            with gradient_sync(self.wrapped_objective, last=index == count - 1), self._autocast():
                losses = self.wrapped_objective(batch.microbatch(index, count), self.progress)
                (losses["loss"] / count).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach().float() / count
        return totals

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.worker.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
        )

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]; 1 from the start when fine-tuning."""
        return 1.0 if self.run.init is not None else self.step / self.recipe.iterations

    def validate(self, clips: Dataset) -> dict[str, float]:
        """Compute the mean of every named loss over evenly spaced validation samples of all ranks.

        Validate the EMA of the weights where there is one. Masks and noise are the same at every
        validation, so that its values differ by the weights alone.
        """
        self.objective.train(False)
        with torch.no_grad(), self.ema.in_place() if self.ema else nullcontext():
            totals = self._validation_sums(clips)
        self.objective.train()
        sums = self.worker.sum_over_ranks(torch.stack(list(totals.values()))).tolist()
        values = dict(zip(totals, sums, strict=True))
        count = values.pop("clips")
        return {f"validation/{name}": value / count for name, value in values.items()}

    def _validation_sums(self, clips: Dataset) -> dict[str, Tensor]:
        """Sum up this rank's losses, and count its `clips`."""
        rank, ranks = self.worker.rank, self.worker.ranks
        ids = clips.evenly_spaced(self.recipe.validation_clips)
        share, size = ids[rank::ranks], max(1, self.recipe.batch_size // ranks)
        batches = [(share[at : at + size], 1.0) for at in range(0, len(share), size)]
        # Ranks that share the weights must call equally often: one that has no clips left takes
        # the first one again, with no weight.
        rounds = math.ceil(math.ceil(len(ids) / ranks) / size)
        batches += [(ids[:1], 0.0)] * (rounds - len(batches))
        totals: dict[str, Tensor] = {}
        for number, (window_ids, weight) in enumerate(batches):
            seed_everything(self.recipe.seed, "validation", number, rank)
            batch = clips.batch(window_ids).to(self.worker.device)
            with self._autocast():
                losses = self.objective(batch, 1.0)
            for name, value in {**losses, "clips": torch.ones(())}.items():
                totals[name] = totals.get(name, 0) + value.detach().double().cpu() * weight * len(
                    window_ids
                )
        return totals

    def _is_best(self, loss: float) -> bool:
        """Note a validation loss; True if it is the lowest so far and its checkpoint is to keep."""
        lowest = math.inf if self.best is None else self.best["loss"]
        better = self.recipe.keep_best and math.isfinite(loss) and loss < lowest
        if better:
            self.best = {"step": self.step, "loss": loss}
        return better

    def save(self) -> None:
        """Write a checkpoint on rank 0; ranks that share the weights gather them together."""
        if self.worker.rank == 0 or self.recipe.parallelism == "fsdp":
            ema = None if self.ema is None else self.ema.values
            tensors, groups = training_state(self.objective.model, self.optimizer, ema)
            if self.worker.rank == 0:
                position = {"step": self.step, "best": self.best, "data_state": self.loader.state()}
                state = {**self.run.identity(), **self.fingerprint, **position, "optimizer": groups}
                checkpoint.write_checkpoint(
                    self.run.out, state, tensors, keep_last=self.recipe.keep_last
                )
        self.saved(self.step)

    def _metrics(self) -> dict[str, float]:
        """Compute means over ranks and steps since the last call, and speed; clear the meter."""
        meter = self.meter
        sums = torch.stack(list(meter.sums.values())).double().cpu()
        means = self.worker.sum_over_ranks(sums) / self.worker.ranks / meter.steps
        metrics = dict(zip(meter.sums, means.tolist(), strict=True))
        metrics |= self.objective.metrics()
        metrics["epoch"] = self.loader.state()["epoch"]
        metrics |= meter.speed(self.recipe.batch_size, self.worker.ranks)
        metrics["seconds_left"] = (self.recipe.iterations - self.step) * meter.seconds / meter.steps
        meter.clear()
        return {f"train/{name}": value for name, value in metrics.items()}

    def _describe_failure(
        self, batch: Batch, losses: dict[str, Tensor], norm: Tensor, finite: bool
    ) -> str:
        """Return one line about a step that was not finite, the same on every rank."""
        named_losses = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        windows = "; ".join(
            self.loader.dataset.describe(number) for number in batch.window_ids_B.tolist()[:8]
        )
        line = (
            f"rank {self.worker.rank}: {named_losses}, gradient norm {norm.item():.4g}, batch: "
            f"{windows}"
        )
        lines = " | ".join(self.worker.gather_lines(None if finite else line))
        return (
            f"loss or gradient of step {self.step} not finite, weights unchanged: lower --lr or "
            f"see the batch: {lines}"
        )
