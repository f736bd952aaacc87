"""Specification of a training run, checked before its workers start."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from envs.utils.errors import InputError
from envs.utils.storage import is_remote
from worldmodel.config import WorldModelConfig
from worldmodel.training.config import COMPONENT_NAMES, TrainConfig

_PATHS = ("data", "pairs", "tokenizer", "lam", "init", "priority_model")
"""Settings whose content is compared by hash, or is in the checkpoint."""
_INTERVALS = ("log_every", "validate_every", "validation_clips", "checkpoint_every", "keep_last")
_EXECUTION = ("keep_best", "num_threads", "loader_threads", "compile", "eager", "parallelism")
_MAY_CHANGE = {*_PATHS, *(f"recipe.{name}" for name in (*_INTERVALS, *_EXECUTION))}


@dataclass(frozen=True)
class TrainingRun:
    """Component, settings, data and folders of a training run.

    Trained models are given as a run's folder, a checkpoint or a saved world model.
    """

    component: str
    config: WorldModelConfig
    recipe: TrainConfig
    data: Sequence[str | Path]
    """Folders or URIs of episodes."""
    out: Path
    """Folder of the run."""
    cache_dir: Path | None = None
    """Local copies of episodes and tokens, shared by runs; None for `cache` next to `out`."""
    init: Path | None = None
    """Weights to start from."""
    tokenizer: Path | None = None
    """Dynamics: the trained tokenizer, which stays frozen."""
    lam: Path | None = None
    """Dynamics: latent action model whose actions are used instead of the recorded ones. It stays
    frozen unless `joint_lam`."""
    joint_lam: bool = False
    """Dynamics: train the latent action model too, starting from `lam`, from `init` or from
    scratch."""
    decoder_only: bool = False
    """Tokenizer: train the decoder only, so that token ids stay the same."""
    pairs: str | Path | None = None
    """Upscaler: the episodes of `data` at the larger size."""
    priority_model: Path | None = None
    """Saved world model by whose uncertainty a share `recipe.prioritised` of the clips is drawn."""

    @property
    def cache(self) -> Path:
        """Folder of local copies."""
        return self.cache_dir or Path(self.out).parent / "cache"

    @property
    def trains_lam(self) -> bool:
        """True if a latent action model is trained, alone or with the dynamics."""
        return self.component == "lam" or self.joint_lam

    def resolve(self) -> Self:
        """Return the run as its workers need it.

        Paths are absolute, since workers have other working directories. `precision` is decided,
        and the dynamics takes latent actions if the run has a latent action model.
        """

        def absolute(path: Path | str | None) -> Any:
            return path if path is None or is_remote(path) else Path(path).absolute()

        latent = self.lam is not None or self.joint_lam
        return dataclasses.replace(
            self,
            config=self.config.with_latent_actions() if latent else self.config,
            recipe=self.recipe.on_this_machine(),
            data=tuple(str(absolute(folder)) for folder in self.data),
            out=absolute(self.out),
            cache_dir=absolute(self.cache),
            init=absolute(self.init),
            tokenizer=absolute(self.tokenizer),
            lam=absolute(self.lam),
            priority_model=absolute(self.priority_model),
            pairs=None if self.pairs is None else str(absolute(self.pairs)),
        )

    def identity(self) -> dict[str, Any]:
        """Return the run's settings as JSON data, for config.json and every checkpoint."""
        plain = dataclasses.asdict(self) | {"config": self.config.to_dict()}
        del plain["out"], plain["cache_dir"]
        return dict(json.loads(json.dumps(plain, default=str)))

    def check_inputs(self) -> None:
        """Raise InputError if settings and inputs do not fit together or the component.

        Call it before `resolve`, while `config.actions` is the number of recorded actions.
        """
        name, dynamics = self.component, self.component == "dynamics"
        codes, labels = self.config.lam.codes, bool(self.recipe.label_fraction)
        problems = [
            (
                name not in COMPONENT_NAMES,
                f"unknown component {name!r}: choose one of {', '.join(COMPONENT_NAMES)}",
            ),
            (not self.data, "no data given: name one or more folders of episodes"),
            # The dynamics is trained on the output of a frozen tokenizer, and of a LAM if given.
            (
                dynamics and self.tokenizer is None,
                "training dynamics needs --tokenizer: the run or checkpoint of a trained tokenizer",
            ),
            (
                not dynamics and self.tokenizer is not None,
                f"--tokenizer is not for {name}; to continue from its weights give --init",
            ),
            (
                not dynamics and (self.lam is not None or self.joint_lam),
                f"--lam and --joint-lam are not for {name}: they are for dynamics on latent "
                "actions",
            ),
            # Labels teach a latent action model the recorded actions, one code each.
            (
                labels and not self.trains_lam,
                f"--label-fraction is for a latent action model: train {name} without, or with "
                "--joint-lam",
            ),
            (
                labels and self.config.actions > codes,
                f"--label-fraction: {self.config.actions} actions, {codes} codes: set lam.codes "
                f"to {self.config.actions} or more",
            ),
            (
                self.decoder_only and (name != "tokenizer" or self.init is None),
                "--recipe finetune trains the decoder of a trained tokenizer: give it with --init",
            ),
            # An upscaler is trained on pairs of frames, which are always copied to the local disk.
            (
                name == "upscaler" and (self.pairs is None or self.recipe.streaming_buffer > 0),
                "training upscaler needs --high-res-data (create it from --data with `autoexplore "
                "data rerender`) and cannot stream: leave out --streaming-buffer",
            ),
            (
                name != "upscaler" and self.pairs is not None,
                f"training {name} takes no --high-res-data: leave it out",
            ),
            (
                (self.recipe.prioritised > 0) != (self.priority_model is not None),
                "--prioritised and --priority-model go together: the share of the clips to draw by "
                "uncertainty, and the world model whose uncertainty it is",
            ),
            (
                len(self.recipe.data_shares) not in (0, len(self.data)),
                f"--data-shares: give one for each of the {len(self.data)} folders of --data",
            ),
        ]
        for wrong, message in problems:
            if wrong:
                raise InputError(message)

    def check_resumable(self) -> None:
        """Raise InputError if the run in `out` is not this one, naming the first difference.

        Paths, parallelism and the intervals of logging, validation and checkpoints may change:
        they affect the result by the order of additions at most.
        """
        path = self.out / "config.json"
        try:
            recorded = dict(_flatten(json.loads(path.read_text())))
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}): restore the file, or start again in a new --out"
            ) from error
        settings = dict(_flatten(self.identity()))
        for name in [*recorded, *settings]:
            there, here = recorded.get(name), settings.get(name)
            if there != here and name not in _MAY_CHANGE:
                raise InputError(
                    f"cannot resume {self.out}: its {name} is {there}, not {here}: restore that "
                    "setting, or give a new --out"
                )


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a nested dictionary by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
