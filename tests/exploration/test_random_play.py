"""An expert beside random play: equal steps, new episodes, and the warning."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.controls import ACTIONS, COINRUN_ACTIONS
from envs.games.corridor import CELLS_PER_ROOM, ROOMS, START, read_cell
from envs.games.counting import read_step_and_action
from exploration.agent.config import PolicyConfig
from exploration.agent.policy import CnnLstm, save_policy
from exploration.config import PRESETS
from exploration.random_play import compare_with_random, play_side_by_side, report_depth
from exploration.rollout.vector_env import close_vector_env, vector_env
from tests.envs.games.test_coinrun import needs_game

CONFIG = replace(PRESETS["debug"], max_steps=30, evaluation_episodes=3, evaluation_steps=70)


def agent_that_holds(action: str, run: Path, actions: tuple[str, ...] = ACTIONS) -> Path:
    """Save the best agent of a run, which plays one action whatever it sees."""
    network = CnnLstm(PolicyConfig(channels=(4, 4, 4, 4), lstm_dim=8, actions=actions))
    with torch.no_grad():
        network.policy.bias[actions.index(action)] = 50.0
    save_policy(run / "best", network, {"evaluation_return": 12.5})
    return run


def test_a_good_agent_is_compared_with_random_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 30 steps to the right all from the 19th on are in the last room, whose reward is 1."""
    run = agent_that_holds("right", tmp_path)
    config = replace(CONFIG, random_starts=0)
    compared = compare_with_random(run, "Corridor", config=config, seed=0)
    assert json.loads((run / "random_play.json").read_text()) == compared
    cells = np.minimum(np.arange(1, 31) + START, ROOMS * CELLS_PER_ROOM - 1)
    rewards = cells // CELLS_PER_ROOM / (ROOMS - 1)
    expected = 2 * rewards.sum() + rewards[:10].sum()
    assert compared["expert"]["returns"] == pytest.approx([expected] * 3, rel=1e-6)
    assert compared["expert"]["screens"] == ROOMS * CELLS_PER_ROOM - START
    assert compared["expert"]["actions"] == {name: float(name == "right") for name in ACTIONS}
    assert sum(compared["random"]["actions"].values()) == pytest.approx(1.0)
    assert compared["expert"]["unlike"] > 0.2, "random play does not get to the last room"
    assert compared["expert"]["distance"] > 0.5
    assert compared["random"]["return"] == np.mean(compared["random"]["returns"])
    assert len(set(compared["random"]["returns"])) > 1
    assert compared["random"]["return"] < expected
    assert (compared["steps"], compared["evaluation_return"]) == (70, 12.5)
    assert compare_with_random(run, "Corridor", config=config, seed=0) == compared
    report_depth(compared)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"mean of 3 x 70 steps: return {expected:.1f} of the expert" in printed
    assert "right is 100% of its actions" in printed
    assert "warning" not in printed


@needs_game
def test_both_play_in_the_levels_of_the_expert(tmp_path: Path) -> None:
    run = agent_that_holds("none", tmp_path, COINRUN_ACTIONS)
    config = replace(CONFIG, random_starts=0, evaluation_steps=8)
    one = compare_with_random(run, "CoinRun", config=config, seed=0, options=(("levels", 1),))
    many = compare_with_random(run, "CoinRun", config=config, seed=0)
    alone = replace(config, evaluation_episodes=1)
    single = compare_with_random(run, "CoinRun", config=alone, seed=0, options=(("levels", 1),))
    assert one["expert"]["screens"] == single["expert"]["screens"] < many["expert"]["screens"]


def test_an_expert_that_is_not_better_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = agent_that_holds("left", tmp_path)
    report_depth(compare_with_random(run, "Corridor", config=CONFIG, seed=0))
    assert "warning: the expert is not better than random play" in capsys.readouterr().out
    # The reward of this game does not depend on the actions.
    config = replace(CONFIG, random_starts=0)
    equal = compare_with_random(run, "Counting", config=config, seed=0)
    assert equal["expert"]["return"] == equal["random"]["return"] == 2 * 465 + 55
    report_depth(equal)
    assert "not better" in capsys.readouterr().out


class Recorder:
    """Policy that keeps the frames it sees in each episode."""

    def __init__(self) -> None:
        self.episodes: list[list[Any]] = []

    def reset(self, seed: int) -> None:
        self.episodes.append([])

    def act(self, frame_HWC: Any) -> int:
        self.episodes[-1].append(frame_HWC)
        return 0


def test_each_policy_begins_an_episode_with_its_first_frame() -> None:
    policies = [Recorder(), Recorder()]
    env = vector_env(["Counting", "Corridor"], 5)
    try:
        played = play_side_by_side(policies, env, 12, [1, 2])
    finally:
        close_vector_env(env)
    assert played[0].value == 15 + 15 + 1 + 2
    assert played[0].actions == [0] * 12
    assert [read_step_and_action(frame)[0] for frame in played[0].frames] == [1, 5, 4]
    for episode in policies[0].episodes:
        steps = [read_step_and_action(frame)[0] for frame in episode]
        assert steps == list(range(len(steps)))
    assert all(read_cell(episode[0]) == START for episode in policies[1].episodes)
    assert [len(policy.episodes) for policy in policies] == [3, 3]
