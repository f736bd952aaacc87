"""Training hyper-parameters of every component: the runs of App. A.1 and B at each preset.

A component has a recipe for each of the paper's runs. A recipe has three presets: `paper` holds the
published values, `cpu` those that learn most in minutes on two cores, and `debug` those that finish
in seconds and learn nothing.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

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
    """Frames between the starts of neighbouring clips of an episode."""
    lr: float = 1e-4
    """Highest learning rate, reached at the end of the warm-up."""
    min_lr_factor: float = 0.5
    """Learning rate of the last step as a share of lr, in (0, 1]."""
    warmup: int = 5_000
    """Steps of linear warm-up."""
    warmup_factor: float = 0.5
    """Learning rate at the start of the warm-up, as a share of lr."""
    lr_halve_every: int = 0
    """Halve the learning rate every this many steps; 0 for the cosine schedule."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    grad_clip: float = 1.0
    """Largest gradient norm of a step; 0 turns clipping off."""
    grad_accum_steps: int = 1
    """Number of microbatches per batch and worker; more need less memory."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more
    time."""
    precision: str = "bf16"
    """bf16 (autocast, weights stay fp32), fp32, or auto: bf16 if the hardware supports it."""
    compile: bool = False
    """Compile with torch.compile: slower start, faster steps. NVIDIA GPUs with Triton and a C
    compiler do so by default; CPUs compile all but the matrix products."""
    eager: bool = False
    """Never compile."""
    parallelism: str = "ddp"
    """Distribution of the model over workers: ddp (each holds a copy) or fsdp (each holds a shard
    of weights, gradients and optimizer moments)."""
    ema: float = 0.0
    """Decay of the EMA of the weights; 0 for none. The EMA is validated and exported."""
    label_fraction: float = 0.0
    """Latent action model: share of each game's episodes whose recorded actions it is trained on,
    in [0, 1] and rounded up, so that code a stands for action a. A hash of the session ids selects
    them. Half of the clips are drawn from them, so a streaming_buffer should hold them all."""
    data_shares: tuple[float, ...] = ()
    """Share of the clips to draw from each folder of `data`, e.g. 0.5 0.5: old data beside new
    keeps a fine-tuned model from forgetting. Empty: as many as each holds."""
    prioritised: float = 0.0
    """Share of the clips to draw by how uncertain `priority_model` is about them, in [0, 1]: those
    two standard deviations above the mean come seven times as often."""
    upscaler: str = ""
    """Upscaler: name of its shape in `worldmodel.models.upscaler.SHAPES`."""
    token_cache: bool = True
    """Dynamics: encode every clip once and train on stored tokens (and on stored actions of a
    frozen latent action model). Runs too short to read each clip once on average encode in each
    step instead."""
    streaming_buffer: int = 0
    """Stream the data and hold at most this many compressed sessions in each worker's memory, for
    data larger than the local disk. It determines the order of the clips, for any number of
    workers. 0 copies the data to the local disk instead."""
    streaming_buffer_bytes: int = 8 << 30
    """Maximum bytes of those sessions."""
    log_every: int = 50
    """Steps between log lines."""
    validate_every: int = 1_000
    """Steps between validations; 0 for none."""
    validation_clips: int = 1_024
    """Number of clips, evenly spaced in the validation split; 0 for all of it, which in the paper's
    data is twice what is trained on between two validations."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = 3
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Save a checkpoint at each new lowest validation loss, and keep the best one too."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, masks and noise."""
    num_threads: int = 0
    """Torch threads of each worker; 0 for torch's default."""
    deterministic: bool = False
    """Use deterministic kernels alone, not compiled ones unless asked, so that a resumed run
    continues bit for bit on GPUs too. On CPUs it always does."""
    loader_threads: int = 4
    """Threads of each worker that prefetch clips; 0 decodes them in the training thread."""

    def __post_init__(self) -> None:
        at_least_one = ("iterations", "batch_size", "grad_accum_steps", "clip_stride", "log_every")
        for name in (*at_least_one, "checkpoint_every", "keep_last", "streaming_buffer_bytes"):
            self._require(name, getattr(self, name) >= 1, "must be 1 or more")
        self._require(
            "streaming_buffer",
            self.streaming_buffer == 0 or self.streaming_buffer >= 2,
            "must be 2 or more sessions, or 0 to copy the data to the disk",
        )
        self._require(
            "clip_length",
            self.clip_length >= (1 if self.upscaler else 2),
            "a clip needs 2 frames or more to hold an action",
        )
        self._require("lr_halve_every", self.lr_halve_every >= 0, "must be 1 or more, or 0: never")
        self._require(
            "precision", self.precision in ("bf16", "fp32", "auto"), "choose bf16 or fp32 or auto"
        )
        self._require("compile", not (self.compile and self.eager), "choose --compile or --eager")
        self._require("parallelism", self.parallelism in ("ddp", "fsdp"), "choose ddp or fsdp")
        self._require(
            "ema", 0 <= self.ema < 1, "a decay is at least 0 (no EMA) and below 1, e.g. 0.999"
        )
        self._require(
            "label_fraction",
            0 <= self.label_fraction <= 1,
            "the share of labelled episodes is in [0, 1], e.g. 0.05",
        )
        self._require("prioritised", 0 <= self.prioritised <= 1, "a share is in [0, 1], e.g. 0.5")
        self._require(
            "data_shares",
            all(0 < share < math.inf for share in self.data_shares),
            "give numbers above 0, e.g. 0.5 0.5",
        )
        if self.draws_by_weight and (self.streaming_buffer or self.label_fraction or self.upscaler):
            raise InputError(
                "data_shares and prioritised need the data on the local disk, and neither labels "
                "nor an upscaler: leave out streaming_buffer and label_fraction"
            )
        self._require("lr", 0 < self.lr < math.inf, "must be above 0")
        self._require("min_lr_factor", 0 < self.min_lr_factor <= 1, "must be above 0 and at most 1")
        if self.batch_size % self.grad_accum_steps:
            raise InputError(
                f"a batch of {self.batch_size} cannot be computed in {self.grad_accum_steps} "
                "equal parts"
            )

    def _require(self, name: str, valid: bool, rule: str) -> None:
        if not valid:
            raise InputError(f"{name} = {getattr(self, name)!r}: {rule}")

    @property
    def draws_by_weight(self) -> bool:
        """True if clips are drawn by weights, not each once per epoch."""
        return bool(self.data_shares) or self.prioritised > 0

    @property
    def compiles(self) -> bool | None:
        """True to compile, False not to, None where it is the default.

        Kernels of another compilation may add in another order: `deterministic` runs have none.
        """
        return self.compile or (False if self.eager or self.deterministic else None)

    def on_this_machine(self) -> Self:
        """Return the settings with precision `auto` replaced by bf16 or fp32."""
        # Not at the top, so that flags are checked without torch.
        from worldmodel.devices import resolve_device, resolve_precision

        return dataclasses.replace(
            self, precision=resolve_precision(self.precision, resolve_device(), training=True)
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, then cosine decay."""
        if step < self.warmup:
            return self.lr * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup)
        if self.lr_halve_every:
            return self.lr * 0.5 ** (step // self.lr_halve_every)
        progress = (step - self.warmup) / max(self.iterations - 1 - self.warmup, 1)
        min_lr = self.min_lr_factor * self.lr
        return min_lr + (self.lr - min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


_DEBUG: dict[str, Any] = {
    "iterations": 20,
    "batch_size": 2,
    "clip_length": 6,
    "clip_stride": 2,
    "lr": 1e-3,
}
_DEBUG |= {"warmup": 4, "precision": "fp32", "num_threads": 1, "loader_threads": 1}
_DEBUG |= {"log_every": 5, "validate_every": 10, "validation_clips": 4, "checkpoint_every": 10}

_CPU: dict[str, Any] = {
    "batch_size": 2,
    "precision": "auto",
    "lr": 2e-3,
    "min_lr_factor": 0.05,
    "warmup": 50,
}
_CPU |= {"log_every": 20, "validate_every": 500, "validation_clips": 48, "checkpoint_every": 500}
_CPU |= {"keep_last": 2, "loader_threads": 1}
_CPU_TOKENIZER = {**_CPU, "iterations": 2_600, "clip_length": 4, "clip_stride": 1}
_CPU_LAM = {**_CPU, "iterations": 2_000, "batch_size": 4, "clip_length": 4, "clip_stride": 1}
# Clips of 5 frames hold the question of the reward, 3 frames after 2 given ones.
_CPU_DYNAMICS = {**_CPU, "iterations": 2_000, "clip_length": 5, "clip_stride": 4}
_CPU_DYNAMICS |= {"lr": 1.5e-3, "min_lr_factor": 1 / 15}
_CPU_FINETUNE: dict[str, Any] = {"iterations": 250, "validate_every": 0}
# AdamW starts without moments, so that its first updates are as large as the learning rate. At the
# base's rate they undo the base: PSNR on Airstriker fell from 41.3 to 33.1 dB in 20 steps.
_CPU_DECODER = {**_CPU_TOKENIZER, **_CPU_FINETUNE}
_CPU_DECODER |= {"lr": 2e-4, "min_lr_factor": 0.1, "warmup_factor": 0.1}

_GPU: dict[str, Any] = {
    "batch_size": 16,
    "precision": "auto",
    "lr": 1e-3,
    "min_lr_factor": 0.05,
    "warmup": 100,
    "iterations": 1_000,
    "clip_length": 8,
    "clip_stride": 2,
}
_GPU |= {"log_every": 50, "validate_every": 500, "validation_clips": 256, "checkpoint_every": 500}
_GPU |= {"keep_last": 2}
_GPU_DYNAMICS = {**_GPU, "iterations": 1_200, "batch_size": 8, "clip_stride": 4}
_GPU_DYNAMICS |= {"lr": 7e-4, "min_lr_factor": 1 / 7}
_GPU_FINETUNE: dict[str, Any] = {"iterations": 300, "lr": 3e-4, "warmup": 20, "validate_every": 0}
_GPU_DECODER = {**_GPU, **_GPU_FINETUNE, "lr": 1e-4, "min_lr_factor": 0.1, "warmup_factor": 0.1}

_UPSCALER: dict[str, Any] = {"clip_length": 1, "clip_stride": 1}
_DEBUG_UPSCALER = {**_DEBUG, **_UPSCALER, "upscaler": "debug"}
_CPU_UPSCALER = {**_CPU, **_UPSCALER, "iterations": 1_200, "batch_size": 8, "upscaler": "cpu"}
_GPU_UPSCALER = {**_GPU, **_UPSCALER, "batch_size": 32, "upscaler": "small"}


@dataclass(frozen=True)
class Recipe:
    """Training run of the paper: purpose, requirements, and settings at each preset."""

    description: str
    presets: dict[str, dict[str, Any]]
    """Preset -> changes to the defaults of `TrainConfig`."""
    needs_init: bool = False
    """True if it starts from trained weights."""
    decoder_only: bool = False
    """True if it trains the decoder of a tokenizer only, so that token ids stay the same."""


def _presets(cpu: dict[str, Any], gpu: dict[str, Any], **paper: Any) -> dict[str, dict[str, Any]]:
    return {"debug": _DEBUG, "cpu": cpu, "gpu": gpu, "paper": paper}


def _upscaler(description: str, shape: str, images: int) -> Recipe:
    """Return a run of App. B: Adam at 1e-4, StepLR(25, 0.5), 300 epochs, batches of 128."""
    steps = {"iterations": 300 * images // 128, "lr_halve_every": 25 * images // 128, "warmup": 0}
    adam = {"batch_size": 128, "betas": (0.9, 0.999), "weight_decay": 0.0, "grad_clip": 0.0}
    paper = {**_UPSCALER, "upscaler": shape, **steps, **adam}
    sizes = {"debug": _DEBUG_UPSCALER, "cpu": _CPU_UPSCALER, "gpu": _GPU_UPSCALER, "paper": paper}
    return Recipe(description, sizes)


RECIPES: dict[str, dict[str, Recipe]] = {
    "tokenizer": {
        "base": Recipe("on all platformers, from scratch", _presets(_CPU_TOKENIZER, _GPU)),
        "finetune": Recipe(
            "decoder only, on an explored game",
            # The paper has 1,000 steps here, and a warm-up of 5,000 in all runs: the learning rate
            # starts where the base's ended, at 0.5 lr, and ends inside the warm-up at 0.6 lr.
            _presets(_CPU_DECODER, _GPU_DECODER, iterations=1_000),
            needs_init=True,
            decoder_only=True,
        ),
    },
    "lam": {"base": Recipe("on all platformers, from scratch", _presets(_CPU_LAM, _GPU))},
    "dynamics": {
        "g200": Recipe(
            "pretraining on Platformers-200 (GenieRedux-G-200)",
            _presets(
                _CPU_DYNAMICS, _GPU_DYNAMICS, iterations=185_000, batch_size=80, clip_stride=8
            ),
        ),
        "g50": Recipe(
            "on Platformers-50, from G-200 (GenieRedux-G-50)",
            _presets(
                _CPU_DYNAMICS, _GPU_DYNAMICS, iterations=80_000, batch_size=160, clip_stride=8
            ),
            needs_init=True,
        ),
        "finetune": Recipe(
            "on an explored game, from G-50 (GenieRedux-G-50-ft)",
            _presets(
                {**_CPU_DYNAMICS, **_CPU_FINETUNE, "lr": 5e-4, "min_lr_factor": 0.2},
                {**_GPU_DYNAMICS, **_GPU_FINETUNE, "min_lr_factor": 0.2},
                iterations=10_000,
                batch_size=160,
                clip_stride=8,
            ),
            needs_init=True,
        ),
        "scratch": Recipe(
            "on an explored game, from scratch: the baseline without pretraining",
            _presets(
                _CPU_DYNAMICS, _GPU_DYNAMICS, iterations=15_000, batch_size=160, clip_stride=8
            ),
        ),
    },
    "upscaler": {
        "small-16k": _upscaler("31 M parameters on 12,000 images (App. B, 1)", "small", 12_000),
        "small-50k": _upscaler("31 M parameters on 45,000 images (App. B, 2)", "small", 45_000),
        "large-50k": _upscaler("124 M parameters on 45,000 images (App. B, 3)", "large", 45_000),
    },
}
"""Component -> name -> recipe. The first recipe of a component is its default."""

COMPONENT_NAMES = tuple(RECIPES)
PRESETS = ("debug", "cpu", "gpu", "paper")


def find_recipe(component: str, name: str | None = None) -> Recipe:
    """Return a component's recipe, the default one without a name."""
    if component not in RECIPES:
        raise InputError(
            f"unknown component {component!r}: choose one of {', '.join(COMPONENT_NAMES)}"
        )
    recipes = RECIPES[component]
    if name is not None and name not in recipes:
        raise InputError(
            f"no recipe of {component} is called {name!r}: choose one of {', '.join(recipes)}"
        )
    return recipes[name or next(iter(recipes))]


def train_preset(
    component: str, preset: str = "paper", name: str | None = None, **changes: Any
) -> TrainConfig:
    """Return the settings of a recipe at a preset: debug, cpu, gpu or paper, with `changes`."""
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    recipe = find_recipe(component, name)
    unknown = set(changes) - {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown:
        raise InputError(f"no training setting is called {sorted(unknown)[0]!r}")
    return TrainConfig(**{**recipe.presets[preset], **changes})
