"""The folder of a saved world model: a safetensors file for each part, and a manifest with their
hashes.

<model>/
    tokenizer.safetensors  dynamics.safetensors  (lam.safetensors  action_map.json)
    manifest.json       kind of model, configuration, sha256 of all the others, written last
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from envs.utils.atomic_io import file_sha256, new_folder, read_json, write_json_atomic
from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig
from worldmodel.models.action_map import ActionMap
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.weights import load_weights

FORMAT = "autoexplore-model-2"
ACTION_MAP = "action_map.json"


def save_model(model: Any, path: Path) -> None:
    """Write a `WorldModel` to a folder: `<part>.safetensors` of each part, an action map where
    there is one and, last, the manifest.

    Whole or absent: it is written under a temporary name and renamed. An existing folder is
    replaced.
    """
    with new_folder(path) as folder:
        for name in model.PARTS:
            state = getattr(model, name).state_dict()
            tensors = {key: value.cpu().contiguous() for key, value in state.items()}
            save_file(tensors, folder / f"{name}.safetensors")
        action_map = getattr(model, "action_map", None)
        if action_map is not None:
            write_json_atomic(folder / ACTION_MAP, action_map.to_dict())
        manifest = {
            "format": FORMAT,
            "model": type(model).__name__,
            "config": model.cfg.to_dict(),
            "sha256": {file.name: file_sha256(file) for file in sorted(folder.iterdir())},
        }
        write_json_atomic(folder / "manifest.json", manifest)


def read_model(kind: Any, path: Path, device: torch.device) -> Any:
    """Load the model of class `kind` that `save_model` wrote, in evaluation mode; on a CPU with the
    CPU kernels. Nothing is unpickled.

    Raises InputError where a file is missing, changed or of another architecture, and for another
    kind of model; a model is never partly loaded.
    """
    manifest = read_manifest(path)
    if manifest["model"] != kind.__name__:
        raise InputError(
            f"{path} holds a {manifest['model']}, not a {kind.__name__}: give another folder"
        )
    cfg = WorldModelConfig.from_dict(manifest["config"])
    parts: dict[str, Any] = {name: part(cfg) for name, part in kind.PARTS.items()}
    _read_parts(path, manifest, parts)
    if ACTION_MAP in manifest["sha256"]:
        parts["action_map"] = ActionMap.from_dict(read_json(path / ACTION_MAP))
    model = kind(**parts)
    if device.type == "cpu":
        use_cpu_kernels(model)
    return model.to(device).eval()


def _read_parts(path: Path, manifest: dict[str, Any], parts: Mapping[str, nn.Module]) -> None:
    """Copy weights into the parts. Raises InputError where a file is missing, changed or of another
    architecture.
    """
    for name in sorted(manifest["sha256"].keys() | {f"{part}.safetensors" for part in parts}):
        file = path / name
        if not file.is_file() or file_sha256(file) != manifest["sha256"].get(name):
            problem = "differs from its sha256 in manifest.json" if file.is_file() else "is missing"
            raise InputError(
                f"{file} {problem}: the model is damaged; save it again from its checkpoints"
            )
    for name, module in parts.items():
        file = path / f"{name}.safetensors"
        try:
            weights = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file}: not a safetensors file ({error})") from error
        load_weights(module, weights, file)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read `manifest.json` of a saved model. Raises InputError where it is missing, no JSON or of
    another format.
    """
    file = path / "manifest.json"
    try:
        manifest = read_json(file)
    except OSError as error:
        raise InputError(f"{path} holds no saved model ({file.name}: {error.strerror})") from error
    expected = {"format", "model", "config", "sha256"}
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not expected <= manifest.keys()
    ):
        raise InputError(f"{file}: not a saved model of this version: expected format {FORMAT!r}")
    return manifest
