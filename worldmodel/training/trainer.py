"""Training loop of every component, on one or several ranks, exact after any interruption.

All randomness of step k is a function of (seed, k, rank), and the data of step k is one of (seed,
samples consumed). Weights, optimizer and these two numbers are therefore the whole state of a run.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.utils.artifact_dir import remove_partial_checkpoints
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.run_dir import RunDir
from worldmodel import checkpoint
from worldmodel.data.batch import Batch
from worldmodel.data.dataset import Dataset
from worldmodel.data.loader import ClipLoader, read_batches
from worldmodel.devices import autocast
from worldmodel.models.vector_quantizer import VectorQuantizer
from worldmodel.sharded_tensors import full_tensor
from worldmodel.training.distributed import Worker, gradient_sync, training_state
from worldmodel.training.ema import EMA
from worldmodel.training.memory import explain_out_of_memory
from worldmodel.training.objectives import Objective
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.throughput import ThroughputMeter

LogMetrics = Callable[[int, dict[str, float]], None]
"""Function that logs the metrics of a step."""
PROGRESS_METRICS = {
    f"{split}/{name}": f"{prefix}{name}"
    for split, prefix in (("train", ""), ("validation", "validation "))
    for name in ("loss", "psnr", "accuracy")
}
"""Metrics shown in the progress bar, with their labels."""


class NonFiniteLoss(InputError):
    """Infinite or NaN loss or gradient. The weights are those before its step."""


def seed_everything(*key: object) -> None:
    """Seed torch, numpy and Python's `random` from a hash of `key`."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def open_logger(run: TrainingRun, step: int, worker: Worker) -> Iterator[LogMetrics]:
    """Open a run's metrics and its progress bar at a step. Only rank 0 logs.

    Metrics that were logged after `step` are removed: the run computes these steps again.
    """
    if worker.rank != 0:
        yield lambda step, metrics: None
        return
    remove_partial_checkpoints(run.out)
    with (
        RunDir(run.out, run.identity(), resume=True, resume_step=step) as run_dir,
        progress(f"training {run.component}", run.recipe.iterations, step) as bar,
    ):

        def log(now: int, metrics: dict[str, float]) -> None:
            nonlocal step
            run_dir.log(now, metrics)
            labels = [
                f"{label} {metrics[name]:.4g}"
                for name, label in PROGRESS_METRICS.items()
                if name in metrics
            ]
            bar.advance(now - step, ", ".join(labels))
            step = now

        yield log


@dataclass(kw_only=True)
class Trainer:
    """Training loop of one rank; `worldmodel.training.setup.build_trainer` builds it."""

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
    """Called in every step; True ends the run after that step, with a checkpoint."""
    saved: Callable[[int], None] = lambda step: None
    """Called on every rank with the step of each checkpoint."""
    step: int = 0
    """Number of completed steps."""
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
        """Train to the last step, or until `stop` returns True on a rank. True if complete."""
        recipe, stopping = self.recipe, False
        explain = explain_out_of_memory(
            self.meter.cost, recipe, self.worker.ranks, self.worker.device
        )
        try:
            with explain, open_logger(self.run, self.step, self.worker) as log:
                self.objective.train()
                while self.step < recipe.iterations and not stopping:
                    with self.meter.measure(waiting=True):
                        batch = next(self.loader)
                    with self.meter.measure():
                        losses, stopping = self.train_step(batch)
                    self.meter.add(losses)
                    self.step += 1
                    self._finish_step(log, last=stopping or self.step == recipe.iterations)
        finally:
            self.loader.close()
        return self.step == recipe.iterations

    def _finish_step(self, log: LogMetrics, *, last: bool) -> None:
        """Log, validate and save if due after this step; do all three after the `last` one."""

        def due(every: int) -> bool:
            return last or self.step % every == 0

        recipe = self.recipe
        save = due(recipe.checkpoint_every)
        if due(recipe.log_every):
            log(self.step, self._metrics())
        if self.validation and recipe.validate_every and due(recipe.validate_every):
            metrics = self.validate(self.validation)
            log(self.step, metrics)
            save = self._is_best(metrics["validation/loss"]) or save
        if save:
            self.save()

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], bool]:
        """Take one optimizer step -> (losses, learning rate and gradient norm; stop after it?).

        Raise NonFiniteLoss before the weights change if a loss or gradient of any rank is not
        finite.
        """
        # Masks and noise depend on the step and the rank only, so that a resumed run repeats them.
        recipe = self.recipe
        seed_everything(recipe.seed, "step", self.step, self.worker.rank)
        rate = recipe.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.check(batch)  # on the CPU: checks of values wait for the device
        losses = self._backward(batch.to(self.worker.device))

        # Refuse the step on all ranks together, so that none of them waits for another.
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm(gradients))
        finite = torch.isfinite(norm) & torch.isfinite(losses["loss"])
        broken, stopping = self.worker.any_rank(~finite, self.stop())
        if broken:
            raise NonFiniteLoss(self._describe_failure(batch, losses, norm, bool(finite)))

        # Clip by the norm of the whole batch's gradient, then update the weights. A smaller norm
        # scales by 1: comparing the two here would wait for the device.
        if recipe.grad_clip:
            nn.utils.clip_grads_with_norm_(self.parameters, recipe.grad_clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        # Re-seeded codes overwrite what the optimizer made of them, and the EMA follows both.
        for quantizer in self.quantizers:
            quantizer.reseed_dead_codes()
        if self.ema is not None:
            self.ema.update(self.step + 1)

        # All logged values stay on the device, where they are summed until the next log line.
        logged_rate = torch.full((), rate, device=self.worker.device)
        return {**losses, "grad_norm": norm.detach(), "lr": logged_rate}, stopping

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add up the gradients of a batch over its microbatches -> its mean losses."""
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
        return autocast(self.worker.device, self.recipe.precision)

    @property
    def progress(self) -> float:
        """Completed share of the run, in [0, 1]; 1 from the start when fine-tuning."""
        return 1.0 if self.run.init is not None else self.step / self.recipe.iterations

    def validate(self, clips: Dataset) -> dict[str, float]:
        """Compute the mean of every named loss over evenly spaced validation samples of all ranks.

        The EMA of the weights is validated if the recipe has one. Masks and noise are the same in
        every validation, so that its values differ by the weights alone.
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
        """Sum the losses of this rank's share of the samples, and count its `clips`."""
        rank, ranks = self.worker.rank, self.worker.ranks
        ids = clips.evenly_spaced(self.recipe.validation_clips)
        share, size = ids[rank::ranks], max(1, self.recipe.batch_size // ranks)
        batches = [(share[at : at + size], 1.0) for at in range(0, len(share), size)]
        # Ranks that share the weights must run equally many passes: a rank without clips left runs
        # the first one again, with weight 0.
        rounds = math.ceil(math.ceil(len(ids) / ranks) / size)
        batches += [(ids[:1], 0.0)] * (rounds - len(batches))
        reading = read_batches(
            clips,
            [window_ids for window_ids, _ in batches],
            threads=self.recipe.loader_threads,
            pin=self.worker.device.type == "cuda",
        )
        totals: dict[str, Tensor] = {}
        with closing(reading):
            for number, (batch, (window_ids, weight)) in enumerate(
                zip(reading, batches, strict=True)
            ):
                seed_everything(self.recipe.seed, "validation", number, rank)
                self.objective.check(batch)
                with self._autocast():
                    losses = self.objective(batch.to(self.worker.device), 1.0)
                for name, value in {**losses, "clips": torch.ones(())}.items():
                    share_of_sum = value.detach().cpu().double() * weight * len(window_ids)
                    totals[name] = totals.get(name, 0) + share_of_sum
        return totals

    def _is_best(self, loss: float) -> bool:
        """Record a validation loss; True if its checkpoint is the best one so far, to be kept."""
        lowest = math.inf if self.best is None else self.best["loss"]
        better = self.recipe.keep_best and math.isfinite(loss) and loss < lowest
        if better:
            self.best = {"step": self.step, "loss": loss}
        return better

    def save(self) -> None:
        """Write a checkpoint on rank 0. Under FSDP all ranks gather the weights together."""
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
        """Compute the speed, and means over ranks and the steps since the last call."""
        meter = self.meter
        sums = torch.stack(list(meter.sums.values())).cpu().double()
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
        """Describe a step that was not finite in one line, the same on every rank."""
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
            f"loss or gradient of step {self.step} is not finite, weights unchanged: lower --lr or "
            f"check the batch: {lines}"
        )
