"""How long, how fast and on how much data each component is trained: one table of presets, which are data, not code.

`paper` holds the values of appendix A.1 (spec: training table), `cpu` what two cores learn most from in minutes,
`debug` what finishes in seconds and learns nothing.
"""

import dataclasses
import math
from dataclasses import dataclass

from envs.errors import InputError

COMPONENTS = ("tokenizer", "lam", "dynamics")


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does, apart from the model. The defaults are the paper's for the tokenizer."""

    iterations: int = 72_000
    """Optimizer steps."""
    batch_size: int = 112
    """Clips in a step, over all workers."""
    clip_length: int = 16
    """Frames in a clip."""
    clip_stride: int = 1
    """Frames between the starts of neighbouring windows of an episode."""
    lr: float = 1e-4
    """Highest learning rate, reached when the warm-up ends."""
    min_lr: float = 5e-5
    """Learning rate of the last step."""
    warmup: int = 5_000
    """Steps of linear warm-up."""
    warmup_factor: float = 0.5
    """Where the warm-up starts, as a share of lr."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of a step; 0 turns clipping off."""
    accumulate: int = 1
    """Parts that a worker's share of a batch is computed in, one after the other, for one optimizer step."""
    recompute: bool = False
    """Compute each part of each block again backward instead of keeping what is inside it: less memory, more time."""
    precision: str = "bf16"
    """bf16 (autocast, weights stay fp32) or fp32."""
    token_cache: bool = True
    """Dynamics: encode every window once and train on the stored tokens, where the run is long enough to see each
    window once on average. Shorter runs, or False: encode in each step."""
    stream_sessions: int = 0
    """Compressed sessions that each worker holds in memory, for data sets larger than the local disk; they pass through
    instead of being staged. 0 stages."""
    stream_bytes: int = 8 << 30
    """Most bytes of those sessions."""
    log_every: int = 50
    """Steps between lines of metrics."""
    validate_every: int = 1_000
    """Steps between validations; 0 for none."""
    validation_clips: int = 1_024
    """Validation clips, spread evenly over the validation split; 0 for all of it."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = 3
    """Checkpoints to keep."""
    seed: int = 0
    """Decides initial weights, order of the data, masks and noise."""
    threads: int = 0
    """Torch threads of each worker; 0 leaves torch's own choice."""
    loader_threads: int = 4
    """Threads of each worker that decode clips ahead of the training; 0 decodes in the training thread."""

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "batch_size",
            "accumulate",
            "clip_stride",
            "log_every",
            "checkpoint_every",
            "keep_last",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.stream_sessions < 0 or self.stream_sessions == 1 or self.stream_bytes < 1:
            raise InputError(f"stream_sessions = {self.stream_sessions}: must be 2 or more, or 0 to stage the data")
        if self.clip_length < 2:
            raise InputError(f"clip_length = {self.clip_length}: a clip needs 2 frames or more to hold an action")
        if self.batch_size % self.accumulate:
            raise InputError(f"a batch of {self.batch_size} cannot be computed in {self.accumulate} equal parts")
        if self.precision not in ("bf16", "fp32"):
            raise InputError(f"precision = {self.precision!r}: choose bf16 or fp32")
        if not 0 < self.min_lr <= self.lr or not math.isfinite(self.lr):
            raise InputError(f"min_lr = {self.min_lr}, lr = {self.lr}: need 0 < min_lr <= lr")

    def learning_rate(self, step: int) -> float:
        """Rate of the step-th update, from 0: linear from warmup_factor * lr, then cosine to min_lr at the last one."""
        if step < self.warmup:
            return self.lr * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup)
        progress = (step - self.warmup) / max(self.iterations - 1 - self.warmup, 1)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


_DEBUG = {
    "iterations": 20,
    "batch_size": 2,
    "clip_length": 6,
    "clip_stride": 2,
    "lr": 1e-3,
    "min_lr": 5e-4,
    "warmup": 4,
    "precision": "fp32",
    "log_every": 5,
    "validate_every": 10,
    "validation_clips": 4,
    "checkpoint_every": 10,
    "threads": 1,
    "loader_threads": 1,
}

_CPU = {
    "batch_size": 2,
    "lr": 2e-3,
    "min_lr": 1e-4,
    "warmup": 50,
    "log_every": 20,
    "validate_every": 500,
    "validation_clips": 48,
    "checkpoint_every": 500,
    "keep_last": 2,
    "loader_threads": 1,
}

_PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "debug": {"tokenizer": _DEBUG, "lam": _DEBUG, "dynamics": _DEBUG},
    "cpu": {
        "tokenizer": {**_CPU, "iterations": 2_600, "clip_length": 4, "clip_stride": 1},
        "lam": {**_CPU, "iterations": 2_600, "clip_length": 4, "clip_stride": 1},
        "dynamics": {**_CPU, "iterations": 2_000, "clip_length": 4, "clip_stride": 4, "lr": 1.5e-3},
    },
    "paper": {
        "tokenizer": {},
        "lam": {},
        "dynamics": {"iterations": 185_000, "batch_size": 80, "clip_stride": 8},
    },
}


def recipe(component: str, preset: str = "paper", **changes: object) -> TrainConfig:
    """The TrainConfig of a preset (debug, cpu, paper) for one of COMPONENTS, with single fields changed."""
    if preset not in _PRESETS:
        raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(_PRESETS)}")
    if component not in COMPONENTS:
        raise InputError(f"unknown component {component!r}: choose one of {', '.join(COMPONENTS)}")
    unknown = set(changes) - {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown:
        raise InputError(f"no training setting is called {sorted(unknown)[0]!r}")
    return TrainConfig(**{**_PRESETS[preset][component], **changes})  # type: ignore[arg-type]
