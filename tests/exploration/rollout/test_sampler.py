"""Rollouts of env runners: what they hold, and playing on while the learner updates."""

import os
import signal
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from envs.episodes.frame_distance import FrameDistance
from envs.utils.run_dir import read_metrics
from envs.utils.screen_hash import distinct_screens
from exploration import explore
from exploration.algorithm import DEFAULTS
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from tests.fixtures.explorers import ActionScorer, small_explorer


def test_a_rollout_holds_exactly_what_was_played(ray_cluster, monkeypatch):
    settings = small_explorer(scorer=ActionScorer, steps_per_epoch=12, reward_clipping=True)
    algorithm: Any = settings.build_algo()
    try:
        runner, episodes = algorithm.env_runner, []
        sample = runner.sample

        def record() -> Any:
            episodes[:] = sample()
            return episodes

        monkeypatch.setattr(runner, "sample", record)
        reference = FrameDistance(np.zeros((1, 64, 64, 3), np.uint8))
        algorithm.set_references({"Counting": reference})
        rollout = ray.get(ray.put(runner.play(algorithm._play_settings())))
        algorithm._add(rollout)
        stored = algorithm.replay.fragments
    finally:
        algorithm.stop()
    assert rollout.steps == sum(map(len, episodes)) == 24
    assert len(stored) == len(episodes) == 2
    screens, distances = set(), []
    for fragment, episode in zip(stored, episodes, strict=True):
        frames = episode.observations.get()
        np.testing.assert_array_equal(fragment.frames_THWC, frames)
        np.testing.assert_array_equal(fragment.actions_T, episode.actions.get())
        np.testing.assert_array_equal(fragment.rewards_T, episode.rewards.get())
        outputs = episode.extra_model_outputs
        np.testing.assert_array_equal(fragment.log_probabilities_T, outputs["action_logp"].get())
        for name, states_TD in (("h", fragment.h_TD), ("c", fragment.c_TD)):
            after_TD = outputs["state_out"].get()[name].astype(np.float16)
            np.testing.assert_array_equal(states_TD[1:], after_TD[:-1])
            assert states_TD.flags.owndata, "nothing stays in Ray's object store"
        screens |= distinct_screens(frames)
        distances.append(reference(frames[1::4]))
    assert algorithm.screens == {"Counting": screens}
    np.testing.assert_array_equal(algorithm.distances["Counting"], np.concatenate(distances))


def test_a_run_whose_runners_play_on_can_be_resumed(ray_cluster, tmp_path):
    config = explore_preset("debug", max_staleness=1, min_replay_ratio=0.01, epochs=2)
    out, reward = tmp_path / "run", RewardConfig("count-bonus")
    explore(["Counting"], None, out, config=config, reward=reward)
    longer = replace(config, epochs=4)
    explore(["Counting"], None, out, config=longer, reward=reward, resume=True)
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    updates = config.updates_per_epoch
    # The rollout in flight at the end of a process is lost: the next one begins with a fresh one.
    assert [row["explore/staleness_max"] for row in rows] == [0, updates, 0, updates]
    assert [row["explore/rollouts_in_flight"] for row in rows] == [1] * 4
    assert [row["explore/env_steps"] for row in rows] == [24, 48, 72, 96]
    assert [row["explore/replay_steps"] for row in rows] == [24, 48, 72, 96]


def asynchronous(max_staleness: int) -> Any:
    """Build an algorithm of two runners with 20 steps and one update an epoch."""
    sizes = {"steps_per_epoch": 10, "min_replay_ratio": 0.01, "max_staleness": max_staleness}
    return small_explorer(runners=2, **sizes).build_algo()


def pids(algorithm: Any) -> list[int]:
    """Return the processes of the runners."""
    return algorithm.env_runner_group.foreach_env_runner(
        lambda runner: os.getpid(), local_env_runner=False
    )


def sampling(algorithm: Any) -> dict[str, float]:
    """Train an epoch; return its largest staleness, and the counts of rollouts."""
    result = algorithm.train()["sampling"]
    return {"staleness": float(result["staleness"]["max"]), **result["rollouts"]}


@pytest.mark.slow
def test_a_runner_that_is_late_is_awaited_before_its_rollout_is_too_old(ray_cluster):
    algorithm = asynchronous(max_staleness=2)
    try:
        sampling(algorithm)
        slow = pids(algorithm)[0]
        sampling(algorithm)
        os.kill(slow, signal.SIGSTOP)
        waker = threading.Timer(8.0, os.kill, (slow, signal.SIGCONT))
        waker.start()
        seen = []
        while waker.is_alive():
            seen.append(sampling(algorithm))
            assert len(seen) <= 3, "the epochs do not go on without the runner"
        seen.append(sampling(algorithm))
        assert max(row["staleness"] for row in seen) == 2
        assert seen[-1]["lost"] == seen[-1]["stale"] == 0
        assert len(algorithm.replay) >= 40 * (2 + len(seen))
    finally:
        os.kill(slow, signal.SIGCONT)
        algorithm.stop()


@pytest.mark.slow
def test_lost_and_outdated_rollouts_are_counted(ray_cluster):
    algorithm = asynchronous(max_staleness=1)
    try:
        sampling(algorithm)
        killed = pids(algorithm)[0]
        os.kill(killed, signal.SIGSTOP)  # so that a rollout of it is in flight when it dies
        threading.Timer(3.0, os.kill, (killed, signal.SIGKILL)).start()
        rows = [sampling(algorithm) for _ in range(3)]
        assert rows[-1]["lost"] == 1
        for _ in range(60):
            if len(set(pids(algorithm)) - {killed}) == 2:
                break
            sampling(algorithm)
        else:
            pytest.fail("the runner was not replaced")
        before = sampling(algorithm)
        assert before["in_flight"] == 2
        steps = len(algorithm.replay)
        algorithm.set_state(algorithm.get_state())  # an agent that replaces this one
        after = sampling(algorithm)
        assert after["stale"] == before["stale"] + 2
        assert after["staleness"] == 0
        assert len(algorithm.replay) >= steps + 40
    finally:
        algorithm.stop()


def test_waiting_for_all_runners_is_the_default():
    assert DEFAULTS["max_staleness"] == 0
