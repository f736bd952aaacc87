"""Checkpoints of an exploration run, without pickles, which RLlib's checkpoints contain.

<run>/checkpoints/step-00000012/
    module.safetensors, config.json   the agent, a folder that `load_policy` plays
    arrays.safetensors                optimizer and replay; pixels compressed with zstd
    state.json                        everything that is not an array, with references to arrays
    manifest.json                     sha256 of the other files
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from envs.utils.artifact_dir import (
    checkpoint_path,
    complete_checkpoints,
    delete_artifact,
    new_artifact,
    read_artifact,
    read_tensors,
)
from envs.utils.atomic_io import read_json
from exploration.agent.policy import CnnLstm, write_policy

FORMAT = "autoexplore-exploration-2"
COMPRESSION_LEVEL = 3
COMPRESS_ABOVE = 1 << 20
"""Bytes of a uint8 array from which it is worth compressing."""

Arrays = dict[str, NDArray[Any]]


def split_arrays(value: Any, arrays: Arrays, path: str = "state") -> Any:
    """Convert a nested state to plain JSON data; its arrays go into `arrays`, by path."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, dict):
        items = [[key, split_arrays(item, arrays, f"{path}/{key}")] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        return {
            "list": [
                split_arrays(item, arrays, f"{path}/{index}") for index, item in enumerate(value)
            ]
        }
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be put into a checkpoint")


def join_arrays(value: Any, arrays: Arrays) -> Any:
    """Restore the nested state that `split_arrays` took apart; tuples come back as lists."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "bytes" in value:
        return bytes.fromhex(value["bytes"])
    if "list" in value:
        return [join_arrays(item, arrays) for item in value["list"]]
    return {key: join_arrays(item, arrays) for key, item in value["items"]}


def _compress(arrays: Arrays) -> tuple[Arrays, dict[str, list[int]]]:
    """Compress large uint8 arrays (frames); return all arrays, and the shapes of the compressed
    ones."""
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
    packed, shapes = {}, {}
    for name, array in arrays.items():
        packed[name] = np.ascontiguousarray(array)
        if array.dtype == np.uint8 and array.nbytes >= COMPRESS_ABOVE:
            packed[name] = np.frombuffer(compressor.compress(packed[name].data), np.uint8)
            shapes[name] = list(array.shape)
    return packed, shapes


def _decompress(packed: Arrays, shapes: dict[str, list[int]]) -> Arrays:
    decompressor = zstandard.ZstdDecompressor()
    whole = dict(packed)
    for name, shape in shapes.items():
        whole[name] = np.frombuffer(
            decompressor.decompress(packed[name].tobytes()), np.uint8
        ).reshape(shape)
    return whole


def save_agent_checkpoint(
    run: Path,
    step: int,
    network: CnnLstm,
    state: dict[str, Any],
    about: dict[str, Any],
    *,
    keep_last: int,
) -> Path:
    """Write the checkpoint of a step, then delete all but the newest `keep_last`.

    `state` is any nesting of dicts, lists, arrays and plain values. `about` holds plain values that
    describe the run and resuming needs.
    """
    path = checkpoint_path(run, step)
    arrays: Arrays = {}
    plain = split_arrays(state, arrays)
    packed, shapes = _compress(arrays)
    record = {"format": FORMAT, "step": step, "about": about, "state": plain, "compressed": shapes}
    with new_artifact(path, format=FORMAT) as folder:
        write_policy(folder, network.config, network.state_dict(), about)
        save_file(packed, folder / "arrays.safetensors")
        (folder / "state.json").write_text(json.dumps(record))
    for old in complete_checkpoints(run)[:-keep_last]:
        delete_artifact(old)
    return path


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Load (step, state, about) of a checkpoint.

    Raises InputError that names a missing or damaged file.
    """
    advice = f"delete {path} to continue from the checkpoint before it"
    read_artifact(path, "checkpoint", FORMAT, lambda: advice)
    record = read_json(path / "state.json")
    packed = read_tensors(path / "arrays.safetensors", load_file)
    state = join_arrays(record["state"], _decompress(packed, record["compressed"]))
    return int(record["step"]), state, record["about"]
