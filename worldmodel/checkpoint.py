"""Training checkpoints: complete or absent, verified when read, and never a pickle.

    <run>/checkpoints/step-00001234/
        model.safetensors       weights and buffers of the component that is trained
        optimizer.safetensors   AdamW's moments, named after the parameters
        ema.safetensors         moving average of the trained weights, where the recipe asks for one
        state.json              step, component, configuration, recipe, position in the data
        manifest.json           sha256 of the files above, written last

The folder is written under a temporary name, fsynced and renamed, so that a crash leaves the
previous one. The newest complete folder is the one that counts; a damaged one is named and never
passed over in silence.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.utils.atomic_io import file_sha256, new_folder, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console

if (
    TYPE_CHECKING
):  # the functions below import them themselves: saving a whole model needs this module in turn
    pass


FORMAT = "autoexplore-checkpoint-1"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_AVERAGE = "ema.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder whose hashes were checked, and its `state.json`."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def component(self) -> str:
        return str(self.state["component"])

    def weights(self) -> dict[str, Tensor]:
        """Read the tensors of `model.safetensors`, on the CPU, from which training resumes."""
        return _read_tensors(self.path / "model.safetensors")

    def average(self) -> dict[str, Tensor]:
        """Read the EMA of the trained weights; empty where the run has none."""
        file = self.path / _AVERAGE
        return _read_tensors(file) if file.exists() else {}

    def exported(self) -> dict[str, Tensor]:
        """Return the weights for use outside training: the EMA where there is one."""
        return self.weights() | self.average()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Read the tensors of `optimizer.safetensors`, on the CPU."""
        return _read_tensors(self.path / "optimizer.safetensors")


def save_checkpoint(
    run: Path, state: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]], *, keep_last: int
) -> Path:
    """Write `<run>/checkpoints/step-<state["step"]>` atomically, then delete all but the newest
    `keep_last`.

    `state` is plain JSON data with at least `step`, `component`, `config` and `optimizer`, its
    parameter groups; the checkpoint of the step in its `best` is kept too. `tensors`, on the CPU,
    are those of each safetensors file: model, optimizer and, where there is a moving average, ema.
    A complete checkpoint of the same step is left as it is: a step's state is a function of the
    run, so it holds the same.
    """
    path = run / "checkpoints" / _name(state["step"])
    files = {f"{name}.safetensors": content for name, content in tensors.items()}
    if not (path / "manifest.json").exists():
        with new_folder(path) as folder:
            for name, content in files.items():
                save_file(content, folder / name)
            write_json_atomic(folder / "state.json", {"format": FORMAT, **state})
            hashes = {name: file_sha256(folder / name) for name in (*files, "state.json")}
            write_json_atomic(folder / "manifest.json", {"format": FORMAT, "sha256": hashes})
    best = (state.get("best") or {}).get("step")
    for old in _complete(run)[:-keep_last]:
        if old.name != _name(best):
            # Renamed first, so that a crash half-way leaves no folder that looks like a checkpoint.
            shutil.rmtree(old.replace(old.with_name(f".{old.name}.old.tmp")))
    return path


def newest_checkpoint(run: Path) -> Path | None:
    """Find the newest complete checkpoint of a run's folder without checking it; None if absent."""
    complete = _complete(run)
    return complete[-1] if complete else None


def best_checkpoint(run: Path) -> Path | None:
    """Find the checkpoint with the lowest validation loss; None without validation."""
    newest = newest_checkpoint(run)
    best = None if newest is None else _read_json(newest / "state.json").get("best")
    path = run / "checkpoints" / _name(best["step"]) if best else None
    return path if path is not None and (path / "manifest.json").exists() else None


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Check a checkpoint folder, or the newest one of a run's folder, and read its state.

    Raise InputError that names the file where one is missing, cut short or changed, and the
    checkpoint before it.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        newest = newest_checkpoint(path)
        if newest is None:
            raise InputError(f"{path} holds no complete checkpoint: train it first")
        path = newest
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint folder")
    manifest = _read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a training checkpoint of this version (format {manifest.get('format')!r})"
        )
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict):
        raise InputError(
            f"{path / 'manifest.json'} holds no hashes: the checkpoint is damaged; {_advice(path)}"
        )
    for name in sorted({*_FILES, *hashes}):
        file = path / name
        if not file.is_file() or file_sha256(file) != hashes.get(name):
            what = "differs from its sha256 in manifest.json" if file.is_file() else "is missing"
            raise InputError(f"{file} {what}: the checkpoint is damaged; {_advice(path)}")
    return Checkpoint(path, _read_json(path / "state.json"))


def remove_partial_checkpoints(run: Path) -> None:
    """Delete temporary folders left by a crash, and report checkpoints without a manifest."""
    for folder in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(folder)
    for folder in (run / "checkpoints").glob("step-*"):
        if not (folder / "manifest.json").exists():
            console.print(
                f"{folder} is incomplete (it has no manifest.json) and is left out", soft_wrap=True
            )


def _name(step: int | None) -> str:
    return "" if step is None else f"step-{step:08d}"


def _complete(run: Path) -> list[Path]:
    return sorted(file.parent for file in (run / "checkpoints").glob("step-*/manifest.json"))


def _advice(path: Path) -> str:
    """Suggest how to recover from a damaged checkpoint: from the newest intact one before it."""
    older = [other for other in _complete(path.parent.parent) if other.name < path.name]
    if path.parent.name == "checkpoints":
        for number, other in enumerate(reversed(older)):
            try:
                open_checkpoint(other)
            except InputError:
                continue
            damaged = [
                f"{path.name}",
                *(folder.name for folder in reversed(older[len(older) - number :])),
            ]
            these = "this folder" if number == 0 else f"the damaged {', '.join(sorted(damaged))}"
            return f"to go on from the one before it, {other.name}, delete {these}"
    return "there is no earlier one beside it"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: the checkpoint is incomplete; {_advice(path.parent)}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); {_advice(path.parent)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; {_advice(path.parent)}")
    return value
