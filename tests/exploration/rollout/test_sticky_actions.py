"""Sticky actions: how often an action is repeated, its probability, and what is recorded."""

import json
import math
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns

from envs.games.counting import read_step_and_action
from exploration import explore
from exploration.agent.rl_module import AgentModule
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from tests.exploration.agent.test_policy import build_module
from tests.fixtures.explorers import ActionScorer, small_explorer

ENVS, STEPS, ACTIONS = 64, 40, 5


def play(module: AgentModule, forward: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return actions and log-probabilities (ENVS, STEPS) of frames of noise, always the same."""
    torch.manual_seed(0)
    frames = np.random.default_rng(0).integers(
        256, size=(STEPS, ENVS, 1, 64, 64, 3), dtype=np.uint8
    )
    start = module.get_initial_state()
    state = {name: value[None].repeat(ENVS, 1) for name, value in start.items()}
    actions, log_probabilities = [], []
    for frames_B1HWC in torch.from_numpy(frames):
        output = getattr(module, forward)({Columns.OBS: frames_B1HWC, Columns.STATE_IN: state})
        state = output[Columns.STATE_OUT]
        actions.append(output[Columns.ACTIONS])
        log_probabilities.append(output[Columns.ACTION_LOGP])
    assert set(state) == set(start)
    return torch.cat(actions, 1), torch.cat(log_probabilities, 1)


def test_an_action_is_repeated_or_chosen_with_its_exact_probability() -> None:
    """The untrained policy is uniform: each action is chosen with probability 1/5."""
    actions_BT, logp_BT = play(build_module(sticky=0.5), "forward_exploration")
    repeated_BT = actions_BT[:, 1:] == actions_BT[:, :-1]
    assert abs(repeated_BT.float().mean() - 0.6) < 0.03
    expected_BT = torch.where(repeated_BT, math.log(0.5 + 0.5 / ACTIONS), math.log(0.5 / ACTIONS))
    torch.testing.assert_close(logp_BT[:, 1:], expected_BT.float())
    first_B = torch.full((ENVS,), math.log(1 / ACTIONS))
    torch.testing.assert_close(logp_BT[:, 0], first_B)
    assert len(set(actions_BT[:, 0].tolist())) == ACTIONS


def test_held_actions_of_a_burst_are_sticky_too() -> None:
    module = build_module(sticky=0.5, burst_exponent=1.5)
    module.set_exploration(1.0, 1.0)
    actions_BT, logp_BT = play(module, "forward_exploration")
    repeated_BT = actions_BT[:, 1:] == actions_BT[:, :-1]
    # Drawn, or held: where it is held the same action is certain, another one is played by
    # repeating alone.
    possible = {
        True: [0.5 + 0.5 / ACTIONS, 1.0, 0.5],
        False: [0.5 / ACTIONS, 0.5],
    }
    for repeated, probabilities in possible.items():
        found_N = logp_BT[:, 1:][repeated_BT == repeated].exp()
        distance_NP = (found_N[:, None] - torch.tensor(probabilities)).abs()
        assert distance_NP.min(1).values.max() < 1e-5
        assert (distance_NP.min(0).values < 1e-5).all(), "each of them happens"


def test_greedy_actions_of_evaluations_are_sticky_too() -> None:
    """The LSTM sees frames alone, so that the most likely actions are the same without it."""
    module = build_module(sticky=0.25, feature_norm=True)
    torch.manual_seed(1)
    with torch.no_grad():
        torch.nn.init.normal_(module.network.policy.weight, std=20.0)
        for weight in (module.network.lstm.weight_ih_l0, module.network.lstm.weight_hh_l0):
            weight.mul_(4.0)
    actions_BT, logp_BT = play(module, "forward_inference")
    module.sticky = 1e-9
    greedy_BT, _ = play(module, "forward_inference")
    previous_BT, played_BT, greedy_BT = actions_BT[:, :-1], actions_BT[:, 1:], greedy_BT[:, 1:]
    choice_BT = greedy_BT != previous_BT
    assert choice_BT.sum() > 300, "the policy changes its action"
    assert torch.equal(played_BT[~choice_BT], previous_BT[~choice_BT])
    repeats_BT = choice_BT & (played_BT == previous_BT)
    assert torch.equal(played_BT[~repeats_BT], greedy_BT[~repeats_BT])
    assert abs(repeats_BT.sum() / choice_BT.sum() - 0.25) < 0.06
    expected_BT = torch.where(choice_BT, torch.where(repeats_BT, 0.25, 0.75), 1.0)
    torch.testing.assert_close(logp_BT[:, 1:].exp(), expected_BT)


def test_the_recorded_action_is_the_one_that_was_played(ray_cluster: None) -> None:
    """Each frame of the game shows the action that led to it; the scorer checks its windows too."""
    config = small_explorer(scorer=ActionScorer, steps_per_epoch=60, envs=4, sticky=0.8)
    algorithm: Any = config.build_algo()
    try:
        algorithm._collect()
        fragments = algorithm.replay.fragments
    finally:
        algorithm.stop()
    repeats = []
    for fragment in fragments:
        shown = [read_step_and_action(frame)[1] for frame in fragment.frames_THWC[1:]]
        assert shown == fragment.actions_T.tolist()
        repeated_T = fragment.actions_T[1:] == fragment.actions_T[:-1]
        expected_T = np.where(repeated_T, 0.8 + 0.2 / ACTIONS, 0.2 / ACTIONS)
        np.testing.assert_allclose(np.exp(fragment.log_probabilities_T[1:]), expected_T, rtol=1e-4)
        repeats.append(repeated_T)
    assert len(fragments) == 4
    assert abs(np.mean(repeats) - 0.84) < 0.08


def test_stickiness_is_kept_in_the_records_of_run_and_agent(
    ray_cluster: None, tmp_path: Any
) -> None:
    config = explore_preset("debug", runners=0, epochs=1, sticky=0.25)
    best = explore(
        ["Counting"], None, tmp_path / "run", config=config, reward=RewardConfig("count-bonus")
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sticky"] == 0.25
    assert json.loads((best / "config.json").read_text())["about"]["sticky"] == 0.25
