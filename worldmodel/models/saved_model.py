"""Saved world models.

<model>/
    tokenizer.safetensors  dynamics.safetensors  (lam.safetensors  action_map.json)
    manifest.json       class and configuration of the model, sha256 of the other files
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from envs.utils.artifact_dir import copy_weights, new_artifact, read_artifact, read_tensors
from envs.utils.atomic_io import read_json, write_json_atomic
from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig
from worldmodel.devices import resolve_device, resolve_precision
from worldmodel.models.action_map import ActionMap
from worldmodel.models.compilation import optimize_loaded

FORMAT = "autoexplore-model-2"
ACTION_MAP = "action_map.json"
ADVICE = "export it again from its checkpoints"


def save_model(model: Any, path: Path) -> None:
    """Write a `WorldModel` to a folder, completely or not at all; an existing one is replaced."""
    kind, config = type(model).__name__, model.cfg.to_dict()
    with new_artifact(path, format=FORMAT, model=kind, config=config) as folder:
        for name in model.PARTS:
            state = getattr(model, name).state_dict()
            tensors = {key: value.cpu().contiguous() for key, value in state.items()}
            save_file(tensors, folder / f"{name}.safetensors")
        action_map = getattr(model, "action_map", None)
        if action_map is not None:
            write_json_atomic(folder / ACTION_MAP, action_map.to_dict())


def read_model_config(path: Path) -> WorldModelConfig:
    """Return the configuration of a saved model. Raises InputError for another folder."""
    manifest = read_artifact(path, "saved model", FORMAT, lambda: ADVICE)
    return WorldModelConfig.from_dict(manifest.get("config"))


def read_model(
    classes: Mapping[str, Any],
    path: Path,
    device: str | torch.device,
    precision: str,
    *,
    compile: bool | None = None,
) -> Any:
    """Load a model of one of these classes in eval mode, with the kernels of its device.

    `device` and `precision` may be auto; `compile` is that of `optimize_loaded`. Raises InputError
    if there is no such device, a file is missing, damaged or of another architecture, or the model
    is of another class.
    """
    manifest = read_artifact(path, "saved model", FORMAT, lambda: ADVICE)
    kind = classes.get(manifest.get("model", ""))
    if kind is None:
        expected = " or ".join(classes)
        raise InputError(f"{path} holds a {manifest.get('model')}, not a {expected}")
    cfg = WorldModelConfig.from_dict(manifest.get("config"))
    parts: dict[str, Any] = {name: part(cfg) for name, part in kind.PARTS.items()}
    for name, module in parts.items():
        file = path / f"{name}.safetensors"
        copy_weights(module, read_tensors(file, load_file), file)
    if ACTION_MAP in manifest["sha256"]:
        parts["action_map"] = ActionMap.from_dict(read_json(path / ACTION_MAP))
    model = kind(**parts)
    device = resolve_device(device)
    optimize_loaded(model, device, compile=compile)
    model.precision = resolve_precision(precision, device)
    return model.to(device).eval()
