"""Exploring from an archive: cells, weights, rounds, resuming, and episodes that play again."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from envs.archive.archive import Archive, Cell
from envs.archive.cells import CellGrid, fit_grid
from envs.archive.starts import ArchiveStarts
from envs.collect.policies import builtin_policy
from envs.collect.rerender import rerender_episode
from envs.episodes.dataset import EpisodeReader
from envs.games.base import GameState
from envs.games.corridor import CELLS_PER_ROOM, ROOMS, read_cell
from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from exploration import explore
from exploration.archive import ArchiveConfig, play_from_archive
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig

COUNTS, SCORE = RewardConfig("count-bonus"), RewardConfig("extrinsic")
CONFIG = ArchiveConfig(episodes=12, steps=20, round_episodes=4)


def cell(score: float = math.nan, chosen: int = 0, seen: int = 1, path: bytes = b"") -> Cell:
    state = GameState(b"state" + path, np.full((64, 64, 3), len(path), np.uint8))
    return Cell(state, path, 7, 1.5, score, chosen, seen)


def archive(**cells: Cell) -> Archive:
    known = {name.encode(): each for name, each in cells.items()}
    return Archive("Corridor", "", CellGrid(), cells=known)


def test_weights_by_hand() -> None:
    kept = archive(a=cell(0.1), b=cell(0.3, chosen=1), c=cell(0.2, seen=3), d=cell())
    deviation = np.std([0.1, 0.2, 0.3])
    z = np.array([-0.1, 0.1, 0.0]) / deviation
    expected = [math.exp(z[0]) / 2**0.5, math.exp(z[1]) / 4**0.5, 1 / 4**0.5, 1 / 2**0.5]
    np.testing.assert_allclose(kept.weights(), expected)
    counts = replace(kept, sharpness=0.0)
    np.testing.assert_allclose(counts.weights(), [2**-0.5, 0.5, 0.5, 2**-0.5])


def test_a_share_of_the_episodes_begins_at_the_start() -> None:
    kept = archive(a=cell())
    assert kept.choose() is kept.cells[b"a"]
    kept.start_share = 0.25
    starts = sum(kept.choose() is None for _ in range(400))
    assert 60 < starts < 140


def test_a_shorter_path_replaces_a_longer_one_and_the_least_are_dropped() -> None:
    kept = archive(a=cell(path=b"\0\1\2"))
    kept.add(b"a", cell(path=b"\3"))
    assert (kept.cells[b"a"].path, kept.cells[b"a"].seen) == (b"\3", 2)
    kept.add(b"a", cell(path=b"\3\4\5"))
    assert kept.cells[b"a"].path == b"\3"
    kept.add(b"b", cell())
    assert set(kept.cells) == {b"a", b"b"}
    kept.cells[b"a"].chosen = 100
    kept.max_cells = 1
    assert kept.shrink() == 1
    assert list(kept.cells) == [b"b"]


def test_an_archive_is_restored_exactly_and_only_for_its_game(tmp_path: Path) -> None:
    kept = archive(a=cell(0.5, 2, 3, b"\0\1"), b=cell(path=b"\2"))
    kept.rounds = 4
    kept.save(tmp_path / "archive")
    again = archive().load(tmp_path / "archive")
    assert (again.rounds, again.grid, list(again.cells)) == (4, kept.grid, list(kept.cells))
    for key, each in kept.cells.items():
        other = again.cells[key]
        assert (each.path, each.start_seed, each.reward) == (
            other.path,
            other.start_seed,
            other.reward,
        )
        assert (each.chosen, each.seen, str(each.score)) == (
            other.chosen,
            other.seen,
            str(other.score),
        )
        assert other.state.data == each.state.data
        np.testing.assert_array_equal(other.state.frame_HWC, each.state.frame_HWC)
    chosen = [kept.choose(), again.choose()]
    assert chosen[0].path == chosen[1].path  # type: ignore[union-attr]
    with pytest.raises(InputError, match="archive of game Corridor, not Counting"):
        Archive("Counting", "", CellGrid()).load(tmp_path / "archive")
    with pytest.raises(InputError, match="archive of rom_sha1"):
        Archive("Corridor", "other", CellGrid()).load(tmp_path / "archive")
    arrays = tmp_path / "archive" / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"arrays.npz .* the archive is damaged"):
        archive().load(tmp_path / "archive")


def test_the_grid_divides_frames_into_about_an_eighth_as_many_cells() -> None:
    env = envs.make("Corridor")
    env.reset(seed=0)
    frames = np.stack([env.step(np.int64(0))[0] for _ in range(48)])
    grid = fit_grid(np.concatenate([frames] * 4))
    cells = {grid.key(frame) for frame in frames}
    assert 8 <= len(cells) <= 48
    assert grid.key(frames[0]) != grid.key(frames[-1])


@pytest.fixture(scope="module")
def counted(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of the corridor, from an archive whose cells are chosen by their counts."""
    out = tmp_path_factory.mktemp("archive") / "counted"
    summary = play_from_archive(["Corridor"], None, out, CONFIG, COUNTS, seed=1)
    assert (summary.episodes, summary.played_episodes) == (12, 12)
    assert summary.frames == sum(record.num_frames for record in EpisodeReader(out).records) > 0
    return out


def content(folder: Path) -> list[Any]:
    reader = EpisodeReader(folder)
    episodes = [reader[index] for index in range(len(reader))]
    return [(each.session_id, each.info, each.frames_THWC.tobytes()) for each in episodes]


def test_episodes_begin_in_cells_and_play_again_bit_for_bit(counted: Path) -> None:
    reader = EpisodeReader(counted)
    episodes = [reader[index] for index in range(len(reader))]
    paths = [bytes.fromhex(each.info["path"]) for each in episodes]
    assert sum(len(path) > 0 for path in paths) == 8  # the first round begins at the start
    for each in episodes:
        env = envs.make("Corridor")
        again = rerender_episode(env, each)
        np.testing.assert_array_equal(again.frames_THWC, each.frames_THWC)
        assert each.policy_id == "archive-count-bonus-dirichlet0.3"


def test_the_result_does_not_depend_on_workers_or_interruption(
    counted: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    first = replace(CONFIG, episodes=4)
    play_from_archive(["Corridor"], None, one, first, COUNTS, seed=1, workers=1)
    # Killed between the manifest and the archive of the second round: it is played again.
    before = {file.name: file.read_bytes() for file in (one / "archive" / "Corridor").iterdir()}
    second = replace(CONFIG, episodes=8)
    play_from_archive(["Corridor"], None, one, second, COUNTS, seed=1, workers=1)
    for name, data in before.items():
        (one / "archive" / "Corridor" / name).write_bytes(data)
    summary = play_from_archive(["Corridor"], None, one, CONFIG, COUNTS, seed=1, workers=1)
    assert summary.episodes == 12
    assert content(one) == content(counted)
    again = play_from_archive(["Corridor"], None, one, CONFIG, COUNTS, seed=1)
    assert (again.episodes, again.played_episodes) == (12, 0)


def farthest(folder: Path) -> int:
    reader = EpisodeReader(folder)
    frames = [frame for index in range(len(reader)) for frame in reader[index].frames_THWC]
    return max(read_cell(frame) for frame in frames)


def test_an_archive_goes_farther_than_play_from_the_start(
    ray_cluster: None, tmp_path: Path
) -> None:
    """As many steps by the same policy: the archive by the game's reward reaches the last room."""
    config = ArchiveConfig(
        episodes=24, steps=12, round_episodes=4, policy=builtin_policy("random"), sharpness=2.0
    )
    play_from_archive(["Corridor"], None, tmp_path / "archive", config, SCORE, seed=0)
    envs.collect.collect(["Corridor"], tmp_path / "start", episodes=24, steps=12, seed=0)
    last_room = (ROOMS - 1) * CELLS_PER_ROOM
    assert farthest(tmp_path / "start") < last_room // 2
    assert farthest(tmp_path / "archive") >= last_room // 2
    record = json.loads((tmp_path / "archive" / "archive" / "Corridor" / "cells.json").read_text())
    assert max(entry["score"] for entry in record["cells"]) > 0


def test_a_world_model_scores_the_cells(
    ray_cluster: None, tiny_world: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, episodes=8)
    play_from_archive(["Counting"], tiny_world, tmp_path / "data", config, RewardConfig())
    record = json.loads((tmp_path / "data" / "archive" / "Counting" / "cells.json").read_text())
    scores = [entry["score"] for entry in record["cells"] if entry["score"] is not None]
    assert len(scores) > len(record["cells"]) / 2
    assert all(0 <= score <= 1 for score in scores)
    assert len(set(scores)) > 1


def test_a_share_of_an_agents_episodes_begins_at_the_cells(counted: Path) -> None:
    folder = counted / "archive"
    record = json.loads((folder / "Corridor" / "cells.json").read_text())
    start = read_cell(envs.make("Corridor").reset(seed=0)[0])
    for share, expected in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        env = ArchiveStarts(envs.make("Corridor"), folder, share)
        env.reset(seed=4)
        elsewhere = [read_cell(env.reset()[0]) != start for _ in range(200)]
        # One of the cells is the start itself.
        assert abs(np.mean(elsewhere) - expected) < 0.12 + expected / len(record["cells"])
    with pytest.raises(InputError, match="no archive"):
        ArchiveStarts(envs.make("Counting"), folder, 0.5)


@pytest.mark.slow
def test_an_agent_learns_from_an_archive(counted: Path, ray_cluster: None, tmp_path: Path) -> None:
    config = explore_preset("debug", archive_share=1.0)
    explore(["Corridor"], None, tmp_path / "run", config=config, reward=COUNTS, archive=counted)
    (last, *_) = reversed(read_metrics(tmp_path / "run"))
    assert last["explore/screens/Corridor"] > 0
    with pytest.raises(InputError, match=r"holds no archive of Counting: .* --policy archive"):
        explore(
            ["Counting"], None, tmp_path / "other", config=config, reward=COUNTS, archive=counted
        )


def test_an_archive_is_carried_on(counted: Path, tmp_path: Path) -> None:
    """Cells and visits of the earlier archive stay; the first round begins in its cells."""
    fewer = replace(CONFIG, episodes=4)
    play_from_archive(
        ["Corridor"], None, tmp_path / "next", fewer, COUNTS, previous=counted, seed=2
    )
    before, after = (
        archive().load(folder / "archive/Corridor") for folder in (counted, tmp_path / "next")
    )
    assert after.grid == before.grid
    assert after.rounds == 1
    assert all(after.cells[key].seen >= cell.seen for key, cell in before.cells.items())
    chosen = (sum(cell.chosen for cell in each.cells.values()) for each in (before, after))
    assert list(chosen) == [8, 12]
    reader = EpisodeReader(tmp_path / "next")
    assert all(reader[index].info["path"] for index in range(4))


def scores_of(folder: Path, game: str) -> dict[bytes, tuple[float, bool]]:
    """Return the score of each cell of an archive, and whether it is outdated."""
    cells = Archive(game, "", CellGrid()).load(folder / "archive" / game).cells
    return {key: (cell.score, cell.outdated) for key, cell in cells.items()}


@pytest.fixture(scope="module")
def served(ray_cluster: None, tiny_world: Path) -> Iterator[str]:
    from worldmodel import serve

    yield serve.deploy(tiny_world, serve.ServeConfig(app_name="archive-test", num_cpus=0.5))
    serve.shutdown("archive-test")


def test_the_reward_service_scores_cells_as_the_model_does(
    served: str, tiny_world: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, episodes=4)
    for name, reward in (
        ("local", RewardConfig(scorer="local")),
        ("served", RewardConfig(scorer="serve", app=served)),
    ):
        play_from_archive(["Counting"], tiny_world, tmp_path / name, config, reward)
    local, remote = (scores_of(tmp_path / name, "Counting") for name in ("local", "served"))
    assert list(local) == list(remote)
    np.testing.assert_allclose(
        [score for score, _ in local.values()], [score for score, _ in remote.values()], atol=1e-5
    )
    assert np.isfinite([score for score, _ in remote.values()]).sum() > len(remote) / 2


def test_cells_keep_their_scores_without_a_scorer_and_are_scored_again_with_one(
    served: str,
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An archive is carried on by a reward service that does not answer, then by one that does."""
    config = replace(CONFIG, episodes=4)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    alive = RewardConfig(scorer="serve", app=served)
    play_from_archive(["Counting"], tiny_world, first, config, alive)
    before = scores_of(first, "Counting")
    known = {key for key, (score, _) in before.items() if math.isfinite(score)}
    assert not any(before[key][1] for key in known)
    dead = RewardConfig(scorer="serve", app="no-such-app")
    with monkeypatch.context() as patched:  # the app was there when it was looked for
        patched.setattr("exploration.reward.factory.check_app", lambda *_: None)
        summary = play_from_archive(["Counting"], tiny_world, second, config, dead, previous=first)
    assert summary.played_episodes == 4, "play goes on"
    assert capsys.readouterr().out.count("cells keep their scores") == 1
    kept = scores_of(second, "Counting")
    assert {key: kept[key] for key in known} == {key: (before[key][0], True) for key in known}
    play_from_archive(["Counting"], tiny_world, third, config, alive, previous=second)
    renewed = {key for key, (_, outdated) in scores_of(third, "Counting").items() if not outdated}
    assert renewed & known, "cells that were reached again have new scores"
    # Scores of another reward have another unit: they are dropped.
    play_from_archive(
        ["Counting"], None, tmp_path / "counts", config, RewardConfig("count-bonus"), previous=first
    )
    assert all(
        math.isnan(score) for score, _ in scores_of(tmp_path / "counts", "Counting").values()
    )


def test_a_full_disk_leaves_the_old_archive_whole(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk fills up in the middle of the archive of the second round."""
    out = tmp_path / "data"
    argv = ["collect", "Corridor", "--policy", "archive:random", "--reward", "count-bonus"]
    argv += ["--steps", "20", "--workers", "1", "--out", str(out)]
    assert execute([*argv, "--episodes", "8"]) == 0
    before = {file.name: file.read_bytes() for file in (out / "archive/Corridor").iterdir()}

    def full_disk(file: Path, **arrays: Any) -> None:
        file.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full_disk)
        capsys.readouterr()
        assert execute([*argv, "--episodes", "16", "--resume"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "archive" in line]
    assert "cannot write the archive" in line
    assert "No space left on device" in line
    after = {file.name: file.read_bytes() for file in (out / "archive/Corridor").iterdir()}
    assert after == before
    assert [path.name for path in (out / "archive").iterdir()] == ["Corridor"], "no part is left"
    assert execute([*argv, "--episodes", "16", "--resume"]) == 0
    assert archive().load(out / "archive/Corridor").rounds == 2


@pytest.mark.slow
def test_a_game_without_savestates_says_what_works_instead(tmp_path: Path) -> None:
    """In processes of its own, in which a game has lost its savestates."""
    (tmp_path / "sitecustomize.py").write_text(
        "from envs.games.counting import CountingEnv\ndel CountingEnv.save_state\n"
    )
    command = [sys.executable, "-m", "experiments", "collect", "Counting", "--policy", "archive"]
    command += ["--reward", "count-bonus", "--episodes", "2", "--out", str(tmp_path / "data")]
    root = str(Path(envs.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "savestates" in line] or [done.stderr]
    assert "Counting has no savestates" in line
    assert "dirichlet:0.3" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "s3://bucket/data"}, "local folder"),
        ({"reward": RewardConfig()}, "needs a world model"),
        ({"games": ["NoSuchGame"]}, "NoSuchGame"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    usual = {"games": ["Corridor"], "model": None, "out": tmp_path, "config": CONFIG}
    with pytest.raises(InputError, match=message):
        play_from_archive(**{**usual, "reward": COUNTS, **arguments})  # type: ignore[arg-type]


def test_bad_settings() -> None:
    for wrong in ({"episodes": 0}, {"max_cells": 0}, {"sharpness": -1.0}, {"start_share": 2}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ArchiveConfig(**wrong)  # type: ignore[arg-type]
