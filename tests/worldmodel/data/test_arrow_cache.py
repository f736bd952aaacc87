"""The local copy of a data set: damaged shards, and when the copy is made again."""

from pathlib import Path

import numpy as np
import pytest

from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_codec import decode_frames, without_checksum
from envs.utils.errors import InputError
from envs.utils.progress import console
from tests.fixtures.datasets import record
from worldmodel.data.arrow_cache import build_arrow_cache
from worldmodel.data.clip_dataset import ClipDataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 sessions, one per shard."""
    return Path(record(tmp_path / "data", episodes=40, steps=9))


def damage(data: Path, count: int) -> list[Path]:
    """Flip a bit in each of the first shards and return them."""
    shards = sorted(data.glob("env=*/*.parquet"))[:count]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)
    return shards


def test_few_damaged_shards_are_left_out_counted_and_named(data: Path, tmp_path: Path) -> None:
    whole = ClipDataset([data], tmp_path / "whole", length=8, split=None)
    reader = EpisodeReader(data)
    played = {session_id: reader[index] for index, session_id in enumerate(reader.session_ids)}
    gone, damaged = damage(data, 2)
    gone.unlink()
    with console.capture() as printed:
        clips = ClipDataset([data], tmp_path / "cache", length=8, split=None)
    assert "2 of 40 shards" in printed.get()
    for shard in (gone, damaged):
        assert shard.name in printed.get()
    assert set(clips.skipped) == {
        f"{data}/{shard.parent.name}/{shard.name}" for shard in (gone, damaged)
    }
    assert "sha256 differs" in clips.skipped[f"{data}/{damaged.parent.name}/{damaged.name}"]
    assert whole.skipped == {}
    lost = {shard.name.split("-")[1] for shard in (gone, damaged)}
    left = {episode.session_id for episode in clips.episodes}
    assert left == {episode.session_id for episode in whole.episodes} - lost
    # Windows have other numbers now: a run on the whole data must not resume with this copy.
    assert clips.manifest_hash != whole.manifest_hash
    frames = clips.batch(np.arange(len(clips))).frames_BTHWC.numpy()
    for number in range(len(clips)):
        index, start = clips.locate(number)
        expected = played[clips.episodes[index].session_id].frames_THWC[start : start + 8]
        assert np.array_equal(frames[number], expected)


def test_the_copy_without_damaged_shards_is_used_until_one_is_repaired(
    data: Path, tmp_path: Path
) -> None:
    shard = sorted(data.glob("env=*/*.parquet"))[0]
    content = shard.read_bytes()
    damage(data, 1)
    incomplete = build_arrow_cache(data, tmp_path / "cache")
    written = incomplete.stat().st_mtime_ns
    with console.capture() as printed:
        assert build_arrow_cache(data, tmp_path / "cache") == incomplete
    assert shard.name in printed.get()
    assert incomplete.stat().st_mtime_ns == written
    shard.write_bytes(content)
    complete = build_arrow_cache(data, tmp_path / "cache")
    assert complete != incomplete
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [complete.name]
    assert ClipDataset([data], tmp_path / "cache", length=8, split=None).skipped == {}


def test_many_damaged_shards_stop_copying_and_leave_no_file(data: Path, tmp_path: Path) -> None:
    first, *_ = damage(data, 3)  # 7.5 %
    with pytest.raises(
        InputError, match=rf"3 or more of 40 shards.*over 5%.*{first.name}"
    ) as raised:
        build_arrow_cache(data, tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_blobs_without_checksum_hold_the_same_frames_and_are_checked_before(data: Path) -> None:
    reader = EpisodeReader(data)
    episode = reader.encoded(0)
    blobs = without_checksum(episode.chunks, episode.num_frames)
    assert [len(blob) for blob in blobs] == [len(blob) - 4 for blob in episode.chunks]
    assert np.array_equal(decode_frames(blobs, 0, episode.num_frames), reader[0].frames_THWC)
    blob = bytearray(episode.chunks[0])
    blob[-1] ^= 1  # of the checksum itself
    object.__setattr__(episode, "chunks", (bytes(blob),))
    with pytest.raises(InputError, match="damaged"):
        without_checksum(episode.chunks, episode.num_frames)
