"""The training loop: one for every component, one or several ranks, and the same numbers after any interruption.

Everything that is random in step k is a function of (seed, k, rank), and the data of step k one of (seed, samples
consumed). So weights, optimizer and those two numbers are the whole state of a run.
"""

import hashlib
import math
import random
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.run_dir import RunDir
from worldmodel import checkpoint
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.loader import ClipLoader
from worldmodel.data.pair_dataset import PairDataset
from worldmodel.data.streaming_dataset import StreamingDataset
from worldmodel.data.token_dataset import TokenDataset
from worldmodel.models.cpu_kernels import set_compile
from worldmodel.models.vector_quantizer import VectorQuantizer
from worldmodel.models.weights import load_weights
from worldmodel.sharded_tensors import full_tensor, shard_like
from worldmodel.training.distributed import gradient_sync, load_optimizer, training_state, wrap_model
from worldmodel.training.ema import EMA
from worldmodel.training.flops import cost_of
from worldmodel.training.objectives import Batch, Objective
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.throughput import ThroughputMeter, device_peak, keep_freed_memory

PROGRESS_METRICS = {
    f"{part}/{name}": f"{words}{name}"
    for part, words in (("train", ""), ("validation", "validation "))
    for name in ("loss", "psnr", "accuracy")
}
"""What stands beside the progress bar, and how it is called there."""


TrainData = ClipDataset | StreamingDataset | TokenDataset | PairDataset
"""What a run is trained on."""
Validation = ClipDataset | StreamingDataset | PairDataset
"""What it is judged by."""


class NonFiniteLoss(InputError):
    """A loss or gradient was infinite or not a number: no optimizer step was made of it, and nothing was saved."""


def microbatch(batch: Batch, number: int, parts: int) -> Batch:
    """Clips `number`, `number + parts`, ... of a batch."""
    if parts == 1:
        return batch
    return type(batch)(*(getattr(batch, item.name)[number::parts] for item in fields(batch)))


def seed_everything(*key: object) -> None:
    """Seed torch, numpy and Python's `random` from a hash of `key`."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Trainer:
    """One rank of a run, restored from the newest checkpoint where there is one.

    `windows` is the training data; `validation` None where there is none. `stop` is asked in every step whether the
    run shall end after it, which it does with a checkpoint; `saved` is told on every rank of each checkpoint's step.
    """

    def __init__(
        self,
        job: TrainingRun,
        objective: Objective,
        windows: TrainData,
        validation: Validation | None,
        *,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device,
        stop: Callable[[], bool] = lambda: False,
        saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.job, self.recipe, self.objective = job, job.recipe, objective
        self.stop, self.saved = stop, saved
        self.windows, self.validation = windows, validation
        self.rank, self.ranks, self.device = rank, ranks, device
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.fingerprint = objective.fingerprint()
        found = self._restore()
        set_compile(self.recipe.compile, device)
        if device.type == "cpu":
            keep_freed_memory()
        self.forward: Any = wrap_model(objective, self.recipe.parallel, ranks, device)
        trainable = objective.trainable()
        self.parameters = list(trainable.values())
        self.quantizers = [module for module in objective.model.modules() if isinstance(module, VectorQuantizer)]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.recipe.lr,
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        self.average = EMA(trainable, self.recipe.ema) if self.recipe.ema else None
        if found is not None:
            self._restore_optimizer(found)
        self.loader = ClipLoader[Any](
            windows,
            self.recipe.batch_size,
            seed=self.recipe.seed,
            rank=rank,
            ranks=ranks,
            threads=self.recipe.loader_threads,
            state=None if found is None else dict(found.state["data_state"]),
            batches=self.recipe.iterations - self.step,
        )
        cost = cost_of(
            job.component,
            job.config,
            self.recipe,
            decoder_only=job.decoder_only,
            cached=isinstance(windows, TokenDataset),
            joint_lam=job.joint_lam,
        )
        self.meter = ThroughputMeter(cost, device_peak(device, self.recipe.precision) if cost and rank == 0 else 0.0)

    def train(self) -> bool:
        """Run to the end, or to the step after which a stop is asked for; True where the run is complete."""
        recipe, meter = self.recipe, self.meter
        stopping = False
        with ExitStack() as opened:
            opened.callback(self.loader.close)
            log = self._open_logger(opened)
            self.objective.train()
            while self.step < recipe.iterations and not stopping:
                with meter.waiting():
                    batch = next(self.loader)
                with meter.working():
                    parts, stopping = self.train_step(batch)
                self.step += 1
                meter.add(parts)
                last = stopping or self.step == recipe.iterations
                if last or self.step % recipe.log_every == 0:
                    log(meter.steps, self._metrics(meter))
                due = last or self.step % recipe.checkpoint_every == 0
                if recipe.validate_every and self.validation and (last or self.step % recipe.validate_every == 0):
                    metrics = self.validate(self.validation)
                    log(0, metrics)
                    due = self._is_best(metrics["validation/loss"]) or due
                if due:
                    self.save()
        return self.step == recipe.iterations

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], bool]:
        """One optimizer step. Returns its named losses, learning rate and gradient norm, and whether to stop after it.

        Raises NonFiniteLoss before the weights change where the loss or the gradient of any rank is not finite.
        """
        recipe = self.recipe
        seed_everything(recipe.seed, "step", self.step, self.rank)
        rate = recipe.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._backward(batch.to(self.device))
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm(gradients))
        finite = bool(torch.isfinite(norm) & torch.isfinite(losses["loss"]))
        broken, stopping = self._any_rank(not finite, self.stop())
        if broken:
            raise NonFiniteLoss(self._name_batch(batch, losses, norm, finite))
        if recipe.grad_clip and norm > recipe.grad_clip:
            nn.utils.clip_grads_with_norm_(self.parameters, recipe.grad_clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for quantizer in self.quantizers:
            quantizer.reseed_dead_codes()
        if self.average is not None:
            self.average.update(self.step + 1)
        # On the losses' device, since all of them are added up there and fetched together.
        logged_rate = torch.full((), rate, device=self.device)
        return {**losses, "grad_norm": norm.detach(), "lr": logged_rate}, stopping

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of a batch, in as many parts as the recipe says -> its named losses, means over the parts."""
        parts, totals = self.recipe.accumulate, dict[str, Tensor]()
        for number in range(parts):
            with (
                gradient_sync(self.forward, last=number == parts - 1),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"),
            ):
                losses = self.forward(microbatch(batch, number, parts), self.progress)
                (losses["loss"] / parts).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach().float() / parts
        return totals

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]; 1 from the start where a trained model is fine-tuned."""
        return 1.0 if self.job.init is not None else self.step / self.recipe.iterations

    def validate(self, clips: Validation) -> dict[str, float]:
        """Mean of every named loss over evenly spread validation clips, summed over ranks before the division.

        Of the moving average of the weights where there is one. Masks and noise are the same at every validation, so
        that its values differ by the weights alone.
        """
        self.objective.train(False)
        with torch.no_grad(), self.average.in_place() if self.average else nullcontext():
            totals = self._validation_sums(clips)
        self.objective.train()
        sums = self._sum_over_ranks(torch.stack(list(totals.values()))).tolist()
        values = dict(zip(totals, sums, strict=True))
        count = values.pop("clips")
        return {f"validation/{name}": value / count for name, value in values.items()}

    def _validation_sums(self, clips: Validation) -> dict[str, Tensor]:
        """Sums of this rank's losses, and how many `clips` they are of."""
        ids = clips.evenly_spaced(self.recipe.validation_clips)
        share, size = ids[self.rank :: self.ranks], max(1, self.recipe.batch_size // self.ranks)
        batches = [(share[at : at + size], 1.0) for at in range(0, len(share), size)]
        # Ranks that share the weights must call alike: who has no clips left takes one again, with no weight.
        rounds = math.ceil(math.ceil(len(ids) / self.ranks) / size)
        batches += [(ids[:1], 0.0)] * (rounds - len(batches))
        totals: dict[str, Tensor] = {}
        for number, (window_ids, weight) in enumerate(batches):
            seed_everything(self.recipe.seed, "validation", number, self.rank)
            batch = clips.batch(window_ids).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                losses = self.objective(batch, 1.0)
            for name, value in {**losses, "clips": torch.ones(())}.items():
                totals[name] = totals.get(name, 0) + value.detach().double().cpu() * weight * len(window_ids)
        return totals

    def _is_best(self, loss: float) -> bool:
        """Note a validation loss; whether it is the lowest of the run so far, and so its checkpoint one to keep."""
        better = self.recipe.keep_best and math.isfinite(loss) and (self.best is None or loss < self.best["loss"])
        if better:
            self.best = {"step": self.step, "loss": loss}
        return better

    def save(self) -> None:
        """Rank 0 writes a checkpoint; where ranks share the weights, all of them put them together."""
        position = {"step": self.step, "best": self.best, "data_state": self.loader.state()}
        if self.rank == 0 or self.recipe.parallel == "fsdp":
            average = None if self.average is None else self.average.values
            tensors, groups = training_state(self.objective.model, self.optimizer, average)
            if self.rank == 0:
                state = {**self.job.identity(), **self.fingerprint, **position, "optimizer": groups}
                checkpoint.save_checkpoint(self.job.out, state, tensors, keep_last=self.recipe.keep_last)
        self.saved(self.step)

    def _restore(self) -> checkpoint.Checkpoint | None:
        """Take over step and weights of the newest checkpoint of the run's folder, if any."""
        newest = checkpoint.newest_checkpoint(self.job.out)
        if newest is None:
            return None
        found = checkpoint.open_checkpoint(newest)
        for name, value in self.fingerprint.items():
            there = found.state.get(name)
            if there != value:
                raise InputError(
                    f"{found.path}: the run's {name} was another, {str(there)[:12]}, not {value[:12]}: "
                    "resume it with what it was started with"
                )
        load_weights(self.objective.model, found.weights(), found.path)
        self.step, self.best = found.step, found.state.get("best")
        return found

    def _restore_optimizer(self, found: checkpoint.Checkpoint) -> None:
        """Take over the optimizer's state and the moving average, each rank its share."""
        load_optimizer(self.objective.model, self.optimizer, found)
        if self.average is not None:
            for name, value in found.average().items():
                own = self.average.values[name]
                own.copy_(shard_like(value, own))

    def _open_logger(self, opened: ExitStack) -> Callable[[int, dict[str, float]], None]:
        """What writes down the figures of the current step, and how many steps they are about; rank 0 alone writes.

        Metrics of steps after the restored one are cut off.
        """
        if self.rank:
            return lambda steps, metrics: None
        checkpoint.remove_partial_checkpoints(self.job.out)
        journal = RunDir(self.job.out, self.job.identity(), resume=True, resume_step=self.step)
        opened.enter_context(journal)
        bar = opened.enter_context(progress(f"training {self.job.component}", self.recipe.iterations, self.step))

        def log(steps: int, metrics: dict[str, float]) -> None:
            journal.log(self.step, metrics)
            bar.advance(
                steps,
                ", ".join(
                    f"{words} {metrics[name]:.4g}" for name, words in PROGRESS_METRICS.items() if name in metrics
                ),
            )

        return log

    def _metrics(self, meter: ThroughputMeter) -> dict[str, float]:
        """Means since the last line of metrics, over steps and ranks, and how fast the run is. Empties the meter."""
        means = self._sum_over_ranks(torch.stack(list(meter.sums.values())).double().cpu()) / self.ranks / meter.steps
        metrics = {
            **dict(zip(meter.sums, means.tolist(), strict=True)),
            **self.objective.metrics(),
            "epoch": self.loader.state()["epoch"],
            **meter.speed(self.recipe.batch_size, self.ranks),
            "seconds_left": (self.recipe.iterations - self.step) * meter.seconds / meter.steps,
        }
        meter.clear()
        return {f"train/{name}": value for name, value in metrics.items()}

    def _any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        if self.ranks == 1:
            return list(flags)
        counts = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return [bool(count) for count in counts]

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.ranks == 1:
            return values
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def _name_batch(self, batch: Batch, losses: dict[str, Tensor], norm: Tensor, finite: bool) -> str:
        """One line about a step that was not finite, the same on every rank."""
        parts = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        windows = "; ".join(self.windows.describe(window_id) for window_id in batch.window_ids_B.tolist()[:8])
        line = f"rank {self.rank}: {parts}, gradient norm {norm.item():.4g}, batch: {windows}"
        lines: list[str | None] = [line]
        if self.ranks > 1:
            lines = [None] * self.ranks
            dist.all_gather_object(lines, None if finite else line)
        told = " | ".join(line for line in lines if line is not None)
        return (
            f"loss or gradient of step {self.step} not finite, weights unchanged: lower --lr or see the batch: {told}"
        )
