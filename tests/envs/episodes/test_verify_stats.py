"""Looking after a data set: damage is named, and figures are right."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.episodes import manifest
from envs.episodes.shards import SCHEMA
from envs.episodes.stats import compute_stats
from envs.episodes.verify import verify
from experiments.__main__ import execute
from tests.fixtures.datasets import TWO_GAMES, read_encoded, record, shard_files


def test_a_whole_set_is_found_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(str(data), workers=3)
    assert (found.files, found.sessions, found.faults) == (8, 8, {})
    assert found.frames == 2 * (41 + 42 + 43 + 44)
    assert found.bytes == sum(file.stat().st_size for file in shard_files(data))
    assert execute(["data", "verify", str(data)]) == 0
    assert "8 files, 8 sessions, 340 frames" in capsys.readouterr().out


def _flip(data: Path) -> str:
    file = shard_files(data)[1]
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(bytes(changed))
    return "sha256 differs"


def _cut(data: Path) -> str:
    file = shard_files(data)[1]
    file.write_bytes(file.read_bytes()[:-1])
    return "is truncated"


def _delete(data: Path) -> str:
    shard_files(data)[1].unlink()
    return "cannot be read"


def _rewrite(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the second file's row, and let the manifest vouch for it."""
    file = shard_files(data)[1]
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
    return "that is not finite"


def _rename_session(data: Path) -> str:
    def change(row: dict[str, Any]) -> None:
        row["session_id"] = "another"

    _rewrite(data, change)
    return "holds episode another"


def _flip_page(data: Path) -> str:
    file = shard_files(data)[1]
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
    [
        _flip,
        _cut,
        _delete,
        _spoil_chunk,
        _swap_chunks,
        _bad_action,
        _bad_reward,
        _rename_session,
        _flip_page,
    ],
)
def test_every_kind_of_damage_is_named(
    data: Path, harm: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = shard_files(data)[1].relative_to(data).as_posix()
    reason = harm(data)
    found = verify(str(data))
    assert list(found.faults) == [path]
    assert reason in found.faults[path]
    assert execute(["data", "verify", str(data)]) == 2
    shown = capsys.readouterr()
    assert f"bad: {path}: {found.faults[path]}" in shown.out
    assert shown.err.splitlines() == [
        f"autoexplore: {data} has 1 bad files, the first of them {path}"
    ]


def test_a_manifest_that_contradicts_itself(data: Path) -> None:
    raw = json.loads((data / manifest.NAME).read_text())
    first = raw["shards"][0]["sessions"][0]["session_id"]
    raw["shards"][1]["sessions"][0]["session_id"] = first
    lost = raw["shards"][2]["sessions"][0]["session_id"]
    del raw["validation"]["Counting"][lost]
    raw["validation"]["Kangaroo-Atari2600"] = dict.fromkeys(
        raw["validation"]["Kangaroo-Atari2600"], False
    )
    (data / manifest.NAME).write_text(json.dumps(raw))
    faults = verify(str(data)).faults
    assert f"episode {first}" in faults[raw["shards"][1]["path"]]
    assert f"episode {lost} is in no split" in faults[raw["shards"][2]["path"]]
    assert "Kangaroo-Atari2600 has 4 episodes and none for validation" in faults[manifest.NAME]


def test_stray_files_are_told_apart(data: Path) -> None:
    folder = data / "env=Counting"
    copy, broken, half = (
        folder / "part-c-0.parquet",
        folder / "part-b-0.parquet",
        folder / ".part-h-0.parquet.x.tmp",
    )
    copy.write_bytes(shard_files(data)[0].read_bytes())
    broken.write_bytes(b"PAR1")
    half.write_bytes(b"")
    other = Path(record(data.parent / "other", episodes=1, steps=5, seed=7))
    new = folder / shard_files(other)[0].name
    shutil.copy(shard_files(other)[0], new)
    faults = {Path(path).name: fault for path, fault in verify(str(data)).faults.items()}
    assert faults.keys() == {copy.name, broken.name, half.name, new.name}
    assert "compact deletes it" in faults[copy.name]
    assert "damaged: delete it" in faults[broken.name]
    assert "deletes it" in faults[half.name]
    assert "adopts it" in faults[new.name]


def test_figures_of_the_games(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats" / "figures.json"
    assert execute(["data", "stats", str(data), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    counting = figures["games"]["Counting"]
    lengths = [40, 41, 42, 43]
    assert (counting["episodes"], counting["frames"], counting["mean_length"]) == (
        4,
        sum(lengths) + 4,
        41.5,
    )
    assert counting["reward_mean"] == pytest.approx(
        sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    )
    assert counting["terminated_share"] == 0
    assert counting["validation_episodes"] == 1
    actions = np.concatenate(
        [episode.actions for episode in read_encoded(data) if episode.game == "Counting"]
    )
    shares = np.bincount(actions, minlength=5) / len(actions)
    assert list(counting["action_shares"].values()) == pytest.approx(shares.tolist())
    assert counting["distinct_screens"] > 40, (
        "each of the 44 counts is another screen, with up to five actions"
    )
    assert figures["all"]["bytes"] == sum(file.stat().st_size for file in shard_files(data))
    assert figures["all"]["bytes"] == sum(game["bytes"] for game in figures["games"].values())
    shown = capsys.readouterr().out
    assert all(game in shown for game in TWO_GAMES)
    assert compute_stats(str(data), workers=1)["Counting"].to_json() == counting


def test_bad_arguments(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["verify", str(data), "--workers", "0"], ["stats", str(data), "--workers", "0"]):
        assert execute(["data", *argv]) == 2
        assert "--workers is at least 1" in capsys.readouterr().err
    assert execute(["data"]) == 2
    assert execute(["data", "verify"]) == 2
    assert execute(["data", "stats", str(data / "gone")]) == 2
