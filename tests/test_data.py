"""Looking after a data set: damage is named, figures are right, and merging files changes nothing but the files."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs import manifest
from envs.compact import compact, same
from envs.episodes import EpisodeReader, EpisodeWriter
from envs.errors import InputError
from envs.manifest import FolderLock
from envs.recording import EncodedEpisode
from envs.shards import SCHEMA, inspect_shard, write_shard
from envs.summary import summarize
from envs.verify import verify
from experiments.__main__ import execute
from tests.recordings import record

GAMES = ("Counting", "Kangaroo-Atari2600")
EPISODES = 4


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of 40 to 43 steps of two games. Nobody may change it."""
    return Path(record(tmp_path_factory.mktemp("recorded") / "data", games=GAMES, episodes=EPISODES, steps=40))


@pytest.fixture
def data(recorded: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(recorded, tmp_path / "data"))


def content(folder: Path) -> tuple[list[EncodedEpisode], list[str], list[str]]:
    """What a reader finds: all episodes, and which are for what."""
    return (
        list(EpisodeReader(folder).iter_encoded()),
        EpisodeReader(folder, "train").session_ids,
        EpisodeReader(folder, "val").session_ids,
    )


def equal(one: tuple[list[EncodedEpisode], list[str], list[str]], other: Any) -> bool:
    """Whether two contents are the same, bit for bit and in order."""
    pairs = zip(one[0], other[0], strict=True)
    return one[1:] == other[1:] and all(same(a, b) for a, b in pairs)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("env=*/*.parquet"))


def test_a_whole_set_is_found_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(str(data), workers=3)
    assert (found.files, found.sessions, found.faults) == (8, 8, {})
    assert found.frames == 2 * (41 + 42 + 43 + 44)
    assert found.bytes == sum(file.stat().st_size for file in files(data))
    assert execute(["data", "verify", str(data)]) == 0
    assert "8 files, 8 sessions, 340 frames" in capsys.readouterr().out


def _flip(data: Path) -> str:
    file = files(data)[1]
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(bytes(changed))
    return "sha256 differs"


def _cut(data: Path) -> str:
    file = files(data)[1]
    file.write_bytes(file.read_bytes()[:-1])
    return "cut short"


def _delete(data: Path) -> str:
    files(data)[1].unlink()
    return "cannot be read"


def _rewrite(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the second file's row, and let the manifest vouch for it."""
    file = files(data)[1]
    row = pq.read_table(file).to_pylist()[0]
    change(row)
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), file)
    _vouch(data, file)


def _vouch(data: Path, file: Path) -> None:
    """Put the size and hash that a file has now into the manifest."""
    raw = json.loads((data / manifest.NAME).read_text())
    path = file.relative_to(data).as_posix()
    entry = next(shard for shard in raw["shards"] if shard["path"] == path)
    entry.update(bytes=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    (data / manifest.NAME).write_text(json.dumps(raw))


def _spoil_chunk(data: Path) -> str:
    def change(row: dict[str, Any]) -> None:
        blob = bytearray(row["frames"][1])
        blob[-1] ^= 1
        row["frames"][1] = bytes(blob)

    _rewrite(data, change)
    return "frame chunk 1 is damaged"


def _swap_chunks(data: Path) -> str:
    def change(row: dict[str, Any]) -> None:
        row["frames"].reverse()

    _rewrite(data, change)
    return "frame chunk 0 holds"


def _bad_action(data: Path) -> str:
    def change(row: dict[str, Any]) -> None:
        row["actions"][3] = 9

    _rewrite(data, change)
    return "action 9 is out of range"


def _bad_reward(data: Path) -> str:
    def change(row: dict[str, Any]) -> None:
        row["rewards"][3] = float("nan")

    _rewrite(data, change)
    return "not a finite number"


def _rename_session(data: Path) -> str:
    def change(row: dict[str, Any]) -> None:
        row["session_id"] = "another"

    _rewrite(data, change)
    return "holds session another"


def _flip_page(data: Path) -> str:
    file = files(data)[1]
    with file.open("r+b") as opened:
        position = pq.ParquetFile(file).metadata.row_group(0).column(16).data_page_offset + 500
        opened.seek(position)
        old = opened.read(1)
        opened.seek(position)
        opened.write(bytes([old[0] ^ 1]))
    _vouch(data, file)
    return "is damaged or missing"


@pytest.mark.parametrize(
    "harm",
    [_flip, _cut, _delete, _spoil_chunk, _swap_chunks, _bad_action, _bad_reward, _rename_session, _flip_page],
)
def test_every_kind_of_damage_is_named(
    data: Path, harm: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = files(data)[1].relative_to(data).as_posix()
    reason = harm(data)
    found = verify(str(data))
    assert list(found.faults) == [path]
    assert reason in found.faults[path]
    assert execute(["data", "verify", str(data)]) == 2
    shown = capsys.readouterr()
    assert f"bad: {path}: {found.faults[path]}" in shown.out
    assert shown.err.splitlines() == [f"autoexplore: {data} has 1 bad files, the first of them {path}"]


def test_a_manifest_that_contradicts_itself(data: Path) -> None:
    raw = json.loads((data / manifest.NAME).read_text())
    first = raw["shards"][0]["sessions"][0]["session_id"]
    raw["shards"][1]["sessions"][0]["session_id"] = first
    lost = raw["shards"][2]["sessions"][0]["session_id"]
    del raw["validation"]["Counting"][lost]
    raw["validation"]["Kangaroo-Atari2600"] = dict.fromkeys(raw["validation"]["Kangaroo-Atari2600"], False)
    (data / manifest.NAME).write_text(json.dumps(raw))
    faults = verify(str(data)).faults
    assert f"session {first}" in faults[raw["shards"][1]["path"]]
    assert f"session {lost} is in no split" in faults[raw["shards"][2]["path"]]
    assert "Kangaroo-Atari2600 has 4 sessions and none for validation" in faults[manifest.NAME]


def test_stray_files_are_told_apart(data: Path) -> None:
    folder = data / "env=Counting"
    copy, broken, half = folder / "part-c-0.parquet", folder / "part-b-0.parquet", folder / ".part-h-0.parquet.x.tmp"
    copy.write_bytes(files(data)[0].read_bytes())
    broken.write_bytes(b"PAR1")
    half.write_bytes(b"")
    other = Path(record(data.parent / "other", episodes=1, steps=5, seed=7))
    new = folder / files(other)[0].name
    shutil.copy(files(other)[0], new)
    faults = {Path(path).name: fault for path, fault in verify(str(data)).faults.items()}
    assert faults.keys() == {copy.name, broken.name, half.name, new.name}
    assert "compact clears it away" in faults[copy.name]
    assert "damaged: delete it" in faults[broken.name]
    assert "clears it away" in faults[half.name]
    assert "takes it in" in faults[new.name]


def test_figures_of_the_games(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "stats" / "figures.json"
    assert execute(["data", "stats", str(data), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    counting = figures["games"]["Counting"]
    lengths = [40, 41, 42, 43]
    assert (counting["episodes"], counting["frames"], counting["mean_length"]) == (4, sum(lengths) + 4, 41.5)
    assert counting["reward_mean"] == pytest.approx(sum(n * (n + 1) / 2 for n in lengths) / sum(lengths))
    assert counting["terminated_share"] == 0
    assert counting["validation_episodes"] == 1
    actions = np.concatenate(
        [episode.actions for episode in EpisodeReader(data).iter_encoded() if episode.game == "Counting"]
    )
    shares = np.bincount(actions, minlength=5) / len(actions)
    assert list(counting["action_shares"].values()) == pytest.approx(shares.tolist())
    assert counting["distinct_screens"] > 40, "each of the 44 counts is another screen, with up to five actions"
    assert figures["all"]["bytes"] == sum(file.stat().st_size for file in files(data))
    assert figures["all"]["bytes"] == sum(game["bytes"] for game in figures["games"].values())
    shown = capsys.readouterr().out
    assert all(game in shown for game in GAMES)
    assert summarize(str(data), workers=1)["Counting"].to_json() == counting


def test_merging_files_changes_no_session_and_no_split(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(data)
    assert execute(["data", "compact", str(data)]) == 0
    assert "8 files became 2" in capsys.readouterr().out
    assert len(files(data)) == 2
    assert equal(content(data), before)
    assert verify(str(data)).faults == {}
    held = (data / manifest.NAME).read_bytes()
    done = compact(str(data))
    assert (done.files_before, done.files_after, done.sessions) == (2, 2, 0)
    assert (data / manifest.NAME).read_bytes() == held, "there is nothing left to do"


def test_a_merged_set_grows_and_is_merged_again(data: Path) -> None:
    compact(str(data))
    record(data, episodes=6, steps=40, seed=1)
    before = content(data)
    assert len(files(data)) == 8
    compact(str(data))
    assert len(files(data)) == 2
    assert equal(content(data), before)


def test_files_are_filled_up_to_their_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (31, 64, 64, 3), np.uint8)
    (template,) = EpisodeReader(record(tmp_path / "one", episodes=1, steps=30)).iter_encoded()
    with EpisodeWriter(tmp_path / "data") as writer:
        for number in range(8):
            episode = template.decode()
            fields = {**vars(episode), "session_id": f"s{number}", "frames_THWC": np.roll(noise, number, axis=1)}
            writer.add(type(episode)(**fields))
    before = content(tmp_path / "data")
    compact(str(tmp_path / "data"), megabytes=1)  # a session has 0.37 MB
    assert [len(EpisodeReader(tmp_path / "data")), len(files(tmp_path / "data"))] == [8, 4]
    assert all(500_000 < file.stat().st_size <= 1_000_000 for file in files(tmp_path / "data"))
    assert equal(content(tmp_path / "data"), before)


def _compact_until(data: Path, calls: int) -> None:
    """Merge, and die of SIGKILL instead of the `calls`-th rename or deletion."""
    done = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    os.replace = counted(os.replace)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    compact(str(data))


def _kill(data: Path, calls: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_compact_until, args=(data, calls))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


# Call 1 commits the writer's manifest; 2 and 3 put the first game's merged file and manifest in place, 4 to 7 delete
# its four files; 8 and 9 are the second game's.
@pytest.mark.parametrize("calls", [2, 3, 4, 6, 8, 9, 13])
def test_killed_at_any_point_the_set_is_whole_and_the_next_run_finishes(data: Path, calls: int) -> None:
    before = content(data)
    _kill(data, calls)
    assert equal(content(data), before)
    done = compact(str(data))
    assert equal(content(data), before)
    assert len(files(data)) == 2
    assert verify(str(data)).faults == {}
    assert done.leftovers == {2: 0, 3: 1, 4: 4, 6: 2, 8: 0, 9: 1, 13: 1}[calls]


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
        assert len(writer.sessions) == 8, "the merged file is adopted before what is left of its parts"
    assert equal(content(data), before)
    compact(str(data))
    assert len(files(data)) == 2
    assert equal(content(data), before)


def test_a_stray_that_differs_is_kept(data: Path) -> None:
    original = EpisodeReader(data).encoded(0)
    changed = vars(original) | {"rewards": original.rewards + 1}
    write_shard(data, [EncodedEpisode(**changed)], "other")
    compact(str(data))
    stray = data / "env=Counting" / "part-other-0.parquet"
    assert stray.exists(), "its session is held, but not with this content"
    assert inspect_shard(data, "env=Counting/part-other-0.parquet").sessions[0].session_id == original.session_id


def test_what_cannot_be_merged(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, part in (
        ([str(tmp_path / "none")], "holds no episodes"),
        ([str(data), "--megabytes", "0"], "--megabytes is at least 1"),
    ):
        assert execute(["data", "compact", *argv]) == 2
        assert part in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    lock = FolderLock(data)
    with pytest.raises(InputError, match="being written"):
        compact(str(data))
    lock.release()
    _flip(data)
    before = (data / manifest.NAME).read_bytes()
    with pytest.raises(InputError, match="sha256 differs"):
        compact(str(data))
    assert (data / manifest.NAME).read_bytes() == before
    assert len(files(data)) == 8
    _cut(data)
    with pytest.raises(InputError, match=f"{files(data)[1].name} is damaged or gone"):
        compact(str(data))
    assert (data / manifest.NAME).read_bytes() == before, "no session is forgotten"


def test_bad_arguments(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["verify", str(data), "--workers", "0"], ["stats", str(data), "--workers", "0"]):
        assert execute(["data", *argv]) == 2
        assert "--workers is at least 1" in capsys.readouterr().err
    assert execute(["data"]) == 2
    assert execute(["data", "verify"]) == 2
    assert execute(["data", "stats", str(data / "gone")]) == 2
