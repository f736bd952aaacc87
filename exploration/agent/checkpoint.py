"""Checkpoints of a run: whole or absent, checked when read, and never a pickle (RLlib's own are).

<run>/checkpoints/step-00000012/
    module.safetensors, config.json   the agent, a folder that `load_policy` plays
    arrays.safetensors                optimizer and replay; pixels compressed with zstd
    state.json                        everything that is not an array, and where the arrays belong
    manifest.json                     sha256 of the others, written last
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from envs.utils.atomic_io import file_sha256, new_folder, write_json_atomic
from envs.utils.errors import InputError
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
    """Write `<run>/checkpoints/step-<step>` atomically, then delete all but the newest `keep_last`.

    `state`: any nesting of dicts, lists, arrays and plain values; `about`: plain values for people
    and for resuming.
    """
    path = run / "checkpoints" / f"step-{step:08d}"
    arrays: Arrays = {}
    plain = split_arrays(state, arrays)
    packed, shapes = _compress(arrays)
    with new_folder(path) as folder:
        write_policy(folder, network.config, network.state_dict(), about)
        save_file(packed, folder / "arrays.safetensors")
        record = {
            "format": FORMAT,
            "step": step,
            "about": about,
            "state": plain,
            "compressed": shapes,
        }
        (folder / "state.json").write_text(json.dumps(record))
        hashes = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        write_json_atomic(folder / "manifest.json", {"format": FORMAT, "sha256": hashes})
    for old in complete_checkpoints(run)[:-keep_last]:
        (
            old / "manifest.json"
        ).unlink()  # first, so that a crash half-way leaves no folder that looks complete
        shutil.rmtree(old)
    return path


def complete_checkpoints(run: Path) -> list[Path]:
    """List the folders of a run's complete checkpoints, oldest first."""
    return sorted(file.parent for file in (run / "checkpoints").glob("step-*/manifest.json"))


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Load (step, state, about) of a checkpoint.

    Raises InputError that names a missing or damaged file.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest["sha256"].items():
            if file_sha256(path / name) != expected:
                raise InputError(
                    f"{path / name} differs from its sha256: damaged; "
                    f"delete {path} to use the one before"
                )
        record = json.loads((path / "state.json").read_text())
        arrays = _decompress(load_file(path / "arrays.safetensors"), record["compressed"])
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename} is missing: delete {path} to go on from the checkpoint before"
        ) from error
    except (
        json.JSONDecodeError,
        KeyError,
        TypeError,
        SafetensorError,
        zstandard.ZstdError,
    ) as error:
        raise InputError(
            f"{path}: damaged checkpoint ({error}): delete it to go on from the one before"
        ) from error
    if record.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of this version (format {record.get('format')!r})"
        )
    return int(record["step"]), join_arrays(record["state"], arrays), record["about"]
