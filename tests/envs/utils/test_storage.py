"""Data sets in an object store, on a real S3 server: equal bytes, one writer, clear errors."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import moto.settings
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from envs.collect.collector import collect
from envs.episodes import manifest
from envs.episodes.compact import compact
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.verify import verify
from envs.utils import storage
from envs.utils.errors import InputError
from envs.utils.storage import RemotePath, parse_uri
from worldmodel.data.clip_dataset import ClipDataset


@pytest.fixture(scope="module")
def bucket(ray_cluster: None) -> Iterator[str]:
    """URI of a bucket, with `{}` for the prefix."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="games")
        yield f"s3://games/{{}}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


def test_collecting_into_a_bucket_gives_the_bytes_of_a_folder(bucket: str, tmp_path: Path) -> None:
    uri = bucket.format("sets/one")
    first = collect(["Counting"], uri, episodes=2, steps=20, seed=1, progress=False)
    summary = collect(["Counting"], uri, episodes=4, steps=20, seed=1, progress=False)
    collect(["Counting"], tmp_path, episodes=2, steps=20, seed=1, progress=False)
    collect(["Counting"], tmp_path, episodes=4, steps=20, seed=1, progress=False)
    assert (first.played_episodes, summary.played_episodes, summary.episodes) == (2, 2, 4)
    remote = {
        found.relative_to(parse_uri(uri)).as_posix(): found.read_bytes()
        for found in parse_uri(uri).glob("**/*")
    }  # type: ignore[arg-type]
    local = {
        file.relative_to(tmp_path).as_posix(): file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.is_file()
    }
    local.pop(".lock")
    assert remote == local


def test_a_set_in_a_bucket_is_read_checked_merged_and_trained_on(
    bucket: str, tmp_path: Path
) -> None:
    uri = bucket.format("sets/two")
    collect(["Counting"], uri, episodes=3, steps=20, progress=False)
    before = [episode.frames_THWC for episode in EpisodeReader(uri)]
    assert not verify(uri, workers=2).faults
    assert compact(uri, megabytes=1).files_after == 1
    after = EpisodeReader(uri)
    assert all(np.array_equal(a, b.frames_THWC) for a, b in zip(before, after, strict=True))
    assert len(ClipDataset([uri], tmp_path, length=8, split=None)) == 3 * (21 - 7)


def test_damage_in_a_bucket_is_named(bucket: str) -> None:
    uri = bucket.format("sets/three")
    collect(["Counting"], uri, episodes=2, steps=20, progress=False)
    (shard, *_) = sorted(found.key for found in parse_uri(uri).glob("env=*/*.parquet"))  # type: ignore[union-attr]
    target = parse_uri(uri)
    assert isinstance(target, RemotePath)
    damaged = RemotePath(target.scheme, shard, target.options)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    with pytest.raises(InputError, match="sha256 differs"):
        list(EpisodeReader(uri))
    damaged.write_bytes(bytes(data[:-9]))
    with EpisodeWriter(uri) as writer:
        assert [target / path for path in writer.damaged] == [damaged]


def test_one_writer_at_a_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = bucket.format("sets/four")
    with EpisodeWriter(uri), pytest.raises(InputError, match="is being written by process"):
        EpisodeWriter(uri)
    EpisodeWriter(uri).close()
    root = parse_uri(uri)
    assert isinstance(root, RemotePath)
    dead = {
        "holder": "process 1 on gone",
        "token": "x",
        "time": time.time() - storage.STALE_SECONDS - 1,
    }
    (root / storage.LOCK_NAME).write_bytes(json.dumps(dead).encode())
    monkeypatch.setattr(storage, "RENEW_SECONDS", 0.1)
    with EpisodeWriter(uri):
        until, held = time.monotonic() + 1.0, []
        while time.monotonic() < until:
            held.append((root / storage.LOCK_NAME).read_bytes())
    assert {len(content) for content in held} == {storage.LOCK_BYTES}, "a reader saw part of a lock"
    assert json.loads(held[-1])["time"] > json.loads(held[0])["time"]
    assert not (root / storage.LOCK_NAME).exists()
    for strange in (b"\x00", b"5", b'{"time": null}'):
        (root / storage.LOCK_NAME).write_bytes(strange)
        with pytest.raises(InputError, match="is not a lock that AutoExplore wrote"):
            EpisodeWriter(uri)


def test_a_writer_whose_lock_was_taken_over_writes_no_manifest(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = parse_uri(bucket.format("sets/five"))
    assert isinstance(root, RemotePath)
    # Long enough that the other writer is not writing at the same moment as this one.
    monkeypatch.setattr(storage, "RENEW_SECONDS", 1.0)
    first = EpisodeWriter(root)
    other = {"holder": "process 2 elsewhere", "token": "other", "time": time.time()}
    (root / storage.LOCK_NAME).write_bytes(json.dumps(other).encode())
    time.sleep(2.0)
    with pytest.raises(InputError, match="was lost to another writer"):
        first.commit()
    first.close()
    assert json.loads((root / storage.LOCK_NAME).read_bytes())["token"] == "other"


def test_a_bucket_that_one_may_not_write_is_named_and_stays_whole(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server checks keys from now on, and ours are not among those it knows."""
    uri = bucket.format("sets/six")
    collect(["Counting"], uri, episodes=1, steps=20, progress=False)
    before = {found.key: found.read_bytes() for found in parse_uri(uri).glob("**/*")}  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        with pytest.raises(InputError, match="cannot write to s3://games/sets/six"):
            EpisodeWriter(uri)
        with pytest.raises(InputError, match="cannot write to s3://games/sets/six"):
            collect(["Counting"], uri, episodes=2, steps=20, progress=False)
        with pytest.raises(InputError, match="cannot be read"):
            EpisodeReader(uri)
    after = {found.key: found.read_bytes() for found in parse_uri(uri).glob("**/*")}  # type: ignore[union-attr]
    assert after == before


def test_locations_that_cannot_be_used(bucket: str) -> None:
    with pytest.raises(
        InputError, match="not a location for data: give a folder, or s3://bucket/prefix"
    ):
        parse_uri("ftp://host/data")
    with pytest.raises(InputError, match="not a location for data"):
        parse_uri("s3://")
    missing = bucket.replace("games", "no-such-bucket").format("sets")
    with pytest.raises(InputError, match="cannot write to s3://no-such-bucket/sets"):
        collect(["Counting"], missing, episodes=1, steps=5, progress=False)
    with pytest.raises(InputError, match=f"holds no episodes .{manifest.NAME} is missing"):
        EpisodeReader(bucket.format("sets/empty"))
    with pytest.raises(InputError, match="unused_option"):
        EpisodeReader(bucket.format("sets/x") + "&unused_option=1")
