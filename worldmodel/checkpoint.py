"""Training checkpoints of the world model's components.

    <run>/checkpoints/step-00001234/
        model.safetensors       weights and buffers of the component
        optimizer.safetensors   AdamW's moments, named after the parameters
        ema.safetensors         moving average of the trained weights, if the recipe uses one
        state.json              step, component, configuration, recipe, position in the data
        manifest.json           sha256 of the files above

The newest complete folder counts. A damaged one raises an error, and is never skipped silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.utils.artifact_dir import (
    MANIFEST,
    checkpoint_path,
    complete_checkpoints,
    delete_artifact,
    new_artifact,
    read_artifact,
    read_tensors,
)
from envs.utils.atomic_io import read_json, write_json_atomic
from envs.utils.errors import InputError

FORMAT = "autoexplore-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """Verified checkpoint folder and its `state.json`."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps taken."""
        return int(self.state["step"])

    @property
    def component(self) -> str:
        """Name of the trained component, such as `tokenizer`."""
        return str(self.state["component"])

    def weights(self) -> dict[str, Tensor]:
        """Read the weights that training resumes from, on the CPU."""
        return read_tensors(self.path / "model.safetensors", load_file)

    def average(self) -> dict[str, Tensor]:
        """Read the EMA of the trained weights; empty if the run has none."""
        file = self.path / "ema.safetensors"
        return read_tensors(file, load_file) if file.exists() else {}

    def exported(self) -> dict[str, Tensor]:
        """Return the weights for use outside training: their EMA if the run has one."""
        return self.weights() | self.average()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Read the state of the optimizer, on the CPU."""
        return read_tensors(self.path / "optimizer.safetensors", load_file)


def write_checkpoint(
    run: Path, state: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]], *, keep_last: int
) -> Path:
    """Write the checkpoint of `state["step"]`, then delete all but the newest `keep_last`.

    `state` is JSON data with at least `step`, `component`, `config` and `optimizer` (its parameter
    groups). The checkpoint of the step in `state["best"]` is kept too. `tensors` holds the CPU
    tensors of each safetensors file: model, optimizer and optionally ema. A complete checkpoint of
    the same step is kept as it is: the state of a step is a function of the run.
    """
    path = checkpoint_path(run, state["step"])
    if not (path / MANIFEST).exists():
        with new_artifact(path, format=FORMAT) as folder:
            for name, content in tensors.items():
                save_file(content, folder / f"{name}.safetensors")
            write_json_atomic(folder / "state.json", {"format": FORMAT, **state})
    best = _best_path(run, state)
    for old in complete_checkpoints(run)[:-keep_last]:
        if old != best:
            delete_artifact(old)
    return path


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, not verified; None if it has none."""
    complete = complete_checkpoints(run)
    return complete[-1] if complete else None


def best_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss; None without validation."""
    newest = newest_checkpoint(run)
    best = None if newest is None else _best_path(run, read_json(newest / "state.json"))
    return best if best is not None and (best / MANIFEST).exists() else None


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Verify a checkpoint folder, or the newest one of a run, and read its state.

    Raises InputError that names a missing or damaged file and the newest intact checkpoint.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        newest = newest_checkpoint(path)
        if newest is None:
            raise InputError(f"{path} holds no complete checkpoint: train it first")
        path = newest
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint folder")
    read_artifact(path, "checkpoint", FORMAT, lambda: _advice(path))
    return Checkpoint(path, read_json(path / "state.json"))


def _best_path(run: Path, state: Mapping[str, Any]) -> Path | None:
    best = state.get("best")
    return checkpoint_path(run, best["step"]) if best else None


def _advice(path: Path) -> str:
    """Name the newest intact checkpoint before a damaged one, and the folders to delete."""
    damaged = [path.name]
    run = path.parent.parent
    for other in reversed(complete_checkpoints(run) if path.parent == run / "checkpoints" else []):
        if other.name >= path.name:
            continue
        try:
            read_artifact(other, "checkpoint", FORMAT)
        except InputError:
            damaged.insert(0, other.name)
        else:
            folders = "this folder" if len(damaged) == 1 else f"the damaged {', '.join(damaged)}"
            return f"to continue from {other.name}, delete {folders}"
    return "there is no earlier intact checkpoint"
