"""The folder of a saved world model: a safetensors file for each part, and a manifest with their hashes.

<model>/
    tokenizer.safetensors  dynamics.safetensors  (lam.safetensors  action_map.json)
    manifest.json       kind of model, configuration, sha256 of all the others, written last
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from envs.utils.atomic_io import file_sha256, new_folder, read_json, write_json_atomic
from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig
from worldmodel.models.weights import load_weights

FORMAT = "autoexplore-model-2"
ACTION_MAP = "action_map.json"


def save_model(
    path: Path,
    kind: str,
    cfg: WorldModelConfig,
    parts: Mapping[str, nn.Module],
    more: Callable[[Path], None],
) -> None:
    """Write the folder under a temporary name and rename it. `more` adds files of the model's own."""
    with new_folder(path) as folder:
        for name, module in parts.items():
            state = {key: value.cpu().contiguous() for key, value in module.state_dict().items()}
            save_file(state, folder / f"{name}.safetensors")
        more(folder)
        hashes = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        write_json_atomic(
            folder / "manifest.json", {"format": FORMAT, "model": kind, "config": cfg.to_dict(), "sha256": hashes}
        )


def read_model(path: Path, manifest: dict[str, Any], parts: Mapping[str, nn.Module]) -> None:
    """Give each part its weights. Raises InputError where a file is missing, changed or of another architecture."""
    for name in sorted(manifest["sha256"].keys() | {f"{part}.safetensors" for part in parts}):
        file = path / name
        if not file.is_file() or file_sha256(file) != manifest["sha256"].get(name):
            what = "differs from its sha256 in manifest.json" if file.is_file() else "is missing"
            raise InputError(f"{file} {what}: the model is damaged; save it again from its checkpoints")
    for name, module in parts.items():
        file = path / f"{name}.safetensors"
        try:
            weights = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file}: not a safetensors file ({error})") from error
        load_weights(module, weights, file)


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of a saved model. Raises InputError where it is missing, no JSON or of another format."""
    file = path / "manifest.json"
    try:
        manifest = read_json(file)
    except OSError as error:
        raise InputError(f"{path} holds no saved model ({file.name}: {error.strerror})") from error
    expected = {"format", "model", "config", "sha256"}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not expected <= manifest.keys():
        raise InputError(f"{file}: not a saved model of this version: expected format {FORMAT!r}")
    return manifest
