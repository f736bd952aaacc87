"""Epsilons of episodes: their family, the bandit that chooses among them, exact probabilities."""

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

from exploration.agent.bandit import ARMS, WINDOW, EpisodeBandit, epsilon_family
from exploration.algorithm import AutoExploreConfig
from tests.exploration.agent.test_policy import build_module
from tests.fixtures.explorers import small_explorer


def test_the_family_goes_from_epsilon_to_its_power():
    family = epsilon_family(0.4, 7.0)
    assert family[0] == pytest.approx(0.4)
    assert family[-1] == pytest.approx(0.4**8)
    assert np.log(family[1:]) - np.log(family[:-1]) == pytest.approx([np.log(0.4)] * (ARMS - 1))


def test_the_bandit_plays_the_better_arm_and_notices_when_it_changes():
    bandit, generator = EpisodeBandit(), np.random.default_rng(0)
    assert bandit.best() == 0, "without a return any arm may be the best"
    for good in (3, 6):
        played = []
        for _ in range(6 * WINDOW):
            odds = bandit.odds()
            assert odds[bandit.best()] == pytest.approx(0.5 + 0.5 / ARMS)
            played.append(int(generator.choice(ARMS, p=odds / odds.sum())))
            bandit.add([(played[-1], 100.0 * (played[-1] == good) + generator.normal(0, 30.0))])
        counts = np.bincount(played[-3 * WINDOW :], minlength=ARMS)
        assert counts[good] > 2 * np.delete(counts, good).max(), counts
    other = EpisodeBandit()
    other.set_state(bandit.get_state())
    assert other.get_state() == bandit.get_state()
    assert len(other.get_state()) == WINDOW


def test_each_episode_keeps_its_epsilon_and_its_probabilities_are_exact():
    module = build_module(epsilon_spread=2.0)
    odds = np.zeros(ARMS, np.float32)
    odds[[0, 5]] = 0.5
    module.set_exploration(0.8, 1.0, odds)
    torch.manual_seed(0)
    torch.nn.init.normal_(module.network.policy.bias, std=3.0)
    start = module.get_initial_state()
    state = {name: value[None].repeat(64, *[1] * value.ndim) for name, value in start.items()}
    frames = torch.zeros(64, 1, 64, 64, 3, dtype=torch.uint8)
    seen = []
    for _ in range(3):
        output = module.forward_exploration({Columns.OBS: frames, Columns.STATE_IN: state})
        policy = module.forward_inference({Columns.OBS: frames, Columns.STATE_IN: state})
        state = output[Columns.STATE_OUT]
        seen.append(state["arm"][:, 0].tolist())
        epsilon = torch.tensor(epsilon_family(0.8, 2.0))[state["arm"].long() - 1]
        probability = policy[Columns.ACTION_DIST_INPUTS][:, 0].softmax(-1)
        expected = (1 - epsilon) * probability + epsilon / probability.shape[-1]
        torch.testing.assert_close(output[Columns.ACTION_DIST_INPUTS][:, 0].exp(), expected)
    assert seen[0] == seen[1] == seen[2]
    assert set(seen[0]) == {1.0, 6.0}


def build(**settings) -> AutoExploreConfig:
    explorer = small_explorer(max_steps=5, envs=3, steps_per_epoch=12, **settings)
    return explorer.training(epsilon=0.5, epsilon_spread=3.0)


def test_returns_of_ended_episodes_reach_the_bandit(ray_cluster):
    algorithm = build().build_algo()
    try:
        algorithm.train()
        window = algorithm.bandit.get_state()
        assert len(window) == 6
        assert {value for _, value in window} == {15.0}, "1 + 2 + 3 + 4 + 5"
        assert all(0 <= arm < ARMS for arm, _ in window)
        state = algorithm.get_state()
        algorithm.bandit.set_state([])
        algorithm.set_state(state)
        assert algorithm.bandit.get_state() == window
    finally:
        algorithm.stop()
