"""Compaction: no episode and no split changes, wherever the process is killed."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.episodes import manifest
from envs.episodes.compact import compact, equal_episodes
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.episodes.episode import EncodedEpisode
from envs.episodes.shards import inspect_shard, write_shard
from envs.episodes.verify import verify
from envs.utils.errors import InputError
from envs.utils.storage import lock
from experiments.__main__ import execute
from tests.fixtures.datasets import read_encoded, record, shard_files


def content(folder: Path) -> tuple[list[EncodedEpisode], list[str], list[str]]:
    """Return all episodes and the session ids of both splits."""
    return (
        read_encoded(folder),
        EpisodeReader(folder, "train").session_ids,
        EpisodeReader(folder, "val").session_ids,
    )


def equal(one: tuple[list[EncodedEpisode], list[str], list[str]], other: Any) -> bool:
    """Return True if two contents are the same, bit for bit and in order."""
    pairs = zip(one[0], other[0], strict=True)
    return one[1:] == other[1:] and all(equal_episodes(a, b) for a, b in pairs)


def test_merging_files_changes_no_session_and_no_split(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(data)
    assert execute(["data", "compact", str(data)]) == 0
    assert "8 files became 2" in capsys.readouterr().out
    assert len(shard_files(data)) == 2
    assert equal(content(data), before)
    assert verify(str(data)).faults == {}
    merged = (data / manifest.NAME).read_bytes()
    again = compact(str(data))
    assert (again.files_before, again.files_after, again.sessions) == (2, 2, 0)
    assert (data / manifest.NAME).read_bytes() == merged, "there is nothing left to do"


def test_a_merged_set_grows_and_is_merged_again(data: Path) -> None:
    compact(str(data))
    record(data, episodes=6, steps=40, seed=1)
    before = content(data)
    assert len(shard_files(data)) == 8
    compact(str(data))
    assert len(shard_files(data)) == 2
    assert equal(content(data), before)


def test_files_are_filled_up_to_their_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (31, 64, 64, 3), np.uint8)
    (template,) = read_encoded(record(tmp_path / "one", episodes=1, steps=30))
    with EpisodeWriter(tmp_path / "data") as writer:
        for number in range(8):
            episode = template.decode()
            fields = {
                **vars(episode),
                "session_id": f"s{number}",
                "frames_THWC": np.roll(noise, number, axis=1),
            }
            writer.add(type(episode)(**fields))
    before = content(tmp_path / "data")
    compact(str(tmp_path / "data"), megabytes=1)  # a session has 0.37 MB
    assert [len(EpisodeReader(tmp_path / "data")), len(shard_files(tmp_path / "data"))] == [8, 4]
    assert all(
        500_000 < file.stat().st_size <= 1_000_000 for file in shard_files(tmp_path / "data")
    )
    assert equal(content(tmp_path / "data"), before)


def _compact_until(data: Path, calls: int) -> None:
    """Compact, but die of SIGKILL instead of the `calls`-th rename or deletion."""
    count = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    os.replace = counted(os.replace)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    compact(str(data))


def _kill(data: Path, calls: int) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_compact_until, args=(data, calls)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


# Call 1 commits the writer's manifest; 2 and 3 write the first game's merged file and manifest,
# 4 to 7 delete its four files; 8 and 9 are the second game's.
@pytest.mark.parametrize("calls", [2, 3, 4, 6, 8, 9, 13])
def test_killed_at_any_point_the_set_is_whole_and_the_next_run_finishes(
    data: Path, calls: int
) -> None:
    before = content(data)
    _kill(data, calls)
    assert equal(content(data), before)
    result = compact(str(data))
    assert equal(content(data), before)
    assert len(shard_files(data)) == 2
    assert verify(str(data)).faults == {}
    assert result.leftovers == {2: 0, 3: 1, 4: 4, 6: 2, 8: 0, 9: 1, 13: 1}[calls]


@pytest.mark.parametrize("calls", [3, 4, 6])
def test_leftovers_are_not_taken_in_twice(data: Path, calls: int) -> None:
    before = content(data)
    _kill(data, calls)
    with EpisodeWriter(data) as writer:
        assert len(writer.sessions) == 8
        assert writer.damaged == []
    assert equal(content(data), before)
    (data / manifest.NAME).unlink()
    with EpisodeWriter(data) as writer:
        assert len(writer.sessions) == 8, (
            "the merged file is adopted before what is left of its parts"
        )
    assert equal(content(data), before)
    compact(str(data))
    assert len(shard_files(data)) == 2
    assert equal(content(data), before)


def test_a_stray_that_differs_is_kept(data: Path) -> None:
    original = EpisodeReader(data).encoded(0)
    changed = vars(original) | {"rewards": original.rewards + 1}
    write_shard(data, [EncodedEpisode(**changed)], "other")
    compact(str(data))
    stray = data / "env=Counting" / "part-other-0.parquet"
    assert stray.exists(), "its session is held, but not with this content"
    assert (
        inspect_shard(data, "env=Counting/part-other-0.parquet").sessions[0].session_id
        == original.session_id
    )


def test_what_cannot_be_merged(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, part in (
        ([str(tmp_path / "none")], "holds no episodes"),
        ([str(data), "--megabytes", "0"], "--megabytes is at least 1"),
    ):
        assert execute(["data", "compact", *argv]) == 2
        assert part in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    with closing(lock(data)), pytest.raises(InputError, match="being written"):
        compact(str(data))
    file = shard_files(data)[1]
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(bytes(whole))
    before = (data / manifest.NAME).read_bytes()
    with pytest.raises(InputError, match="sha256 differs"):
        compact(str(data))
    assert (data / manifest.NAME).read_bytes() == before
    assert len(shard_files(data)) == 8
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"{file.name} is damaged or missing"):
        compact(str(data))
    assert (data / manifest.NAME).read_bytes() == before, "no session is forgotten"


def test_recompressed_files_are_smaller_and_hold_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(record(tmp_path / "data", games=("Kangaroo-Atari2600",), episodes=2, steps=60))
    before = content(folder)
    assert execute(["data", "compact", str(folder), "--recompress"]) == 0
    assert "2 files became 1" in capsys.readouterr().out
    after = content(folder)
    assert equal(after, before)
    sizes = [
        sum(len(chunk) for item in found[0] for chunk in item.chunks) for found in (before, after)
    ]
    assert sizes[1] < 0.95 * sizes[0]
    assert verify(str(folder)).faults == {}
    copy = write_shard(
        folder, [before[0][0]], "left"
    )  # as a killed run leaves it: the same frames, compressed otherwise
    assert compact(str(folder)).leftovers == 1
    assert not (folder / copy.path).exists()
