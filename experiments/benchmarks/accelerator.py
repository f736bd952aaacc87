"""Benchmarks of the world model on a GPU: training, its memory, generation, the reward.

Times are seconds on the clock, until the device is done. Weights and clips are noise: the
computation does not depend on their content.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.common import Args, Row, median_of, wall_seconds
from experiments.benchmarks.model import NoiseDataset, dynamics_with_codes
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset
from worldmodel.config import CONTEXT, WorldModelConfig
from worldmodel.devices import resolve_device, resolve_precision
from worldmodel.models.compilation import optimize_loaded
from worldmodel.training.config import train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.flops import cost_of
from worldmodel.training.objectives import DynamicsObjective, Objective, TokenizerObjective
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.setup import build_trainer
from worldmodel.training.throughput import device_peak, synchronize
from worldmodel.uncertainty import window_entropies

CLIPS = {"debug": 2, "cpu": 2, "gpu": 8, "paper": 10}
"""Clips of a training step by preset: those of one of the paper's eight cards."""
CPU_COUNTS, GPU_COUNTS = ((1, 4), (4, 16)), ((1, 16), (4, 256))
"""Films that are generated together, and windows that are scored together: few, and many."""
HORIZON = 10
"""Frames that are generated after the CONTEXT."""
STEPS = 25
"""MaskGIT steps for each chunk of frames."""


def measure_accelerator(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure training against the peak of the hardware, frames and windows a second."""
    device, config = resolve_device(args.device), preset(args.preset)
    precision = resolve_precision("auto", device, training=True)
    peak = device_peak(device, precision) / 1e12
    row = partial(Row, "gpu")
    for component in ("tokenizer", "dynamics"):
        for compiled in (False, True) if device.type != "cpu" else (False,):
            made = measure_step(component, config, args, device, compiled=compiled)
            name = f"{component}, {args.preset}{', compiled' if compiled else ''}, {precision}"
            yield row(name, made["tflops"], "TFLOP/s", "peak of the hardware", peak, 0.3)
            yield row(f"{name}, peak memory", made["memory"], "GB")
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).to(device).eval()
    model.precision = precision
    ways = ("",) if device.type == "cpu" else (", eager", ", compiled")
    for way in ways:
        optimize_loaded(model, device, compile=way == ", compiled")
        yield from measure_passes(model, args, way)
        if device.type == "cuda":
            model.use_cuda_graphs()
            yield from measure_passes(model, args, f"{way}, CUDA graphs", few=True)
            model.passes.stop()


def measure_passes(model: GenieReduxG, args: Args, way: str, *, few: bool = False) -> Iterator[Row]:
    """Measure the frames and windows a second of one way to run a model, or only of `few`."""
    row, device, size = partial(Row, "gpu"), model.device, model.cfg.size
    counts = CPU_COUNTS if device.type == "cpu" else GPU_COUNTS
    film_counts, window_counts = (both[:1] if few else both for both in counts)
    for films in film_counts:
        frames = torch.rand(films, CONTEXT, 3, size, size, device=device)
        actions = torch.zeros(films, CONTEXT + HORIZON - 1, dtype=torch.int64, device=device)
        generate = partial(model.generate, frames, actions, steps=STEPS, mode="autoregressive")
        seconds = seconds_on(device, generate, args.repeats)
        yield row(f"generation, {films} at a time{way}", films * HORIZON / seconds, "frames/s")
    noise = np.random.default_rng(0)
    for count in window_counts:
        shape = (count, CONTEXT, size, size, 3)
        windows = noise.integers(256, size=shape, dtype=np.uint8), np.zeros((count, 4), np.int64)
        seconds = seconds_on(device, partial(window_entropies, model, *windows), args.repeats)
        yield row(f"reward, {count} at a time{way}", count / seconds, "windows/s")


def measure_step(
    component: str, config: WorldModelConfig, args: Args, device: torch.device, *, compiled: bool
) -> dict[str, float]:
    """Return the TFLOP/s of training steps and the peak memory in GB."""
    clips = CLIPS[args.preset]
    changes: dict[str, Any] = {"iterations": 99, "batch_size": clips, "loader_threads": 0}
    settings = train_preset(component, args.preset, compile=compiled, eager=not compiled, **changes)
    settings = settings.on_this_machine()
    objective: Objective
    if component == "tokenizer":
        objective = TokenizerObjective(Tokenizer(config).to(device))
    else:
        dynamics = dynamics_with_codes(config).to(device)
        objective = DynamicsObjective(dynamics, Tokenizer(preset("debug")).to(device))
    dataset = NoiseDataset(config, settings, tokens=component == "dynamics")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(component, config, settings, (), Path(folder) / "run", Path(folder))
        trainer = build_trainer(run, objective, dataset, None, Worker(device))
        batch = next(trainer.loader)

        def step() -> None:
            trainer.train_step(batch)
            trainer.step += 1

        for _ in range(3):  # compilation, kernels, optimizer state
            step()
        seconds = seconds_on(device, step, max(args.repeats, 5))
        trainer.loader.close()
    cost = cost_of(component, config, settings)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"tflops": cost.flops * clips / seconds / 1e12, "memory": memory / 1e9}


def seconds_on(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a call until the device is done, after two to warm up.

    The first one compiles, and the second one captures passes that come once a call.
    """

    def finish() -> None:
        work()
        synchronize(device)

    for _ in range(2):
        finish()
    return median_of(repeats, lambda: wall_seconds(finish))
