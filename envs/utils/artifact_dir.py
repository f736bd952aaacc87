"""Folders of weights and JSON files: complete or absent, verified when read, and never a pickle.

`manifest.json`, which is written last, holds the format and the sha256 of every other file. The
folder is written under a temporary name and renamed, so that a crash leaves the previous one.

    <run>/checkpoints/step-00001234/    a checkpoint of a run is such a folder

Weights are safetensors. This module loads no torch: callers pass the `load_file` they need.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from envs.utils.atomic_io import (
    file_sha256,
    move_aside,
    new_folder,
    read_json,
    write_json_atomic,
)
from envs.utils.errors import InputError
from envs.utils.progress import console

MANIFEST = "manifest.json"
Tensors = TypeVar("Tensors")


@contextmanager
def new_artifact(path: Path, **manifest: Any) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` with these manifest entries and file hashes.

    An existing `path` is replaced. If the block raises, nothing changes.
    """
    with new_folder(path) as folder:
        yield folder
        hashes = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        write_json_atomic(folder / MANIFEST, {**manifest, "sha256": hashes})


def read_artifact(
    path: Path, kind: str, format_name: str, advice: Callable[[], str] = str
) -> dict[str, Any]:
    """Verify all files of a folder that `new_artifact` wrote and return its manifest.

    Raises InputError that names the missing, damaged or foreign file. `kind` names what the folder
    holds and `advice` says what to do; it is only called for an error.
    """
    try:
        manifest = read_json(path / MANIFEST)
    except OSError:
        raise InputError(f"{path} holds no {kind}: {MANIFEST} is missing; {advice()}") from None
    except InputError as error:
        raise InputError(f"{error}: the {kind} is damaged; {advice()}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != format_name:
        raise InputError(f"{path}: not a {kind} of this version: expected format {format_name!r}")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict):
        raise InputError(f"{path / MANIFEST} holds no hashes: the {kind} is damaged; {advice()}")
    for name, expected in hashes.items():
        file = path / name
        if not file.is_file() or file_sha256(file) != expected:
            problem = f"differs from its sha256 in {MANIFEST}" if file.is_file() else "is missing"
            raise InputError(f"{file} {problem}: the {kind} is damaged; {advice()}")
    return manifest


def delete_artifact(path: Path) -> None:
    """Delete a folder. It is renamed first: a crash leaves nothing that looks complete."""
    shutil.rmtree(move_aside(path))


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """List the folders of a run's complete checkpoints, oldest first, without verifying them."""
    return sorted(file.parent for file in (run / "checkpoints").glob(f"step-*/{MANIFEST}"))


def remove_partial_checkpoints(run: Path) -> None:
    """Delete temporary folders left by a crash, and report checkpoints without a manifest."""
    for folder in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(folder)
    for folder in (run / "checkpoints").glob("step-*"):
        if not (folder / MANIFEST).exists():
            console.print(f"{folder} is ignored: it has no {MANIFEST}", soft_wrap=True)


def read_tensors(file: Path, load_file: Callable[[Path], Tensors]) -> Tensors:
    """Read a safetensors file with the `load_file` of safetensors.torch or safetensors.numpy."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a safetensors file, or a damaged one ({error})") from error


def copy_weights(module: Any, weights: Mapping[str, Any], source: Path | str) -> None:
    """Copy weights into a torch module, all of them or none.

    Raises InputError if a name, shape or type differs: the weights are of another architecture.
    """
    own = {name: _describe(tensor) for name, tensor in module.state_dict().items()}
    given = {name: _describe(tensor) for name, tensor in weights.items()}
    for name in sorted(own.keys() | given.keys()):
        expected, got = own.get(name, "absent"), given.get(name, "absent")
        if expected != got:
            raise InputError(
                f"{source}: weights of another architecture: expected {name} to be {expected}, "
                f"it is {got}"
            )
    module.load_state_dict(weights)


def _describe(tensor: Any) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
