"""LeRobotDataset v3.0 (Hugging Face): episodes as rows of Parquet with frames as PNG images.

    <folder>/meta/info.json                            version, features, frame rate, splits
    <folder>/meta/stats.json                           min, max, mean, std, count of every feature
    <folder>/meta/tasks.parquet                        one task per game
    <folder>/meta/episodes/chunk-000/file-000.parquet  one row per episode
    <folder>/meta/autoexplore.json                     episode metadata (not part of the format)
    <folder>/data/chunk-000/file-000.parquet           one row per step, one row group per episode

Row t holds frame t, the action taken on it, and the reward and end that followed. The frame after
the last action has no row. Training episodes come first, so that the splits are ranges.
"""

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.episodes.episode import Episode
from envs.episodes.formats.metadata import episode_metadata
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError

VERSION = "v3.0"
EMULATOR_FPS = 60
FILES_PER_CHUNK = 1000
FILE_MEGABYTES = 100
IMAGE = "observation.image"
SCALARS = {
    "action": "int64",
    "next.reward": "float32",
    "next.done": "bool",
    "next.truncated": "bool",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Every feature but the image, with its type."""
DEFAULTS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features of every data set; they have no names."""
PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

Stats = dict[str, dict[str, NDArray[Any]]]
"""Feature -> statistic -> value."""


def write_lerobot(folder: Path, episodes: Callable[[str], Iterator[Episode]]) -> None:
    """Write the episodes of the splits "train" and "val" into `folder`.

    Raises: InputError for different frame sizes or frame rates, which the format cannot hold.
    """
    data = _DataFiles(folder)
    rows: list[dict[str, Any]] = []
    metadata: list[dict[str, Any]] = []
    tasks: dict[str, int] = {}
    total: Stats = {}
    kind: tuple[Any, ...] = ()
    actions: tuple[str, ...] = ()
    step = 0
    splits = chain.from_iterable(
        ((episode, split == "val") for episode in episodes(split)) for split in ("train", "val")
    )
    for number, (episode, validation) in enumerate(splits):
        actions = actions or episode.action_names
        own_kind = (*episode.frames_THWC.shape[1:], episode.frame_skip)
        kind = kind or own_kind
        if own_kind != kind:
            raise InputError(
                f"episode {episode.session_id} has (height, width, channels, frame skip) "
                f"{own_kind}, others {kind}: LeRobot needs the same for all, so export separate "
                "data sets"
            )
        task = tasks.setdefault(episode.game, len(tasks))
        columns = _columns(episode, number, step, task)
        chunk_index, file_index = data.add(columns)
        stats = _stats(columns, episode.frames_THWC[:-1])
        total = _merge_stats(total, stats) if total else stats
        row = {
            "episode_index": number,
            "tasks": [episode.game],
            "length": len(episode.actions),
            "data/chunk_index": chunk_index,
            "data/file_index": file_index,
            "dataset_from_index": step,
            "dataset_to_index": step + len(episode.actions),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name, values in stats.items():
            row |= {f"stats/{name}/{key}": value.tolist() for key, value in values.items()}
        rows.append(row)
        metadata.append(
            {"episode_index": number, "validation": validation, **episode_metadata(episode)}
        )
        step += len(episode.actions)
    data.close()
    _write_meta(folder, rows, tasks, total)
    meta = folder / "meta"
    write_json_atomic(meta / "autoexplore.json", {"actions": list(actions), "episodes": metadata})
    training = sum(not entry["validation"] for entry in metadata)
    write_json_atomic(meta / "info.json", _info(kind, rows, len(tasks), training))


def features(height: int, width: int) -> dict[str, dict[str, Any]]:
    """Return the format's description of every column."""
    shape, names = [height, width, 3], ["height", "width", "channels"]
    scalars = {
        name: {"dtype": kind, "shape": [1], "names": None if name in DEFAULTS else [name]}
        for name, kind in SCALARS.items()
    }
    return {IMAGE: {"dtype": "image", "shape": shape, "names": names}, **scalars}


def schema() -> pa.Schema:
    """Return the columns of a data file, with metadata by which Hugging Face finds the image."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    types = {name: pa.type_for_alias(kind) for name, kind in SCALARS.items()}
    note: dict[str, Any] = {IMAGE: {"_type": "Image"}}
    note |= {name: {"dtype": kind, "_type": "Value"} for name, kind in SCALARS.items()}
    return pa.schema(
        {IMAGE: image, **types}, metadata={"huggingface": json.dumps({"info": {"features": note}})}
    )


class _DataFiles:
    """The data files; a new one begins when one is full."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "data"
        self._number = -1
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, columns: dict[str, Any]) -> tuple[int, int]:
        """Write an episode as one row group and return the indices of its chunk and file."""
        if self._writer is None or self._bytes > FILE_MEGABYTES * 2**20:
            self.close()
            self._number += 1
            self._bytes = 0
            chunk_index, file_index = divmod(self._number, FILES_PER_CHUNK)
            path = self._root / PATH.format(chunk_index=chunk_index, file_index=file_index)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, schema(), compression="snappy")
        table = pa.Table.from_pydict(columns, schema=schema())
        self._writer.write_table(table, row_group_size=len(table))
        self._bytes += table.nbytes
        return divmod(self._number, FILES_PER_CHUNK)

    def close(self) -> None:
        """Finish the open file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _columns(episode: Episode, number: int, first: int, task: int) -> dict[str, Any]:
    """Return an episode's T rows, column by column."""
    steps = len(episode.actions)
    index = np.arange(steps)
    last = index == steps - 1
    return {
        IMAGE: [
            {"bytes": _png(frame_HWC), "path": f"frame-{step:06d}.png"}
            for step, frame_HWC in enumerate(episode.frames_THWC[:-1])
        ],
        "action": episode.actions.astype(np.int64),
        "next.reward": episode.rewards,
        "next.done": last & (episode.terminated or episode.truncated),
        "next.truncated": last & episode.truncated,
        "timestamp": (index * episode.frame_skip / EMULATOR_FPS).astype(np.float32),
        "frame_index": index,
        "episode_index": np.full(steps, number),
        "index": index + first,
        "task_index": np.full(steps, task),
    }


def _png(frame_HWC: NDArray[np.uint8]) -> bytes:
    _, encoded = cv2.imencode(".png", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR))
    return encoded.tobytes()


def _stats(columns: dict[str, Any], frames_THWC: NDArray[np.uint8]) -> Stats:
    """Return min, max, mean, std, count of each feature; (3, 1, 1) in [0, 1] for the image."""
    pixels = frames_THWC.reshape(-1, 3)
    image = _column_stats(pixels, pixels)
    stats: Stats = {IMAGE: {key: (value / 255).reshape(3, 1, 1) for key, value in image.items()}}
    for name in SCALARS:
        values = np.asarray(columns[name])
        scalar = _column_stats(values, values.astype(np.float64))
        stats[name] = {key: value.reshape(1) for key, value in scalar.items()}
    for values_of in stats.values():
        values_of["count"] = np.array([len(frames_THWC)])
    return stats


def _column_stats(values: NDArray[Any], numbers: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the range of `values` and mean and std of the same `numbers`, over the first axis."""
    extremes = {"min": values.min(axis=0), "max": values.max(axis=0)}
    return {**extremes, "mean": numbers.mean(axis=0), "std": numbers.std(axis=0)}


def _merge_stats(one: Stats, other: Stats) -> Stats:
    """Return the joint statistics of two sets of episodes."""
    merged: Stats = {}
    for name in one:
        parts = {key: np.stack([one[name][key], other[name][key]]) for key in one[name]}
        counts, means = parts["count"].astype(np.float64), parts["mean"]
        weights = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
        mean = (means * weights).sum(axis=0)
        variances = parts["std"] ** 2 + (means - mean) ** 2
        merged[name] = {
            "min": parts["min"].min(axis=0),
            "max": parts["max"].max(axis=0),
            "mean": mean,
            "std": np.sqrt((variances * weights).sum(axis=0)),
            "count": parts["count"].sum(axis=0),
        }
    return merged


def _write_meta(
    folder: Path, rows: list[dict[str, Any]], tasks: dict[str, int], stats: Stats
) -> None:
    """Write the episodes, tasks and statistics in `meta`."""
    import pandas as pd  # the format stores a pandas table with the task as its index

    path = folder / "meta" / "episodes" / PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")
    index = pd.Index(list(tasks), name="task")
    table = pd.DataFrame({"task_index": list(tasks.values())}, index=index)
    table.to_parquet(folder / "meta" / "tasks.parquet")
    lists = {
        name: {key: value.tolist() for key, value in values.items()}
        for name, values in stats.items()
    }
    write_json_atomic(folder / "meta" / "stats.json", lists)


def _info(
    kind: tuple[Any, ...], rows: list[dict[str, Any]], tasks: int, training: int
) -> dict[str, Any]:
    """Return the content of `info.json`; the first `training` episodes are for training."""
    height, width, _, frame_skip = kind
    fps = EMULATOR_FPS / frame_skip
    splits = {"train": f"0:{training}"}
    if training < len(rows):
        splits["val"] = f"{training}:{len(rows)}"
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"],
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": FILE_MEGABYTES,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps.is_integer() else fps,
        "splits": splits,
        "data_path": f"data/{PATH}",
        "video_path": None,
        "features": features(height, width),
    }
