"""Predicted speeds of GPUs that are not at hand: training, generation and the reward.

The prediction is a roofline. A kernel takes the longest of its FLOPs at the card's peak, its bytes
at the bandwidth of the memory, and `KERNEL`; the CPU launches kernels meanwhile, one per `LAUNCH`,
and the slower of the two counts. It is optimistic: caches aside, no card reaches its peak and its
bandwidth in every kernel, and nothing waits for data or for other cards.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from envs.utils.errors import InputError
from experiments.benchmarks.accelerator import CLIPS, HORIZON, STEPS
from experiments.benchmarks.common import Args, Row
from experiments.benchmarks.fusion import compiled_kernels, eager_kernels
from experiments.benchmarks.kernels import (
    Kernel,
    KernelRecorder,
    Operation,
    fake_tensors,
)
from experiments.benchmarks.model import NoiseDataset, dynamics_with_codes
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset
from worldmodel.config import CONTEXT, WorldModelConfig
from worldmodel.devices import autocast
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of
from worldmodel.training.objectives import DynamicsObjective, Objective, TokenizerObjective
from worldmodel.training.throughput import PEAKS

BANDWIDTHS = {
    "a100": 2.039e12,
    "a100-40gb": 1.555e12,
    "h100": 3.35e12,
    "h100-pcie": 2.0e12,
    "h100-nvl": 3.9e12,
    "h200": 4.8e12,
    "b200": 8.0e12,
    "a10": 0.6e12,
    "a10g": 0.6e12,
    "a6000": 0.768e12,
    "l4": 0.3e12,
    "l40": 0.864e12,
    "l40s": 0.864e12,
    "rtx3090": 0.936e12,
    "rtx4090": 1.008e12,
}
"""GPU -> bytes a second of its memory, from the makers' data sheets."""
LAUNCH = 5e-6
"""Assumed seconds of the CPU for each kernel: the driver takes about 4 us, Python and torch the
rest. Eager code with many small functions needs two to three times as much."""
KERNEL = 2e-6
"""Assumed seconds of the shortest kernel on the card, with the gap to the next."""
USUAL_PRODUCTS = 0.75
"""Share of the peak that large matrix products of cuBLAS are assumed to reach."""
FILMS, WINDOWS = (1, 256), 128
"""Films that are generated together, and windows that are scored together."""
MFU_TARGETS = {"a100": 0.4, "h100": 0.3}
FRAME_TARGETS = {1: 20.0, 256: 1000.0}
"""Films together -> frames a second on an h100."""
WINDOW_TARGET = 1500.0
"""Reward windows a second on an h100."""
TARGET_CARD = "h100"

Repeated = list[tuple[float, Kernel]]
"""Kernels, each with the number of times that it runs."""


@dataclass(frozen=True)
class Way:
    """Way to run a model."""

    prepare: Callable[[list[Operation]], list[Kernel]]
    """Turn operations into kernels."""
    launch: float
    """Seconds of the CPU for each kernel."""


WAYS = {
    "eager": Way(eager_kernels, LAUNCH),
    "compiled": Way(compiled_kernels, LAUNCH),
    "CUDA graphs": Way(compiled_kernels, 0.0),
}
"""Eager; sub-blocks compiled; and these launched together."""


@dataclass(frozen=True)
class Work:
    """Operations of a computation, in parts with the number of times that each is done."""

    parts: tuple[tuple[float, list[Operation]], ...]

    def kernels(self, way: str) -> Repeated:
        """Return its kernels when it is run in this way."""
        prepare = WAYS[way].prepare
        return [(times, kernel) for times, part in self.parts for kernel in prepare(part)]


@dataclass(frozen=True)
class Prediction:
    """Predicted time of a computation on a card."""

    seconds: float
    launching: bool
    """True if the card waits for the CPU, which launches kernels."""
    shares: dict[str, float]
    """Kind of work -> share of the card's time, the largest first."""

    def most_time(self, kinds: int = 3) -> str:
        """Return in words what takes the most time."""
        if self.launching:
            return "launching kernels"
        largest = list(self.shares.items())[:kinds]
        return ", ".join(f"{kind} {share:.0%}" for kind, share in largest)


def predict_time(kernels: Repeated, card: str, launch: float, products: float = 1.0) -> Prediction:
    """Predict the time of kernels, with matrix products at a share of the card's peak."""
    peak, bandwidth = PEAKS[card][0] * products, BANDWIDTHS[card]
    by_kind: dict[str, float] = defaultdict(float)
    host = 0.0
    for times, kernel in kernels:
        rate = peak if kernel.half else peak / 2  # TF32
        by_kind[kernel.kind] += times * max(kernel.flops / rate, kernel.bytes / bandwidth, KERNEL)
        host += times * launch
    device = sum(by_kind.values())
    ranked = sorted(by_kind.items(), key=lambda item: -item[1])
    shares = {kind: seconds / device for kind, seconds in ranked}
    return Prediction(max(device, host), host > device, shares)


def check_cards(names: Sequence[str]) -> None:
    """Raise InputError for an unknown card."""
    for name in names:
        if name not in PEAKS:
            raise InputError(f"--hardware {name}: choose among {', '.join(PEAKS)}")


def measure_roofline(args: Args, scratch: Path) -> Iterator[Row]:
    """Predict the rates of the models of a preset on every card, in bf16."""
    check_cards(args.hardware)
    config = preset(args.preset)
    # No code dies in these steps.
    still = dataclasses.replace(config.tokenizer, reseed_below=0.0)
    config = dataclasses.replace(config, tokenizer=still)
    for component in ("tokenizer", "dynamics"):
        yield from _training_rows(component, config, args)
    for films in FILMS:
        work, frames = generation_work(config, films), films * HORIZON
        name, target = f"generation, {films} at a time", FRAME_TARGETS[films]
        yield from _inference_rows(name, work, frames, "frames/s", target, args)
    work = reward_work(config)
    yield from _inference_rows("reward", work, WINDOWS, "windows/s", WINDOW_TARGET, args)


def _training_rows(component: str, config: WorldModelConfig, args: Args) -> Iterator[Row]:
    clips = CLIPS[args.preset]
    work = training_work(component, config, args.preset)
    settings = train_preset(component, args.preset)
    flops = cost_of(component, config, settings).flops * clips
    kernels = {way: work.kernels(way) for way in ("eager", "compiled")}
    for card in args.hardware:
        peak = PEAKS[card][0]
        for way, products in (("eager", 1.0), ("compiled", 1.0), ("compiled", USUAL_PRODUCTS)):
            made = predict_time(kernels[way], card, LAUNCH, products)
            name = f"{component}, {args.preset}, {card}, {way}"
            if products < 1:
                name += f", products at {products:.0%}"
            yield Row(
                "roofline",
                name,
                flops / made.seconds / 1e12,
                "TFLOP/s",
                "peak of the card",
                peak / 1e12,
                MFU_TARGETS.get(card) if args.preset == "paper" else None,
                most_time=made.most_time(),
            )


def _inference_rows(
    name: str, work: Work, amount: int, unit: str, target: float, args: Args
) -> Iterator[Row]:
    kernels = {way: work.kernels(way) for way in WAYS}
    for card in args.hardware:
        for way, run in kernels.items():
            made = predict_time(run, card, WAYS[way].launch)
            row = partial(Row, "roofline", f"{name}, {args.preset}, {card}, {way}")
            row = partial(row, amount / made.seconds, unit, most_time=made.most_time())
            if args.preset == "paper" and card == TARGET_CARD:
                yield row(baseline="target", baseline_rate=target, target=1.0)
            else:
                yield row()


def training_work(component: str, config: WorldModelConfig, size: str) -> Work:
    """Record one step of training: forward and backward pass, clipping and AdamW."""
    clips = CLIPS[size]
    settings = train_preset(component, size, batch_size=clips)
    with fake_tensors() as recorder:
        objective: Objective
        if component == "tokenizer":
            objective = TokenizerObjective(Tokenizer(config))
        else:
            objective = DynamicsObjective(dynamics_with_codes(config), Tokenizer(preset("debug")))
        objective.train()
        recorder.watch(objective.model)
        weights = list(objective.trainable().values())
        optimizer = torch.optim.AdamW(weights, fused=True)
        dataset = NoiseDataset(config, settings, tokens=component == "dynamics")
        batch = dataset.batch(np.arange(clips))

        def step() -> None:
            with autocast(torch.device("cpu"), "bf16"):
                recorder.run_backward(objective(batch, 0.9)["loss"])
            # As `Trainer.train_step` on a GPU, where norms and clipping take one kernel each.
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_mul_(gradients, (settings.grad_clip / norm).clamp(max=1))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        # The optimizer makes its state in the first step.
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return Work(((1.0, recorder.record(step)),))


def _fake_model(config: WorldModelConfig, recorder: KernelRecorder) -> GenieReduxG:
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).eval()
    model.precision = "bf16"
    recorder.watch(model)
    return model


def generation_work(config: WorldModelConfig, films: int) -> Work:
    """Record the autoregressive generation of HORIZON frames after CONTEXT, in STEPS passes each.

    Two passes are recorded for each chunk. What lies between their ends happens in every further
    pass.
    """
    with fake_tensors() as recorder:
        model = _fake_model(config, recorder)
        ends: list[int] = []
        model.dynamics.head.register_forward_hook(lambda *_: ends.append(len(recorder.operations)))
        frames = torch.rand(films, CONTEXT, 3, config.size, config.size)
        actions = torch.zeros(films, CONTEXT + HORIZON - 1, dtype=torch.int64)
        generate = partial(model.generate, frames, actions, steps=2, mode="autoregressive")
        operations = recorder.record(generate)
    passes = zip(ends[::2], ends[1::2], strict=True)
    further = tuple((STEPS - 2.0, operations[first:second]) for first, second in passes)
    return Work(((1.0, operations), *further))


def reward_work(config: WorldModelConfig) -> Work:
    """Record the entropy of WINDOWS windows in one pass."""
    with fake_tensors() as recorder:
        model = _fake_model(config, recorder)
        frames = torch.rand(WINDOWS, CONTEXT, 3, config.size, config.size)
        actions = torch.zeros(WINDOWS, 4, dtype=torch.int64)
        query = partial(model.future_token_entropy, frames, actions, batch=WINDOWS)
        return Work(((1.0, recorder.record(query)),))
