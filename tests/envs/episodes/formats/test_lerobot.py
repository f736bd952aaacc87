"""The LeRobot export against the documented fields of LeRobotDataset v3.0."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.episodes.formats import lerobot
from envs.episodes.formats.convert import export_episodes
from experiments.__main__ import execute


def check_lerobot(folder: Path) -> dict[str, Any]:
    """Check a folder against the documentation of LeRobotDataset v3.0; its library needs
    torchvision.
    """
    info: dict[str, Any] = json.loads((folder / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] is None
    assert info["fps"] > 0
    assert {
        "robot_type",
        "chunks_size",
        "data_files_size_in_mb",
        "video_files_size_in_mb",
    } <= info.keys()
    features = info["features"]
    defaults = {
        "timestamp": "float32",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
    }
    for name, kind in {**defaults, "task_index": "int64"}.items():
        assert features[name] == {"dtype": kind, "shape": [1], "names": None}
    for name, feature in features.items():
        assert "/" not in name
        assert feature.keys() == {"dtype", "shape", "names"}
        assert feature["names"] is None or len(feature["names"]) == len(
            feature["shape"] if feature["dtype"] == "image" else range(feature["shape"][0])
        )
    tasks = pd.read_parquet(folder / "meta" / "tasks.parquet")
    assert tasks.index.name == "task"
    assert tasks["task_index"].tolist() == list(range(info["total_tasks"]))
    rows = pq.read_table(
        folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    ).to_pylist()
    assert [row["episode_index"] for row in rows] == list(range(info["total_episodes"]))
    assert {"tasks", "length", "meta/episodes/chunk_index", "meta/episodes/file_index"} <= rows[
        0
    ].keys()
    expected = 0
    for row in rows:
        assert (row["dataset_from_index"], row["dataset_to_index"] - row["dataset_from_index"]) == (
            expected,
            row["length"],
        )
        expected = row["dataset_to_index"]
        path = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        check_lerobot_rows(folder / path, row, info, tasks)
    assert expected == info["total_frames"]
    check_lerobot_stats(json.loads((folder / "meta" / "stats.json").read_text()), rows, features)
    bounds = [tuple(map(int, split.split(":"))) for split in info["splits"].values()]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == info["total_episodes"]
    return info


def check_lerobot_rows(
    file: Path, row: dict[str, Any], info: dict[str, Any], tasks: pd.DataFrame
) -> None:
    """Check the steps of one episode."""
    table = pq.read_table(file, filters=[("episode_index", "=", row["episode_index"])])
    features = info["features"]
    assert set(table.column_names) == features.keys()
    for name, feature in features.items():
        if feature["dtype"] == "image":
            assert {field.name: field.type for field in table.schema.field(name).type} == {
                "bytes": pa.binary(),
                "path": pa.string(),
            }
        else:
            assert table.schema.field(name).type == pa.type_for_alias(feature["dtype"])
    columns = {name: table[name].to_pylist() for name in features}
    steps = range(row["length"])
    assert columns["frame_index"] == list(steps)
    assert columns["index"] == list(range(row["dataset_from_index"], row["dataset_to_index"]))
    assert columns["timestamp"] == pytest.approx([step / info["fps"] for step in steps], abs=1e-4)
    assert set(columns["task_index"]) == {tasks.loc[row["tasks"][0]]["task_index"]}
    known = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert known["observation.image"] == {"_type": "Image"}
    assert known.keys() == features.keys()


def check_lerobot_stats(
    stats: dict[str, Any], rows: list[dict[str, Any]], features: dict[str, Any]
) -> None:
    """Check the statistics of the whole set and of each episode."""
    assert stats.keys() == features.keys()
    for name, values in stats.items():
        assert values.keys() == {"min", "max", "mean", "std", "count"}
        for key, value in values.items():
            shape = (1,) if key == "count" or features[name]["dtype"] != "image" else (3, 1, 1)
            assert np.shape(value) == shape
            assert all(np.shape(row[f"stats/{name}/{key}"]) == shape for row in rows)


def test_lerobot_keeps_frames_actions_and_splits(data: str, tmp_path: Path) -> None:
    assert (
        execute(["data", "export", data, "--to", str(tmp_path / "out"), "--format", "lerobot"]) == 0
    )
    info = check_lerobot(tmp_path / "out")
    originals = [*episodes_of(data, "train"), *episodes_of(data, "val")]
    assert (info["fps"], info["splits"]) == (15, {"train": "0:4", "val": "4:6"})
    assert info["features"]["observation.image"]["shape"] == [64, 64, 3]
    table = pq.read_table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet")
    assert (
        pq.ParquetFile(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet").num_row_groups
        == 6
    )
    images = [
        np.asarray(Image.open(io.BytesIO(item["bytes"])))
        for item in table["observation.image"].to_pylist()
    ]
    assert np.array_equal(
        images, np.concatenate([episode.frames_THWC[:-1] for episode in originals])
    )
    actions = np.concatenate([episode.actions for episode in originals])
    assert table["action"].to_pylist() == actions.tolist()
    assert (
        table["next.reward"].to_pylist()
        == np.concatenate([episode.rewards for episode in originals]).tolist()
    )
    assert sum(table["next.done"].to_pylist()) == sum(table["next.truncated"].to_pylist()) == 6
    stats = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    pixels = np.array(images).reshape(-1, 3) / 255
    assert np.ravel(stats["observation.image"]["mean"]) == pytest.approx(pixels.mean(axis=0))
    assert np.ravel(stats["observation.image"]["std"]) == pytest.approx(pixels.std(axis=0))
    assert stats["action"]["std"] == pytest.approx([actions.std()])
    assert stats["action"]["count"] == [len(actions)]
    metadata = json.loads((tmp_path / "out" / "meta" / "autoexplore.json").read_text())["episodes"]
    assert [item["session_id"] for item in metadata] == [
        episode.session_id for episode in originals
    ]


def episodes_of(uri: str, split: str) -> list[Episode]:
    reader = EpisodeReader(uri, split)
    return [reader[index] for index in range(len(reader))]


def test_lerobot_begins_a_new_file_where_one_is_full(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot, "FILE_MEGABYTES", 0)
    monkeypatch.setattr(lerobot, "FILES_PER_CHUNK", 4)
    export_episodes(data, tmp_path / "out", "lerobot")
    assert check_lerobot(tmp_path / "out")["total_episodes"] == 6
    files = sorted(
        file.relative_to(tmp_path / "out" / "data")
        for file in (tmp_path / "out" / "data").rglob("*.parquet")
    )
    assert [file.as_posix() for file in files] == [
        *(f"chunk-000/file-{index:03d}.parquet" for index in range(4)),
        *(f"chunk-001/file-{index:03d}.parquet" for index in range(2)),
    ]
