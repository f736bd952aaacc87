"""Rollouts of env runners: what they hold."""

from typing import Any

import numpy as np
import ray

from envs.episodes.frame_distance import FrameDistance
from envs.utils.screen_hash import distinct_screens
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
