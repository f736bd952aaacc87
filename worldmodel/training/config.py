"""Training hyper-parameters of every component: presets of the runs in App. A.1 and B.

A component has a recipe for each run that the paper makes of it, and a recipe has three presets:
`paper` holds the published values, `cpu` what two cores learn most from in minutes, `debug` what
finishes in seconds and learns nothing.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import torch

from envs.utils.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of a training run. The defaults are the paper's for the tokenizer."""

    iterations: int = 72_000
    """Optimizer steps."""
    batch_size: int = 112
    """Clips per step, over all workers."""
    clip_length: int = 16
    """Frames per clip."""
    clip_stride: int = 1
    """Frames between the starts of neighbouring windows of an episode."""
    lr: float = 1e-4
    """Highest learning rate, reached at the end of the warm-up."""
    min_lr_factor: float = 0.5
    """Learning rate of the last step, as a share of lr in (0, 1]."""
    warmup: int = 5_000
    """Steps of linear warm-up."""
    warmup_factor: float = 0.5
    """Start of the warm-up, as a share of lr."""
    lr_halve_every: int = 0
    """Steps after which the learning rate is halved, repeatedly; 0 for the cosine schedule."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    grad_clip: float = 1.0
    """Largest gradient norm of a step; 0 turns clipping off."""
    grad_accum_steps: int = 1
    """Microbatches that a worker's share of a batch is split into; saves memory."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of storing them: less memory, more
    time."""
    precision: str = "bf16"
    """bf16 (autocast, weights stay fp32), fp32, or auto: bf16 where the hardware multiplies it."""
    compile: bool = False
    """Compile all but matrix products (torch.compile): half a minute at the start, then faster."""
    parallelism: str = "ddp"
    """Distribution of the model over workers: ddp (each a copy) or fsdp (each a shard of weights,
    gradients and moments, gathered block by block when needed)."""
    ema: float = 0.0
    """Decay of the EMA of the weights; 0 for none. An EMA is validated and exported."""
    label_fraction: float = 0.0
    """Latent action model: share of each game's episodes, in [0, 1] and rounded up, whose recorded
    actions it sees in training, so that code a stands for action a. A hash of the session ids
    chooses them; half of the clips are drawn from them, so a streaming_buffer should hold all of
    them."""
    upscaler: str = ""
    """Upscaler: its shape, one of `worldmodel.models.upscaler.SHAPES`."""
    token_cache: bool = True
    """Dynamics: encode every window once and train on stored tokens (and stored actions of a frozen
    latent action model), if the run is long enough to read each window once on average. Shorter
    runs, or False: encode in each step."""
    streaming_buffer: int = 0
    """Most compressed sessions that a worker holds in memory when it streams a data set larger than
    the local disk. Determines the order of the clips, whatever the number of workers. 0 copies the
    data to the disk instead."""
    streaming_buffer_bytes: int = 8 << 30
    """Most bytes of those sessions."""
    log_every: int = 50
    """Steps between lines of metrics."""
    validate_every: int = 1_000
    """Steps between validations; 0 for none."""
    validation_clips: int = 0
    """Validation clips, spread evenly over the validation split; 0 for all of it."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = 3
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest validation loss too; each new best one is saved."""
    seed: int = 0
    """Seed of the first weights, the order of the data, masks and noise."""
    num_threads: int = 0
    """Torch threads of each worker; 0 leaves torch's own choice."""
    loader_threads: int = 4
    """Threads of each worker that decode clips in advance; 0 decodes in the training thread."""

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "batch_size",
            "grad_accum_steps",
            "clip_stride",
            "log_every",
            "checkpoint_every",
            "keep_last",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.streaming_buffer < 0 or self.streaming_buffer == 1:
            raise InputError(
                f"streaming_buffer = {self.streaming_buffer}: must be 2 or more sessions, "
                "or 0 to copy the data to the disk"
            )
        if self.streaming_buffer_bytes < 1:
            raise InputError(
                f"streaming_buffer_bytes = {self.streaming_buffer_bytes}: must be 1 or more"
            )
        if self.clip_length < 2 and not (self.upscaler and self.clip_length == 1):
            raise InputError(
                f"clip_length = {self.clip_length}: a clip needs 2 frames or more to hold an action"
            )
        if self.lr_halve_every < 0:
            raise InputError(
                f"lr_halve_every = {self.lr_halve_every}: must be 1 or more, or 0 for never"
            )
        if self.batch_size % self.grad_accum_steps:
            raise InputError(
                f"a batch of {self.batch_size} cannot be computed in {self.grad_accum_steps} "
                "equal parts"
            )
        for name, choices in (
            ("precision", ("bf16", "fp32", "auto")),
            ("parallelism", ("ddp", "fsdp")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} = {getattr(self, name)!r}: choose {' or '.join(choices)}")
        if not 0 <= self.ema < 1:
            raise InputError(
                f"ema = {self.ema}: a decay is at least 0 (no EMA) and below 1, e.g. 0.999"
            )
        if not 0 <= self.label_fraction <= 1:
            raise InputError(
                f"label_fraction = {self.label_fraction}: the share of labelled episodes is in "
                "[0, 1], e.g. 0.05"
            )
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr = {self.lr}: must be above 0")
        if not 0 < self.min_lr_factor <= 1:
            raise InputError(f"min_lr_factor = {self.min_lr_factor}: must be above 0 and at most 1")

    def on_this_machine(self) -> Self:
        """Return the settings with the precision `auto` decided: bf16 on a GPU or on a CPU with
        matrix instructions for it. Other CPUs emulate it and are ten times slower than in fp32.
        """
        if self.precision != "auto":
            return self
        half = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
        return dataclasses.replace(self, precision="bf16" if half else "fp32")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, then cosine."""
        if step < self.warmup:
            return self.lr * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup)
        if self.lr_halve_every:
            return self.lr * 0.5 ** (step // self.lr_halve_every)
        progress = (step - self.warmup) / max(self.iterations - 1 - self.warmup, 1)
        min_lr = self.min_lr_factor * self.lr
        return min_lr + (self.lr - min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


_DEBUG = {
    "iterations": 20,
    "batch_size": 2,
    "clip_length": 6,
    "clip_stride": 2,
    "lr": 1e-3,
    "warmup": 4,
    "precision": "fp32",
    "log_every": 5,
    "validate_every": 10,
    "validation_clips": 4,
    "checkpoint_every": 10,
    "num_threads": 1,
    "loader_threads": 1,
}

_CPU = {
    "batch_size": 2,
    "precision": "auto",
    "lr": 2e-3,
    "min_lr_factor": 0.05,
    "warmup": 50,
    "log_every": 20,
    "validate_every": 500,
    "validation_clips": 48,
    "checkpoint_every": 500,
    "keep_last": 2,
    "loader_threads": 1,
}

_CPU_TOKENIZER = {**_CPU, "iterations": 2_600, "clip_length": 4, "clip_stride": 1}
_CPU_LAM = {**_CPU, "iterations": 2_000, "batch_size": 4, "clip_length": 4, "clip_stride": 1}
_CPU_DYNAMICS = {
    **_CPU,
    "iterations": 2_000,
    "clip_length": 4,
    "clip_stride": 4,
    "lr": 1.5e-3,
    "min_lr_factor": 1 / 15,
}
_CPU_FINETUNE = {"iterations": 250, "validate_every": 0}
# AdamW starts without moments, so that its first steps have the size of the learning rate. At the
# base's rate they undo the base: Airstriker fell from 41.3 to 33.1 dB in 20 steps.
_CPU_DECODER = {
    **_CPU_TOKENIZER,
    **_CPU_FINETUNE,
    "lr": 2e-4,
    "min_lr_factor": 0.1,
    "warmup_factor": 0.1,
}

_UPSCALER = {"clip_length": 1, "clip_stride": 1}
_DEBUG_UPSCALER = {**_DEBUG, **_UPSCALER, "upscaler": "debug"}
_CPU_UPSCALER = {**_CPU, **_UPSCALER, "iterations": 1_200, "batch_size": 8, "upscaler": "cpu"}


def _paper_upscaler(shape: str, images: int) -> dict[str, Any]:
    """Return the run of App. B: Adam at 1e-4, StepLR(25, 0.5), 300 epochs, batches of 128."""
    return {
        **_UPSCALER,
        "upscaler": shape,
        "batch_size": 128,
        "iterations": 300 * images // 128,
        "lr_halve_every": 25 * images // 128,
        "warmup": 0,
        "betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "grad_clip": 0.0,
    }


@dataclass(frozen=True)
class Recipe:
    """A run of the paper: its purpose, its requirements, and its settings at each preset."""

    description: str
    presets: dict[str, dict[str, Any]]
    """Changes to TrainConfig's defaults at debug, cpu and paper."""
    needs_init: bool = False
    """Requires trained weights to start from."""
    decoder_only: bool = False
    """Trains a tokenizer's decoder alone, so that token ids stay as they are."""


RECIPES: dict[str, dict[str, Recipe]] = {
    "tokenizer": {
        "base": Recipe(
            "on all platformers, from scratch",
            {"debug": _DEBUG, "cpu": _CPU_TOKENIZER, "paper": {}},
        ),
        "finetune": Recipe(
            "its decoder alone, on an explored game",
            # Both numbers are the paper's: 1,000 steps, and one warm-up of 5,000 for all runs. So
            # it ends inside the warm-up, at 0.6 of lr, having begun where the base's rate ended.
            {"debug": _DEBUG, "cpu": _CPU_DECODER, "paper": {"iterations": 1_000}},
            needs_init=True,
            decoder_only=True,
        ),
    },
    "lam": {
        "base": Recipe(
            "on all platformers, from scratch",
            {"debug": _DEBUG, "cpu": _CPU_LAM, "paper": {}},
        ),
    },
    "dynamics": {
        "g200": Recipe(
            "pretraining on Platformers-200 (GenieRedux-G-200)",
            {
                "debug": _DEBUG,
                "cpu": _CPU_DYNAMICS,
                "paper": {"iterations": 185_000, "batch_size": 80, "clip_stride": 8},
            },
        ),
        "g50": Recipe(
            "on Platformers-50, from G-200 (GenieRedux-G-50)",
            {
                "debug": _DEBUG,
                "cpu": _CPU_DYNAMICS,
                "paper": {"iterations": 80_000, "batch_size": 160, "clip_stride": 8},
            },
            needs_init=True,
        ),
        "finetune": Recipe(
            "on an explored game, from G-50 (GenieRedux-G-50-ft)",
            {
                "debug": _DEBUG,
                "cpu": {**_CPU_DYNAMICS, **_CPU_FINETUNE, "lr": 5e-4, "min_lr_factor": 0.2},
                "paper": {"iterations": 10_000, "batch_size": 160, "clip_stride": 8},
            },
            needs_init=True,
        ),
        "scratch": Recipe(
            "on an explored game, from scratch: the baseline of pretraining",
            {
                "debug": _DEBUG,
                "cpu": _CPU_DYNAMICS,
                "paper": {"iterations": 15_000, "batch_size": 160, "clip_stride": 8},
            },
        ),
    },
    "upscaler": {
        name: Recipe(
            description,
            {
                "debug": _DEBUG_UPSCALER,
                "cpu": _CPU_UPSCALER,
                "paper": _paper_upscaler(shape, images),
            },
        )
        for name, description, shape, images in (
            ("small-16k", "31 M parameters on 12,000 images (appendix B, 1)", "small", 12_000),
            ("small-50k", "31 M parameters on 45,000 images (appendix B, 2)", "small", 45_000),
            ("large-50k", "124 M parameters on 45,000 images (appendix B, 3)", "large", 45_000),
        )
    },
}
"""Runs of the paper by component and name. The first of a component is its default."""

COMPONENT_NAMES = tuple(RECIPES)
PRESETS = ("debug", "cpu", "paper")


def find_recipe(component: str, name: str | None = None) -> Recipe:
    """Return a component's recipe by name, the default for None. Raise InputError if unknown."""
    if component not in RECIPES:
        raise InputError(
            f"unknown component {component!r}: choose one of {', '.join(COMPONENT_NAMES)}"
        )
    known = RECIPES[component]
    if name is not None and name not in known:
        raise InputError(
            f"no recipe of {component} is called {name!r}: choose one of {', '.join(known)}"
        )
    return known[name or next(iter(known))]


def train_preset(
    component: str,
    preset: str = "paper",
    name: str | None = None,
    **changes: Any,
) -> TrainConfig:
    """Return the settings of a recipe at a preset (debug, cpu, paper), with changes to them."""
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    found = find_recipe(component, name)
    unknown = set(changes) - {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown:
        raise InputError(f"no training setting is called {sorted(unknown)[0]!r}")
    return TrainConfig(**{**found.presets[preset], **changes})
