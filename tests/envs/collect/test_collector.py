"""Collection with real actors on real games: equal frames for any number of workers."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from envs.collect.collector import collect
from envs.collect.policies import RandomPolicy, StickyPolicy, builtin_policy
from envs.collect.worker import CollectWorker, EpisodeKey, play_episode
from envs.collect.worker_pool import CollectSummary
from envs.controls import ACTIONS
from envs.episodes.dataset import EpisodeReader, EpisodeWriter, recorded_actions
from envs.games.counting import CountingEnv, read_step_and_action
from envs.games.retro import RetroEnv
from envs.utils.errors import InputError
from experiments.__main__ import execute
from exploration.agent.config import PolicyConfig
from exploration.agent.policy import CnnLstm, policy_spec, save_policy
from tests.fixtures.datasets import run, tree

# Actors cannot import a test file: its functions are pickled by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

GAME = "Airstriker-Genesis"
ATARI = "Kangaroo-Atari2600"


@pytest.fixture(scope="module")
def one_worker(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CollectSummary]:
    folder = tmp_path_factory.mktemp("collect") / "one"
    return folder, run([GAME, ATARI, "Counting"], folder, workers=1, seed=5)


def test_same_seed_same_bytes_whatever_the_workers(
    one_worker: tuple[Path, CollectSummary], tmp_path: Path
) -> None:
    folder, summary = one_worker
    other = run([GAME, f"{ATARI}-v0", "Counting"], tmp_path, workers=3, seed=5)
    assert tree(folder) == tree(tmp_path)
    assert len(tree(folder)) == 10
    for result in (summary, other):
        assert (result.episodes, result.frames, result.played_episodes, result.played_frames) == (
            9,
            369,
            9,
            369,
        )
        assert result.cpu_seconds > 0
        assert result.seconds > 0
        assert result.skipped == {}


def test_another_seed_plays_otherwise(
    one_worker: tuple[Path, CollectSummary], tmp_path: Path
) -> None:
    run(["Counting"], tmp_path, seed=6)
    actions = {
        tuple(item.actions)
        for folder in (one_worker[0], tmp_path)
        for item in EpisodeReader(folder)
    }
    assert len(actions) == 9 + 3


def test_actions_are_uniform_and_seeded_by_the_episode() -> None:
    policy = RandomPolicy()
    frame = np.zeros((64, 64, 3), np.uint8)
    policy.reset(EpisodeKey(GAME, "random", 0, 0).policy_seed)
    actions = [policy.act(frame) for _ in range(20_000)]
    assert np.abs(np.bincount(actions, minlength=5) / len(actions) - 0.2).max() < 0.01
    seeds = {
        EpisodeKey(GAME, "random", seed, number).policy_seed
        for seed in range(10)
        for number in range(100)
    }
    assert len(seeds) == 1000


def test_the_action_stored_with_a_frame_made_the_next_one(
    one_worker: tuple[Path, CollectSummary],
) -> None:
    """Check the alignment through actor, shard, manifest and reader."""
    reader = EpisodeReader(one_worker[0])
    counting = [item for item in reader if item.game == "Counting"]
    assert len(counting) == 3
    for item in counting:
        assert read_step_and_action(item.frames_THWC[0]) == (0, -1)
        for step, action in enumerate(item.actions):
            assert read_step_and_action(item.frames_THWC[step + 1]) == (step + 1, action)
        assert (item.rewards == np.arange(1, 41)).all()


def test_an_episode_says_how_to_play_it_again(one_worker: tuple[Path, CollectSummary]) -> None:
    item = next(item for item in EpisodeReader(one_worker[0]) if item.game == GAME)
    assert (item.console, item.init_state, item.frame_skip, item.seed) == (
        "Genesis",
        "Level1",
        4,
        5,
    )
    assert (item.policy_id, item.resize, len(item.rom_sha1)) == ("random", "letterbox-cv2-area", 40)
    env = RetroEnv(item.game, state=item.init_state, frame_skip=item.frame_skip)
    assert item.buttons == env.action_masks
    frames = [env.reset()[0], *(env.step(np.int64(action))[0] for action in item.actions)]
    env.close()
    assert (np.stack(frames) == item.frames_THWC).all()


def test_chosen_actions_are_kept_with_the_episodes(ray_cluster: None, tmp_path: Path) -> None:
    actions = ("right", "jump+right", "none")
    collect([GAME], tmp_path / "data", episodes=1, steps=20, actions=actions)
    item = EpisodeReader(tmp_path / "data")[0]
    assert (item.action_names, len(item.buttons)) == (actions, 3)
    assert recorded_actions([str(tmp_path / "data")]) == actions
    own = play_episode(
        CountingEnv(), RandomPolicy(), EpisodeKey("Counting", "random", 0, 0), steps=9
    )
    assert own.action_names == ACTIONS
    keys = [EpisodeKey(GAME, "random", 0, 0, chosen).id for chosen in ((), actions)]
    assert item.session_id == keys[1] != keys[0], "another episode"

    with pytest.raises(
        InputError, match=r"with the actions right, jump\+right, none, not right, l"
    ):
        collect([GAME], tmp_path / "data", episodes=2, steps=20)
    with pytest.raises(InputError, match="Counting has the actions"):
        collect(["Counting"], tmp_path / "other", episodes=1, steps=5, actions=actions)
    collect(["Counting"], tmp_path / "other", episodes=1, steps=5)
    with pytest.raises(InputError, match="a model has the same actions in all its data"):
        recorded_actions([str(tmp_path / name) for name in ("data", "other")])


def test_game_over_and_cut_off_are_told_apart() -> None:
    env = RetroEnv(GAME)
    over = play_episode(env, RandomPolicy(), EpisodeKey(GAME, "random", 0, 0), steps=2000)
    env.close()
    assert (over.terminated, over.truncated) == (True, False)
    assert 100 < len(over.actions) < 2000
    cut = play_episode(
        CountingEnv(), RandomPolicy(), EpisodeKey("Counting", "random", 0, 0), steps=9
    )
    assert (cut.terminated, cut.truncated, len(cut.actions)) == (False, True, 9)


def test_a_second_run_plays_only_what_is_missing(ray_cluster: None, tmp_path: Path) -> None:
    run(["Counting"], tmp_path, episodes=2)
    before = tree(tmp_path)
    split = EpisodeReader(tmp_path, "val").session_ids
    again = run(["Counting"], tmp_path, episodes=2)
    assert (again.episodes, again.played_episodes) == (2, 0)
    assert tree(tmp_path) == before
    more = run(["Counting", ATARI], tmp_path, episodes=4)
    assert (more.episodes, more.played_episodes) == (8, 6)
    assert {name for name in before if name != "manifest.json"} <= set(tree(tmp_path))
    assert set(split) <= set(EpisodeReader(tmp_path, "val").session_ids)
    with pytest.raises(InputError, match="give another folder"):
        run(["Counting"], tmp_path, steps=41)


def test_a_game_without_rom_is_skipped(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(["SonicTheHedgehog-Genesis", "Counting"], tmp_path)
    assert summary.skipped == {"SonicTheHedgehog-Genesis": "its ROM is not imported"}
    assert (summary.episodes, set(EpisodeReader(tmp_path).games)) == (3, {"Counting"})
    assert "SonicTheHedgehog-Genesis is skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("games", "options", "message"),
    [
        (["SonicTheHedgehog-Genesis"], {}, "no ROM for SonicTheHedgehog-Genesis: import"),
        ([], {}, "no game given"),
        (["Airstriker"], {}, "did you mean Airstriker-Genesis"),
        (["Counting"], {"episodes": 0}, "must be at least 1"),
        (["Counting"], {"steps": 0}, "must be at least 1"),
        (["Counting"], {"policy": "clever"}, "policy 'clever' is not known"),
        (["Counting"], {"policy": "checkpoint:/nowhere"}, "is not known: give random, sticky:P"),
    ],
)
def test_bad_input(tmp_path: Path, games: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run(games, tmp_path, **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_workers_load_no_torch(ray_cluster: None, tmp_path: Path) -> None:
    worker: Any = ray.remote(num_cpus=1)(CollectWorker).remote(str(tmp_path), RandomPolicy, 20)
    ray.get(worker.play.remote(EpisodeKey(ATARI, "random", 0, 0)))
    modules, megabytes = ray.get(
        worker.__ray_call__.remote(lambda self: (_modules(), _megabytes()))
    )
    ray.kill(worker)
    assert "stable_retro" in modules
    assert not modules & {"torch", "tensorboard", "matplotlib"}
    assert megabytes < 300


def _modules() -> set[str]:
    return set(sys.modules)


def _megabytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 2**20


def test_sticky_random_repeats_as_often_as_it_says() -> None:
    policy, frame = StickyPolicy(0.75), np.zeros((64, 64, 3), np.uint8)
    policy.reset(3)
    actions = np.array([policy.act(frame) for _ in range(20_000)])
    policy.reset(3)
    assert [policy.act(frame) for _ in range(50)] == actions[:50].tolist()
    # An action is followed by the same one where it is repeated, or drawn again: 0.75 + 0.25 / 5.
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(0.8, abs=0.01)
    assert np.bincount(actions, minlength=5) / len(actions) == pytest.approx(
        np.full(5, 0.2), abs=0.02
    )
    assert builtin_policy("sticky:0.75").name == "sticky0.75"
    for wrong in ("sticky:1", "sticky:-0.1", "sticky:", "sticky:much"):
        with pytest.raises(InputError, match="give a probability to repeat"):
            builtin_policy(wrong)


def test_collect_plays_sticky_random(ray_cluster: None, tmp_path: Path) -> None:
    command = ["collect", "Counting", "--policy", "sticky:0.9", "--episodes", "2", "--steps", "400"]
    assert execute([*command, "--out", str(tmp_path / "data")]) == 0
    played = list(EpisodeReader(tmp_path / "data"))
    assert [item.policy_id for item in played] == ["sticky0.9"] * 2
    for item in played:
        repeated = (item.actions[1:] == item.actions[:-1]).mean()
        assert repeated == pytest.approx(0.92, abs=0.05)  # 0.9, and a fifth of the draws


def test_an_agent_without_a_folder_is_refused() -> None:
    for name in ("checkpoint:/nowhere", "expert:", "expert:/nowhere"):
        with pytest.raises(InputError, match="there is no folder"):
            policy_spec(name)


def test_an_agent_is_named_by_its_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(seed)
        save_policy(tmp_path / name, CnnLstm(PolicyConfig(channels=(4, 4), lstm_dim=8)))
    names = [policy_spec(f"checkpoint:{tmp_path / name}", epsilon=0.1).name for name in "abc"]
    assert names[0] == names[1] != names[2]
    assert policy_spec(f"checkpoint:{tmp_path / 'a'}", epsilon=0.2).name != names[0]


def test_an_agent_plays_the_same_whatever_the_workers(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_policy(tmp_path / "agent", CnnLstm(PolicyConfig(channels=(4, 4), lstm_dim=8)))
    monkeypatch.chdir(tmp_path)
    for folder, workers in (("one", 1), ("two", 2)):
        spec = policy_spec("checkpoint:agent", epsilon=0.1)
        run([ATARI], tmp_path / folder, policy=spec, workers=workers, steps=20)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    played = list(EpisodeReader(tmp_path / "one"))
    assert {item.policy_id for item in played} == {
        policy_spec("checkpoint:agent", epsilon=0.1).name
    }
    assert len({tuple(item.actions) for item in played}) == 3
    (tmp_path / "agent" / "module.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a safetensors file, or a damaged one"):
        run([ATARI], tmp_path / "three", policy=policy_spec("checkpoint:agent"))


def test_a_folder_that_cannot_be_written_stops_the_run(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "env=Counting").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*env=Counting/part-"):
        run(["Counting"], tmp_path)


def test_collecting_into_a_folder_that_is_being_written(ray_cluster: None, tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path), pytest.raises(InputError, match="being written by"):
        run(["Counting"], tmp_path)
