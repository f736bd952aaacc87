"""Ends of episodes and of epochs: what is bootstrapped, and what goes on."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from exploration.agent.loss import lambda_returns, vtrace_returns
from exploration.agent.replay_buffer import ReplayBuffer
from exploration.algorithm import AutoExploreConfig
from tests.fixtures.explorers import SMALL, small_explorer

STEPS, VALUE, GAMMA = 6, 10.0, 0.9


class ShortWorld(gymnasium.Env):
    """A game that ends (not: is cut off) in its sixth step, with a reward of 1 for each step."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self.steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        frame_HWC = np.full((64, 64, 3), self.steps, np.uint8)
        return frame_HWC, 1.0, self.steps == STEPS, False, {}


@pytest.mark.parametrize("episodic", [True, False])
def test_without_episodic_returns_the_value_after_the_end_of_a_game_counts(
    episodic: bool, ray_cluster: None
) -> None:
    """Play, store and sample whole games; the network's values are VALUE everywhere.

    Of the last step the return is 1, or 1 + GAMMA * VALUE if it is bootstrapped from the last
    frame.
    """
    config = AutoExploreConfig().environment(ShortWorld)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=1)
    config.training(**{**SMALL, "steps_per_epoch": 2 * STEPS, "episodic_returns": episodic})
    algorithm: Any = config.debugging(log_level="ERROR").build_algo()
    try:
        algorithm._collect()
        replay: ReplayBuffer = algorithm.replay
    finally:
        algorithm.stop()
    games = [fragment for fragment in replay.fragments if len(fragment) == STEPS]
    assert games
    for fragment in games:
        assert fragment.frames_THWC[:, 0, 0, 0].tolist() == list(range(STEPS + 1))
        assert fragment.terminated == episodic
    arrays = replay.sample(64, STEPS)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    values_BT1 = torch.full((64, STEPS + 1), VALUE)
    ends = batch["rewards"], values_BT1, batch["terminated"], batch["valid"]
    lambda_BT = lambda_returns(*ends, GAMMA, 0.0)
    vtrace_BT, _ = vtrace_returns(*ends, torch.ones(64, STEPS), GAMMA, 0.0)
    last_BT = batch["valid"] & (batch["obs"][:, 1:, 0, 0, 0] == STEPS)
    assert last_BT.sum() > 10
    expected = 1.0 if episodic else 1.0 + GAMMA * VALUE
    for returns_BT in (lambda_BT, vtrace_BT):
        torch.testing.assert_close(returns_BT[last_BT], torch.full((int(last_BT.sum()),), expected))
        inner_BT = batch["valid"] & ~last_BT
        torch.testing.assert_close(
            returns_BT[inner_BT], torch.full((int(inner_BT.sum()),), 1.0 + GAMMA * VALUE)
        )


def test_an_episode_goes_on_from_one_epoch_to_the_next(ray_cluster: None) -> None:
    algorithm: Any = small_explorer(steps_per_epoch=12, envs=2, max_steps=30).build_algo()
    try:
        for _ in range(3):
            algorithm._collect()
        lengths = sorted(len(fragment) for fragment in algorithm.replay.fragments)
    finally:
        algorithm.stop()
    assert lengths == [6, 6, 30, 30]
