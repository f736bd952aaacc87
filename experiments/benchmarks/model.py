"""Benchmarks of the world model: training, its memory, generation and the reward.

Times are CPU-seconds of one thread, on which other programs have little effect. Training runs at
the paper's sizes, in a new process so that its memory is known. The rest uses the paper's widths
with fewer blocks: as all blocks are alike the ratios stay, and take a minute instead of ten.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.common import Args, Row, median_of
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

MEMORY = 6e9
"""Target for the memory in bytes of training the paper's tokenizer on one clip."""
SMALL: dict[str, Any] = {"dim": 256, "heads": 4}
"""Width of the small size for step times (4 + 4 and 4 blocks, 16 frames, 2 clips)."""


def training(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure FLOP/s of training, against matrix products of the same shapes, and its memory."""
    for component in ("tokenizer", "dynamics"):
        for compiled in (False, True):
            found = in_new_process(component, "paper", args.repeats, compiled)
            rate, products = found["flops"] / found["seconds"] / 1e9, found["products"] / 1e9
            name = f"{component}, paper{', --compile' if compiled else ''}"
            yield Row("training", name, rate, "GFLOP/s", "matrix products alone", products, 0.6)
            yield Row("training", f"{name}, 1 clip", found["tokens"] / found["seconds"], "tokens/s")
            if component == "tokenizer":
                peak, target = found["peak"] / 1e6, MEMORY / 1e6
                yield Row(
                    "training", "its peak memory", peak, "MB", "target", target, 1.0, at_most=True
                )
    for component in ("tokenizer", "dynamics"):
        found = in_new_process(component, "small", args.repeats, compiled=False)
        yield Row("training", f"{component}, small, 2 clips: a step", 1000 * found["seconds"], "ms")
    yield cached_tokens(args.repeats)


def in_new_process(component: str, size: str, repeats: int, compiled: bool) -> dict[str, float]:
    """Run `steps` in a new process and return its results, with the peak memory."""
    code = "from experiments.benchmarks.model import steps\n"
    code += f"steps({component!r}, {size!r}, {repeats}, {compiled})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring a training step failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def steps(component: str, size: str, repeats: int, compiled: bool) -> None:
    """Train on noise; print seconds and FLOPs of a step, matrix products and memory as JSON.

    The products are computed after each step, so that both see the same load of the machine.
    """
    torch.set_num_threads(1)
    config, clips = (preset("paper"), 1) if size == "paper" else (small_config(), 2)
    settings = train_preset(
        component, "paper", iterations=99, batch_size=clips, loader_threads=0, compile=compiled
    )
    objective: Objective = TokenizerObjective(Tokenizer(config))
    if component == "dynamics":
        objective = DynamicsObjective(with_codes(Dynamics(config)), Tokenizer(preset("debug")))
    products = products_of_a_block(config, settings)
    taken: list[list[float]] = [[] for _ in products]
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingRun(component, config, settings, (), Path(folder) / "run", Path(folder))
        windows = Noise(config, settings, tokens=component == "dynamics")
        trainer = build_trainer(job, objective, windows, None, Worker(torch.device("cpu")))

        def step() -> float:
            batch = next(trainer.loader)
            seconds = cpu_seconds(lambda: trainer.train_step(batch))
            trainer.step += 1
            for product, times in zip(products, taken, strict=True):
                product.make()  # load its operands into the cache
                times.append(cpu_seconds(product.make))
            return seconds

        for _ in range(2):  # warm-up: kernels, optimizer state, memory
            step()
        for times in taken:
            times.clear()
        seconds = median_of(repeats, step)
    cost = cost_of(component, config, settings)
    assert cost is not None
    found = {"seconds": seconds, "flops": cost.flops * clips, "tokens": float(cost.tokens * clips)}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    in_products = sum(
        product.count * statistics.median(times)
        for product, times in zip(products, taken, strict=True)
    )
    print(
        json.dumps(
            found
            | {"products": sum(product.count * product.flops for product in products) / in_products}
        )
    )


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix product that a block computes `count` times in a step."""

    make: Callable[[], Tensor]
    flops: float
    count: int


def products_of_a_block(config: WorldModelConfig, settings: TrainConfig) -> list[Product]:
    """Return the products of a block's linear layers and attention, forward and backward."""
    c = config.tokenizer
    patches, frames = config.grid**2, settings.clip_length
    rows, width, inner = (
        settings.batch_size * frames * patches,
        c.heads * c.head_dim,
        int(4 * 2 / 3 * c.dim),
    )
    made: list[Product] = []

    def add(a: Tensor, b: Tensor, count: int) -> None:
        made.append(Product(lambda: a @ b, 2 * a.numel() * b.shape[-1], count))

    for ins, outs, count in (
        (c.dim, 3 * width, 2),
        (width, c.dim, 2),
        (c.dim, inner, 4),
        (inner, c.dim, 2),
    ):
        x, weight, grad = (
            torch.randn(shape, dtype=torch.bfloat16)
            for shape in ((rows, ins), (outs, ins), (rows, outs))
        )
        for a, b in ((x, weight.T), (grad, weight), (grad.T, x)):
            add(a, b, count)
    for tokens in (patches, frames):  # space, then time
        x = torch.randn(rows // tokens * c.heads, tokens, c.head_dim, dtype=torch.bfloat16)
        share = torch.randn(len(x), tokens, tokens, dtype=torch.bfloat16)
        for a, b in (
            (x, x.mT),
            (share, x),
            (share.mT, x),
        ):  # each forward or backward, and again backward
            add(a, b, 2)
    return made


def cached_tokens(repeats: int) -> Row:
    """Measure dynamics steps on cached tokens against steps that encode frames first."""
    config = fewer_blocks(tokenizer=2, dynamics=3)
    objective = DynamicsObjective(with_codes(Dynamics(config)), Tokenizer(config))
    settings = train_preset("dynamics", "paper", batch_size=1)
    rates = []
    for tokens in (True, False):
        batch = Noise(config, settings, tokens=tokens).batch(np.arange(1))

        def step(batch: Any = batch) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                losses = objective(batch, 0.0)
            losses["loss"].backward()

        rates.append(1 / median_seconds(repeats, step))
    steps_ks = [1000 * rate for rate in rates]
    return Row(
        "training",
        "dynamics steps, cached tokens",
        steps_ks[0],
        "/ks",
        "encoding",
        steps_ks[1],
        1.15,
    )


def generation(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure generation with the KV cache against recomputation, and the reward."""
    model = GenieReduxG(Tokenizer(fewer_blocks(1, 4)), Dynamics(fewer_blocks(1, 4))).eval()
    use_cpu_kernels(model)  # as of every model that is loaded for a CPU
    frames, actions = torch.rand(1, 2, 3, 64, 64), torch.zeros(1, 11, dtype=torch.int64)
    rows: tuple[tuple[GenerationMode, int, float], ...] = (
        ("autoregressive", 2, 3.5),
        ("one_pass", 10, 1.15),
    )
    for mode, together, target in rows:

        def kept(mode: GenerationMode = mode) -> Tensor:
            return model.generate_tokens(frames, actions, SamplingConfig(mode=mode))

        def plain(together: int = together) -> Tensor:
            return recomputed(model, frames, actions, together)

        with torch.autocast("cpu", torch.bfloat16):
            rates = [1000 * 10 / median_seconds(1, run) for run in (kept, plain)]
        yield Row(
            "generation", f"2 -> 10, {mode}", rates[0], "frames/ks", "recomputed", rates[1], target
        )
    yield reward_query(args.repeats)


def recomputed(
    model: GenieReduxG, frames_BPCHW: Tensor, actions_BA: Tensor, together: int
) -> Tensor:
    """Generate tokens in 25 steps without KV cache: every step recomputes all frames so far."""
    dynamics, mask = model.dynamics, model.cfg.mask_id
    tokens = model.tokenizer.encode(frames_BPCHW)
    conditions = dynamics.encode_actions(actions_BA)
    with torch.no_grad():
        while (begin := tokens.shape[1]) < conditions.shape[1]:
            start = torch.full((len(tokens), together, *tokens.shape[2:]), mask)

            def logits_of(
                made_BM: Tensor, tokens: Tensor = tokens, start: Tensor = start
            ) -> Tensor:
                every = torch.cat([tokens, made_BM.view_as(start)], 1)
                hidden, _ = dynamics.forward_with_cache(
                    every, conditions[:, : every.shape[1]], None
                )
                return dynamics.head(hidden[:, tokens.shape[1] :]).flatten(1, 3)

            made = sample(logits_of, start.flatten(1), mask, steps=25)
            tokens = torch.cat([tokens, made.view_as(start)], 1)
            assert tokens.shape[1] == begin + together
    return tokens


def reward_query(repeats: int) -> Row:
    """Measure the reward against encoding 2 frames and running the dynamics model on 5."""
    model = GenieReduxG(Tokenizer(fewer_blocks(2, 3)), Dynamics(fewer_blocks(2, 3))).eval()
    use_cpu_kernels(model)  # as of every model that is loaded for a CPU
    windows = 4
    frames, actions = torch.rand(windows, 5, 3, 64, 64), torch.zeros(windows, 4, dtype=torch.int64)
    tokens = torch.randint(model.cfg.mask_id, (windows, 5, 16, 16))
    conditions = model.dynamics.encode_actions(actions)

    def model_calls() -> None:
        model.tokenizer.encode(frames[:, :2])
        model.dynamics.forward_with_cache(tokens, conditions, None)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        asked = windows / median_seconds(repeats, lambda: model.token_entropy(frames, actions))
        least = windows / median_seconds(repeats, model_calls)
    return Row(
        "generation",
        "reward query",
        60 * asked,
        "windows/min",
        "its model calls alone",
        60 * least,
        1 / 1.3,
    )


class Noise(Dataset):
    """Windows of noise, as frames or tokens: the computation does not depend on their content."""

    manifest_hash = "noise"

    def __init__(self, config: WorldModelConfig, settings: TrainConfig, *, tokens: bool) -> None:
        self._config, self._length, self._tokens = config, settings.clip_length, tokens
        self.provides = frozenset({"tokens" if tokens else "frames", "actions"})

    def __len__(self) -> int:
        return 1_000

    def sampler(self, seed: int) -> ClipSampler:
        return ClipSampler(len(self), seed)

    def describe(self, window_id: int) -> str:
        return f"noise {window_id}"

    def batch(self, window_ids: np.ndarray) -> Batch:
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


def fewer_blocks(tokenizer: int, dynamics: int) -> WorldModelConfig:
    """Return the paper's widths with fewer blocks in encoder, decoder and dynamics."""
    paper = preset("paper")
    return dataclasses.replace(
        paper,
        tokenizer=dataclasses.replace(paper.tokenizer, encoder_blocks=tokenizer, decoder_blocks=1),
        dynamics=dataclasses.replace(paper.dynamics, blocks=dynamics),
    )


def small_config() -> WorldModelConfig:
    """Return the small size for step times."""
    paper = preset("paper")
    return dataclasses.replace(
        paper,
        tokenizer=dataclasses.replace(paper.tokenizer, encoder_blocks=4, decoder_blocks=4, **SMALL),
        dynamics=dataclasses.replace(paper.dynamics, blocks=4, **SMALL),
    )


def with_codes(dynamics: Dynamics) -> Dynamics:
    """Set a random codebook, which training needs."""
    dynamics.set_codebook(
        torch.nn.functional.normalize(torch.randn(dynamics.codebook.shape), dim=-1)
    )
    return dynamics


def median_seconds(repeats: int, call: Callable[[], Any]) -> float:
    """Return the median of several times of a call, after a warm-up if there is more than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if repeats > 1:
            call()
        return median_of(repeats, lambda: cpu_seconds(call))
    finally:
        torch.set_num_threads(threads)


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Return the CPU-seconds of a call in this process."""
    started = time.process_time()
    call()
    return time.process_time() - started
