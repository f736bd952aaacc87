"""Specification of a training run, checked before its workers start."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig
from worldmodel.training.config import COMPONENT_NAMES, TrainConfig

_RUNTIME_FIELDS = (
    "log_every",
    "validate_every",
    "validation_clips",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "num_threads",
    "loader_threads",
    "compile",
    "parallelism",
)
_PATH_FIELDS = ("data", "pairs", "tokenizer", "lam", "init")
"""Paths: their content is compared by hash, or is in the checkpoint."""
_MAY_CHANGE = {*_PATH_FIELDS, *(f"recipe.{name}" for name in _RUNTIME_FIELDS)}


@dataclass(frozen=True)
class TrainingRun:
    """Everything that the workers of a run need to know. Paths are absolute, since workers have
    other working directories.
    """

    component: str
    config: WorldModelConfig
    recipe: TrainConfig
    data: tuple[str, ...]
    out: Path
    cache_dir: Path
    init: Path | None = None
    """Weights to start from."""
    tokenizer: Path | None = None
    """The frozen tokenizer of a dynamics run."""
    lam: Path | None = None
    """Latent action model whose actions a dynamics run uses instead of the recorded ones."""
    joint_lam: bool = False
    """Train the latent action model with the dynamics: that in `lam`, or a new one."""
    decoder_only: bool = False
    pairs: str | None = None
    """The episodes of `data` again, larger, for an upscaler."""

    @property
    def trains_lam(self) -> bool:
        """True if a latent action model is trained, alone or with the dynamics."""
        return self.component == "lam" or self.joint_lam

    def identity(self) -> dict[str, Any]:
        """Return the run's settings as JSON data, for config.json and every checkpoint."""
        identity = {
            "component": self.component,
            "config": self.config.to_dict(),
            "recipe": dataclasses.asdict(self.recipe),
            "data": self.data,
            "init": self.init,
            "tokenizer": self.tokenizer,
            "lam": self.lam,
            "joint_lam": self.joint_lam,
            "decoder_only": self.decoder_only,
            "pairs": self.pairs,
        }
        return dict(json.loads(json.dumps(identity, default=str)))

    def check_inputs(self, real_actions: int) -> None:
        """Raise InputError where settings and inputs do not fit together or to the component.

        `real_actions`: how many actions the recorded episodes may hold.
        """
        if self.component not in COMPONENT_NAMES:
            raise InputError(
                f"unknown component {self.component!r}: choose one of {', '.join(COMPONENT_NAMES)}"
            )
        if not self.data:
            raise InputError("no data given: name one or more folders of episodes")

        # The dynamics is trained on the output of a frozen tokenizer, and of a LAM if given.
        if self.component == "dynamics":
            if self.tokenizer is None:
                raise InputError(
                    "training dynamics needs --tokenizer: the run or checkpoint of a "
                    "trained tokenizer"
                )
        else:
            if self.tokenizer is not None:
                raise InputError(
                    f"--tokenizer is not for {self.component}; to continue from its weights "
                    "give --init"
                )
            if self.lam is not None or self.joint_lam:
                raise InputError(
                    f"--lam and --joint-lam are not for {self.component}: they are for "
                    "dynamics on latent actions"
                )

        # Labels teach a latent action model recorded actions, one code each.
        if self.recipe.label_fraction:
            if not self.trains_lam:
                raise InputError(
                    f"--label-fraction is for a latent action model: train {self.component} "
                    "without, or with --joint-lam"
                )
            if real_actions > self.config.lam.codes:
                raise InputError(
                    f"--label-fraction: {real_actions} actions, {self.config.lam.codes} "
                    "codes: lam.codes must be as many"
                )

        if self.decoder_only and (self.component != "tokenizer" or self.init is None):
            raise InputError(
                "--recipe finetune trains the decoder of a trained tokenizer: give it with --init"
            )

        # An upscaler is trained on pairs of frames, which are always copied to the local disk.
        if self.component == "upscaler":
            if self.pairs is None or self.recipe.streaming_buffer:
                raise InputError(
                    "training upscaler needs --high-res-data, made of its data by `autoexplore "
                    "data rerender`, and cannot stream"
                )
        elif self.pairs is not None:
            raise InputError(f"training {self.component} takes no --high-res-data")

    def check_resumable(self) -> None:
        """Raise InputError if the run in `out` is not this one, naming the first difference.

        Intervals of logging, validation and checkpoints, parallelism and paths may change: they do
        not change the result but for the order of additions.
        """
        path = self.out / "config.json"
        try:
            recorded = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}): this is no run to resume"
            ) from error
        for name, (there, here) in _differences(recorded, self.identity()):
            if name not in _MAY_CHANGE:
                raise InputError(
                    f"cannot resume {self.out}: its {name} is {there}, not {here}: give "
                    "that or a new --out"
                )


def _differences(a: Any, b: Any, name: str = "") -> list[tuple[str, tuple[Any, Any]]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [
            difference
            for key in keys
            for difference in _differences(
                a.get(key), b.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if a == b else [(name, (a, b))]
