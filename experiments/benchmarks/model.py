"""Benchmarks of the world model: training, its memory, generation and the reward.

Times are CPU-seconds of one thread, on which other programs have little effect. Training runs at
the paper's sizes, in a new process so that its memory is known. The rest uses the paper's widths
with fewer blocks: all blocks are alike, so that the ratios are the same.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.common import Args, Row, cpu_seconds, median_of
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset
from worldmodel.config import GenerationMode, SamplingConfig, WorldModelConfig
from worldmodel.data.batch import Batch
from worldmodel.data.dataset import Dataset
from worldmodel.data.sampler import ClipSampler
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.maskgit import sample
from worldmodel.training.config import TrainConfig, train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.flops import cost_of
from worldmodel.training.objectives import DynamicsObjective, Objective, TokenizerObjective
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.setup import build_trainer

MEMORY_MB = 6e3
"""Target for the memory of training the paper's tokenizer on one clip."""


def measure_training(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure FLOP/s of training, against matrix products of the same shapes, and its memory."""
    row = partial(Row, "training")
    for component in ("tokenizer", "dynamics"):
        for compiled in (False, True):
            result = in_new_process(component, "paper", args.repeats, compiled)
            name = f"{component}, paper{', --compile' if compiled else ''}"
            rate, products = result["flops"] / result["seconds"] / 1e9, result["products"] / 1e9
            yield row(name, rate, "GFLOP/s", "matrix products alone", products, 0.6)
            yield row(f"{name}, 1 clip", result["tokens"] / result["seconds"], "tokens/s")
            if component == "tokenizer":
                peak = result["peak"] / 1e6
                yield row("its peak memory", peak, "MB", "target", MEMORY_MB, 1.0, at_most=True)
    for component in ("tokenizer", "dynamics"):
        result = in_new_process(component, "small", args.repeats, compiled=False)
        yield row(f"{component}, small, 2 clips: a step", 1000 * result["seconds"], "ms")
    cached, encoding = (1000 / dynamics_seconds(args.repeats, tokens=t) for t in (True, False))
    yield row("dynamics steps, cached tokens", cached, "/ks", "encoding", encoding, 1.15)


def in_new_process(component: str, size: str, repeats: int, compiled: bool) -> dict[str, float]:
    """Run `print_step` in a new process and return its result."""
    code = "from experiments.benchmarks.model import print_step\n"
    code += f"print_step({component!r}, {size!r}, {repeats}, {compiled})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring a training step failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def print_step(component: str, size: str, repeats: int, compiled: bool) -> None:
    """Train on noise and print a step's seconds, FLOPs, tokens and peak memory as JSON, with the
    FLOP/s of matrix products alone.

    The products are computed after each step, so that both see the same load of the machine.
    """
    torch.set_num_threads(1)
    config, clips = (preset("paper"), 1) if size == "paper" else (small_config(), 2)
    settings = train_preset(
        component, "paper", iterations=99, batch_size=clips, loader_threads=0, compile=compiled
    )
    objective: Objective = TokenizerObjective(Tokenizer(config))
    if component == "dynamics":
        objective = DynamicsObjective(dynamics_with_codes(config), Tokenizer(preset("debug")))
    products = products_of_a_block(config, settings)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(component, config, settings, (), Path(folder) / "run", Path(folder))
        noise = NoiseDataset(config, settings, tokens=component == "dynamics")
        trainer = build_trainer(run, objective, noise, None, Worker(torch.device("cpu")))

        def step() -> list[float]:
            batch = next(trainer.loader)
            times = [cpu_seconds(lambda: trainer.train_step(batch))]
            trainer.step += 1
            for product in products:
                product.compute()  # load its operands into the cache
                times.append(cpu_seconds(product.compute))
            return times

        for _ in range(2):  # warm-up: kernels, optimizer state, memory
            step()
        seconds, *of_products = np.median([step() for _ in range(repeats)], axis=0).tolist()
    cost = cost_of(component, config, settings)
    assert cost is not None
    in_products = sum(p.count * time for p, time in zip(products, of_products, strict=True))
    result = {
        "seconds": seconds,
        "flops": cost.flops * clips,
        "tokens": float(cost.tokens * clips),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "products": sum(product.count * product.flops for product in products) / in_products,
    }
    print(json.dumps(result))


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix product that a block computes `count` times in a step."""

    a: Tensor
    b: Tensor
    count: int

    def compute(self) -> Tensor:
        """Return the product."""
        return self.a @ self.b

    @property
    def flops(self) -> float:
        """FLOPs of one product."""
        return 2 * self.a.numel() * self.b.shape[-1]


def products_of_a_block(config: WorldModelConfig, settings: TrainConfig) -> list[Product]:
    """Return the products of a block's linear layers and attention, forward and backward."""
    c = config.tokenizer
    patches, frames = config.grid**2, settings.clip_length
    rows, width = settings.batch_size * frames * patches, c.heads * c.head_dim
    inner = int(4 * 2 / 3 * c.dim)
    noise = partial(torch.randn, dtype=torch.bfloat16)
    products = []
    for ins, outs, count in (
        (c.dim, 3 * width, 2),
        (width, c.dim, 2),
        (c.dim, inner, 4),
        (inner, c.dim, 2),
    ):
        x, weight, grad = noise(rows, ins), noise(outs, ins), noise(rows, outs)
        operands = ((x, weight.T), (grad, weight), (grad.T, x))
        products += [Product(a, b, count) for a, b in operands]
    for tokens in (patches, frames):  # space, then time
        x = noise(rows // tokens * c.heads, tokens, c.head_dim)
        share = noise(len(x), tokens, tokens)
        # Each of them once forward or backward, and once more backward.
        operands = ((x, x.mT), (share, x), (share.mT, x))
        products += [Product(a, b, 2) for a, b in operands]
    return products


def dynamics_seconds(repeats: int, *, tokens: bool) -> float:
    """Return the CPU-seconds of a dynamics step on cached tokens, or on frames to be encoded."""
    config = fewer_blocks(tokenizer=2, dynamics=3)
    objective = DynamicsObjective(dynamics_with_codes(config), Tokenizer(config))
    settings = train_preset("dynamics", "paper", batch_size=1)
    batch = NoiseDataset(config, settings, tokens=tokens).batch(np.arange(1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses = objective(batch, 0.0)
        losses["loss"].backward()

    return median_seconds(repeats, step)


def measure_generation(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure generation with the KV cache against recomputation, and the reward."""
    row = partial(Row, "generation")
    model = cpu_model(fewer_blocks(tokenizer=1, dynamics=4))
    frames, actions = torch.rand(1, 2, 3, 64, 64), torch.zeros(1, 11, dtype=torch.int64)
    modes: tuple[tuple[GenerationMode, int, float], ...]
    modes = ("autoregressive", 2, 3.5), ("one_pass", 10, 1.15)
    for mode, chunk_size, target in modes:
        generate = partial(model.generate_tokens, frames, actions, SamplingConfig(mode=mode))
        recompute = partial(generate_without_cache, model, frames, actions, chunk_size)
        with torch.autocast("cpu", torch.bfloat16):
            cached, plain = (1000 * 10 / median_seconds(1, call) for call in (generate, recompute))
        yield row(f"2 -> 10, {mode}", cached, "frames/ks", "recomputed", plain, target)

    model, windows = cpu_model(fewer_blocks(tokenizer=2, dynamics=3)), 4
    frames, actions = torch.rand(windows, 5, 3, 64, 64), torch.zeros(windows, 4, dtype=torch.int64)
    tokens = torch.randint(model.cfg.mask_id, (windows, 5, 16, 16))
    conditions = model.dynamics.encode_actions(actions)

    def model_calls() -> None:
        model.tokenizer.encode(frames[:, :2])
        model.dynamics.forward_with_cache(tokens, conditions, None)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        query, bare = (
            60 * windows / median_seconds(args.repeats, call)
            for call in (partial(model.token_entropy, frames, actions), model_calls)
        )
    yield row("reward query", query, "windows/min", "its model calls alone", bare, 1 / 1.3)


@torch.no_grad()
def generate_without_cache(
    model: GenieReduxG, frames_BPCHW: Tensor, actions_BA: Tensor, chunk_size: int
) -> Tensor:
    """Generate tokens in 25 steps without KV cache: every step recomputes all frames so far."""
    dynamics, mask = model.dynamics, model.cfg.mask_id
    tokens = model.tokenizer.encode(frames_BPCHW)
    conditions = dynamics.encode_actions(actions_BA)
    while tokens.shape[1] < conditions.shape[1]:
        chunk = torch.full((len(tokens), chunk_size, *tokens.shape[2:]), mask)

        def logits_of(sampled_BM: Tensor, past: Tensor = tokens, chunk: Tensor = chunk) -> Tensor:
            frames = torch.cat([past, sampled_BM.view_as(chunk)], 1)
            conditions_BT = conditions[:, : frames.shape[1]]
            hidden, _ = dynamics.forward_with_cache(frames, conditions_BT, None)
            return dynamics.head(hidden[:, past.shape[1] :]).flatten(1, 3)

        sampled = sample(logits_of, chunk.flatten(1), mask, steps=25)
        tokens = torch.cat([tokens, sampled.view_as(chunk)], 1)
    return tokens


class NoiseDataset(Dataset):
    """Windows of noise, as frames or tokens: the computation does not depend on their content."""

    manifest_hash = "noise"

    def __init__(self, config: WorldModelConfig, settings: TrainConfig, *, tokens: bool) -> None:
        self._config, self._length, self._tokens = config, settings.clip_length, tokens
        self.provides = frozenset({"tokens" if tokens else "frames", "actions"})

    def __len__(self) -> int:
        return 1_000

    def sampler(self, seed: int) -> ClipSampler:
        """Return the order of the windows."""
        return ClipSampler(len(self), seed)

    def describe(self, window_id: int) -> str:
        """Describe a window in words."""
        return f"noise {window_id}"

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Return new noise."""
        config, shape = self._config, (len(window_ids), self._length)
        batch = Batch(
            window_ids_B=torch.from_numpy(window_ids),
            games_B=torch.zeros(shape[0], dtype=torch.int64),
            actions_BT=torch.randint(config.actions, (shape[0], shape[1] - 1)),
        )
        if self._tokens:
            tokens_BThw = torch.randint(config.mask_id, (*shape, config.grid, config.grid))
            return dataclasses.replace(batch, tokens_BThw=tokens_BThw)
        frames_BTHWC = torch.randint(256, (*shape, config.size, config.size, 3), dtype=torch.uint8)
        return dataclasses.replace(batch, frames_BTHWC=frames_BTHWC)


def change_paper(tokenizer: dict[str, Any], dynamics: dict[str, Any]) -> WorldModelConfig:
    """Return the paper's sizes with changes of the tokenizer and the dynamics model."""
    paper = preset("paper")
    return dataclasses.replace(
        paper,
        tokenizer=dataclasses.replace(paper.tokenizer, **tokenizer),
        dynamics=dataclasses.replace(paper.dynamics, **dynamics),
    )


def fewer_blocks(tokenizer: int, dynamics: int) -> WorldModelConfig:
    """Return the paper's widths with fewer blocks in encoder, decoder and dynamics."""
    return change_paper({"encoder_blocks": tokenizer, "decoder_blocks": 1}, {"blocks": dynamics})


def small_config() -> WorldModelConfig:
    """Return the small size for step times."""
    width = {"dim": 256, "heads": 4}
    return change_paper({"encoder_blocks": 4, "decoder_blocks": 4, **width}, {"blocks": 4, **width})


def cpu_model(config: WorldModelConfig) -> GenieReduxG:
    """Return an untrained world model with CPU kernels, as models loaded for a CPU have."""
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).eval()
    use_cpu_kernels(model)
    return model


def dynamics_with_codes(config: WorldModelConfig) -> Dynamics:
    """Return a dynamics model with a random codebook, which training needs."""
    dynamics = Dynamics(config)
    dynamics.set_codebook(F.normalize(torch.randn(dynamics.codebook.shape), dim=-1))
    return dynamics


def median_seconds(repeats: int, call: Callable[[], Any]) -> float:
    """Return the median CPU-seconds of a call, after a warm-up if it is measured repeatedly."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if repeats > 1:
            call()
        return median_of(repeats, lambda: cpu_seconds(call))
    finally:
        torch.set_num_threads(threads)
