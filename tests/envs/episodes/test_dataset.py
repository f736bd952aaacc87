"""The format on disk: exact, frozen in its split, whole or absent, and never silently wrong."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from envs.episodes import manifest
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import Episode
from envs.episodes.frame_codec import encode_frames
from envs.episodes.shards import SCHEMA, write_shard
from envs.utils.errors import InputError
from tests.fixtures.datasets import make_episode, read_encoded

COLUMNS = [
    *(
        "session_id",
        "env",
        "console",
        "rom_sha1",
        "retro_version",
        "schema_version",
        "policy_id",
        "seed",
    ),
    *("init_state", "frame_skip", "buttons"),
    *("num_frames", "chunk", "height", "width", "resize", "frames"),
    *("actions", "rewards", "info"),
    *("terminated", "truncated"),
]


def written(folder: Path, count: int = 3) -> list[Episode]:
    """A data set of `count` episodes."""
    episodes = [make_episode(f"s{i}") for i in range(count)]
    with EpisodeWriter(folder) as writer:
        for item in episodes:
            writer.add(item)
    return episodes


def shard_file(folder: Path, session_id: str = "s0") -> Path:
    return folder / "env=Counting" / f"part-{session_id}-0.parquet"


def test_episodes_come_back_bit_for_bit(tmp_path: Path) -> None:
    episodes = written(tmp_path)
    reader = EpisodeReader(tmp_path)
    assert reader.session_ids == ["s0", "s1", "s2"]
    assert reader.games == ["Counting"] * 3
    for index, original in enumerate(episodes):
        read = reader[index]
        for name in vars(original):
            assert np.array_equal(getattr(read, name), getattr(original, name)), name
        assert (
            reader.num_frames(index)
            == read.num_frames
            == len(read.frames_THWC)
            == len(read.actions) + 1
        )
        assert read.frames_THWC.dtype == read.actions.dtype == np.uint8
        assert read.rewards.dtype == np.float32
    assert [item.session_id for item in reader] == reader.session_ids


def test_columns_are_those_of_the_format(tmp_path: Path) -> None:
    written(tmp_path, 1)
    file = pq.ParquetFile(shard_file(tmp_path))
    assert file.schema_arrow.names == COLUMNS == SCHEMA.names
    assert file.num_row_groups == file.metadata.num_rows == 1
    row = file.read().to_pylist()[0]
    assert (row["num_frames"], row["chunk"], row["height"], row["width"]) == (71, 32, 64, 64)
    assert len(row["frames"]) == 3
    assert all(blob[4] & 0b100 for blob in row["frames"]), "zstd frames carry a checksum"
    frames_column = file.metadata.row_group(0).column(16)
    assert (frames_column.path_in_schema, frames_column.compression) == (
        "frames.list.element",
        "UNCOMPRESSED",
    )


def test_encoded_hands_out_the_stored_blobs(tmp_path: Path) -> None:
    episodes = written(tmp_path)
    for stored, original in zip(read_encoded(tmp_path), episodes, strict=True):
        assert stored.chunks == encode_frames(original.frames_THWC)
        assert np.array_equal(stored.actions, original.actions)


def test_bytes_depend_on_the_episodes_alone(tmp_path: Path) -> None:
    for folder, order in (("one", (0, 1, 2)), ("two", (2, 0, 1))):
        with EpisodeWriter(tmp_path / folder) as writer:
            writer.plan(("Counting", f"s{i}") for i in order)
            for index in order:
                writer.add(make_episode(f"s{index}"))
                writer.commit()
    for path in ("manifest.json", *(f"env=Counting/part-s{i}-0.parquet" for i in range(3))):
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    hashes = {EpisodeReader(tmp_path / folder).manifest_hash for folder in ("one", "two")}
    assert len(hashes) == 1


def test_splits_part_the_set(tmp_path: Path) -> None:
    written(tmp_path, 5)
    parts = [EpisodeReader(tmp_path, split).session_ids for split in ("train", "val")]
    assert [len(part) for part in parts] == [4, 1]
    assert sorted(parts[0] + parts[1]) == EpisodeReader(tmp_path).session_ids
    with pytest.raises(InputError, match="'train', 'val' or None"):
        EpisodeReader(tmp_path, "test")


def test_a_session_is_stored_once(tmp_path: Path) -> None:
    written(tmp_path, 1)
    with (
        EpisodeWriter(tmp_path) as writer,
        pytest.raises(InputError, match="already holds episode s0"),
    ):
        writer.add(make_episode("s0"))
    assert len(EpisodeReader(tmp_path)) == 1


def test_only_the_manifest_counts_and_the_next_writer_adopts(tmp_path: Path) -> None:
    written(tmp_path, 2)
    before = EpisodeReader(tmp_path).manifest_hash
    late = make_episode("s2")
    write_shard(tmp_path, [late.encode()], "s2")  # its writer died before it could list it
    shard_file(tmp_path, "s3").write_bytes(shard_file(tmp_path, "s2").read_bytes()[:5000])
    (tmp_path / "env=Counting" / ".part-s4-0.parquet.x.tmp").write_bytes(b"half")
    assert EpisodeReader(tmp_path).manifest_hash == before
    with EpisodeWriter(tmp_path) as writer:
        assert set(writer.sessions) == {"s0", "s1", "s2"}
        assert writer.damaged == ["env=Counting/part-s3-0.parquet"]
    reader = EpisodeReader(tmp_path)
    assert np.array_equal(reader[2].frames_THWC, late.frames_THWC)
    assert reader.session_ids == ["s0", "s1", "s2"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_copy_of_a_session_is_not_adopted(tmp_path: Path) -> None:
    written(tmp_path, 2)
    (tmp_path / "env=Counting" / "part-copy-0.parquet").write_bytes(
        shard_file(tmp_path).read_bytes()
    )
    with EpisodeWriter(tmp_path):
        pass
    assert EpisodeReader(tmp_path).session_ids == ["s0", "s1"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    written(tmp_path, 1)
    file = shard_file(tmp_path)
    whole = file.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(bytes(changed))
        with pytest.raises(InputError, match=r"part-s0-0\.parquet") as error:
            EpisodeReader(tmp_path)[0]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("harm", ["cut", "gone", "swapped"])
def test_truncated_missing_and_foreign_shards_are_named(tmp_path: Path, harm: str) -> None:
    written(tmp_path, 2)
    file = shard_file(tmp_path)
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "gone":
        file.unlink()
    else:
        file.write_bytes(shard_file(tmp_path, "s1").read_bytes())
    with pytest.raises(InputError, match=r"part-s0-0\.parquet"):
        EpisodeReader(tmp_path)[0]
    assert len(EpisodeReader(tmp_path)[1].actions) == 70, "the others stay readable"


def test_a_lost_shard_is_forgotten_by_the_writer_and_can_be_added_again(tmp_path: Path) -> None:
    episodes = written(tmp_path, 2)
    split = EpisodeReader(tmp_path, "val").session_ids
    before = EpisodeReader(tmp_path).manifest_hash
    shard_file(tmp_path).write_bytes(shard_file(tmp_path).read_bytes()[:-1])
    with EpisodeWriter(tmp_path) as writer:
        assert writer.damaged == ["env=Counting/part-s0-0.parquet"]
        assert set(writer.sessions) == {"s1"}
        writer.add(episodes[0])
    assert EpisodeReader(tmp_path).manifest_hash == before
    assert EpisodeReader(tmp_path, "val").session_ids == split


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        (
            '{"schema_version": 1, "shards": [{}], "validation": {}, "recipes": {}}',
            "manifest.json is damaged",
        ),
        (
            '{"schema_version": 1, "shards": [], "validation": [], "recipes": {}}',
            "manifest.json is damaged",
        ),
        ('{"schema_version": 99}', "has schema 99, this version reads schema 1"),
        ("../", "names a file outside its folder"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    written(tmp_path, 1)
    path = tmp_path / manifest.NAME
    if content == "../":
        content = path.read_text().replace("env=Counting/", "../env=Counting/")
    path.write_text(content)
    for opened in (EpisodeReader, EpisodeWriter):
        with pytest.raises(InputError, match=message):
            opened(tmp_path)


def test_a_lost_manifest_is_rebuilt_from_the_shards(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.plan(("Counting", f"s{i}") for i in range(3))
        for index in range(3):
            writer.add(make_episode(f"s{index}"))
    before = (tmp_path / manifest.NAME).read_bytes()
    (tmp_path / manifest.NAME).unlink()
    with EpisodeWriter(tmp_path):
        pass
    assert (tmp_path / manifest.NAME).read_bytes() == before


def test_folders_that_hold_no_episodes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no episodes"):
        EpisodeReader(tmp_path / "nothing")
    with pytest.raises(InputError, match="ftp://host/x: not a location for data"):
        EpisodeReader("ftp://host/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        EpisodeWriter(tmp_path / "file" / "folder")


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as first:
        with pytest.raises(InputError, match=f"being written by process {os.getpid()} "):
            EpisodeWriter(tmp_path)
        first.add(make_episode("s0"))
    with EpisodeWriter(tmp_path) as second:
        assert set(second.sessions) == {"s0"}


def test_the_lock_of_a_killed_writer_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_write_and_wait, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match=f"being written by process {process.pid} "):
        EpisodeWriter(tmp_path)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with EpisodeWriter(tmp_path) as writer:
        assert set(writer.sessions) == {"s0"}, "what it added is adopted"


def _write_and_wait(folder: Path, ready: Any) -> None:
    writer = EpisodeWriter(folder)
    writer.add(make_episode("s0"))
    ready.set()
    signal.pause()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "has no steps"),
        ({"actions": np.full(70, 5, np.uint8)}, "action 5 is out of range 0 to 4"),
        ({"actions": np.zeros(70, np.int64)}, "actions must be a uint8 vector"),
        ({"actions": np.zeros(69, np.uint8)}, "rewards must be float32"),
        ({"rewards": np.zeros(70)}, "rewards must be float32"),
        (
            {"frames_THWC": np.zeros((70, 64, 64, 3), np.uint8)},
            r"frames must be uint8 \(71, H, W, 3\)",
        ),
        ({"frames_THWC": np.zeros((71, 64, 64, 3), np.float32)}, "not float32"),
    ],
)
def test_wrong_episodes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_episode("s0", **changes)


def test_recipes_are_kept(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.plan([("Counting", "s0")], "random seed 0", {"steps": 70})
        writer.add(make_episode("s0"))
    with EpisodeWriter(tmp_path) as writer:
        writer.plan([("Counting", "s1")], "random seed 1", {"steps": 50})
        with pytest.raises(
            InputError,
            match=r"holds 'random seed 0' made with \{'steps': 70\}, not \{'steps': 71\}",
        ):
            writer.plan([("Counting", "s2")], "random seed 0", {"steps": 71})
    assert set(json.loads((tmp_path / manifest.NAME).read_text())["recipes"]) == {
        "random seed 0",
        "random seed 1",
    }
