"""Learning on a two-armed world, whole runs, resuming, and killed processes."""

import json
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from exploration import explore, load_policy
from exploration.agent.checkpoint import complete_checkpoints, load_checkpoint
from exploration.agent.config import LossConfig
from exploration.agent.policy import behaviour_log_probabilities
from exploration.agent.replay_buffer import ReplayBuffer
from exploration.algorithm import AutoExplore, AutoExploreConfig
from exploration.config import PRESETS, ExploreConfig, epsilon_at, explore_preset
from exploration.metrics import evaluation_metrics, policy_metrics, warn_if_blind
from exploration.reward.factory import RewardConfig
from exploration.reward.scorers import ClipRewards, LocalScorer
from tests.fixtures.explorers import small_explorer
from worldmodel.config import WINDOW


class TwoArmedWorld(gymnasium.Env):
    """Two actions, noise to look at, episodes of 20 steps.

    It has no reward of its own: the reward is the scorer's.
    """

    def __init__(self, config=None):
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)

    def _look(self):
        return self.np_random.integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 20
        return self._look(), {}

    def step(self, action):
        self.left -= 1
        return self._look(), 0.0, False, self.left == 0, {}


class ArmScorer:
    """Scorer that is uncertain about windows that end with one of the two actions."""

    def __init__(self, arm):
        self.arm = arm

    def __call__(self):
        return self

    def submit(self, frames_THWC, actions_T, top_fraction):
        rewards_B = (actions_T[WINDOW - 2 :] == self.arm).astype(np.float32)
        return lambda: ClipRewards(rewards_B)


SMALL = {"channels": (4, 4, 4, 4), "lstm_dim": 8}


def two_armed(arm: int, seed: int, envs: int = 2, **settings):
    """Build the real algorithm, with its runner, connector, replay buffer and learner."""
    config = AutoExploreConfig().environment(TwoArmedWorld).explore_settings(scorer=ArmScorer(arm))
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
    config.training(**SMALL, **settings).debugging(seed=seed, log_level="ERROR")
    return config.build_algo()


def probability_of_rewarded_arm(seed: int) -> float:
    """Train six epochs; return the least probability of the rewarded arm over 20 noise frames."""
    arm = seed % 2
    sizes = {"steps_per_epoch": 20, "updates_per_epoch": 10, "batch_size": 8, "seq_len": 10}
    algorithm = two_armed(arm, seed, envs=4, lr=1e-2, gamma=0.9, precision="fp32", **sizes)
    try:
        for _ in range(6):
            algorithm.train()
        network = algorithm.network()
    finally:
        algorithm.stop()
    frames = torch.randint(0, 256, (1, 20, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits_BTA, _, _ = network(frames, network.start_state(1))
    return float(logits_BTA.softmax(-1)[0, :, arm].min())


@pytest.mark.slow
def test_the_agent_learns_the_rewarded_arm_over_three_seeds(ray_cluster):
    likely = {seed: probability_of_rewarded_arm(seed) for seed in range(3)}
    assert min(likely.values()) > 0.9, likely


def test_learning_continues_exactly_from_a_state(ray_cluster):
    sizes = {"steps_per_epoch": 15, "updates_per_epoch": 2, "batch_size": 4, "seq_len": 5}
    first, second = (two_armed(1, seed, epsilon_epochs=4, **sizes) for seed in (0, 1))
    try:
        first.train()
        first.train()
        second.set_state(first.get_state())
        assert second.iteration == 2
        assert math.isclose(second.epsilon, 0.1 + (0.01 - 0.1) / 2)
        assert len(second.replay) == len(first.replay) == 60
        before = second.network().policy.weight
        for _ in range(3):  # the same segments, optimizer and weights give the same weights again
            for algorithm in (first, second):
                algorithm.updates.make_epoch(algorithm.replay)
        for name, tensor in first.network().state_dict().items():
            assert torch.equal(tensor, second.network().state_dict()[name]), name
        assert not torch.equal(before, first.network().policy.weight)
    finally:
        first.stop()
        second.stop()


@pytest.mark.parametrize("burst_exponent", [0.0, 2.5])
def test_stored_log_probabilities_are_exact(burst_exponent, ray_cluster):
    """They are those of the network that acted, epsilon included, and 0 for a held action."""
    sizes = {"steps_per_epoch": 30, "updates_per_epoch": 3, "batch_size": 4, "seq_len": 5}
    explore = {"epsilon": 0.3, "temperature": 1.5, "burst_exponent": burst_exponent}
    algorithm = two_armed(1, seed=0, lr=0.05, **explore, **sizes)
    try:
        algorithm.train()
        algorithm.replay = ReplayBuffer(1_000)
        algorithm._collect()
        network, epsilon, replay = algorithm.network(), algorithm.epsilon, algorithm.replay
    finally:
        algorithm.stop()
    assert network.policy.weight.abs().max() > 0.01
    assert len(replay) == 60
    bursts = 0
    for fragment in replay.fragments:
        state = [torch.from_numpy(x[:1].astype(np.float32)) for x in (fragment.h_TD, fragment.c_TD)]
        with torch.no_grad():
            logits, _, _ = network(torch.from_numpy(fragment.frames_THWC[None, :-1]), tuple(state))
        chosen = range(len(fragment)), fragment.actions_T
        expected = behaviour_log_probabilities(logits[0], epsilon, 1.5)[chosen].numpy()
        held = fragment.log_probabilities_T == 0
        bursts += held.sum()
        repeats = np.append(False, fragment.actions_T[1:] == fragment.actions_T[:-1])
        assert repeats[1:][held[1:]].all()
        free = ~held
        np.testing.assert_allclose(fragment.log_probabilities_T[free], expected[free], atol=2e-3)
        greedy = behaviour_log_probabilities(logits[0], 0.0, 1.5)[chosen].numpy()
        assert not np.allclose(fragment.log_probabilities_T[free], greedy[free], atol=2e-3)
    assert (bursts > 0) == (burst_exponent > 0)


def test_measures_of_the_policy_leave_out_its_noise(ray_cluster):
    sizes = {"steps_per_epoch": 30, "updates_per_epoch": 1, "batch_size": 4, "seq_len": 5}
    noise = {"epsilon": 0.5, "noise_alpha": 0.3, "burst_exponent": 2.0}
    algorithm = two_armed(1, seed=0, lr=1e-9, **noise, **sizes)
    try:
        (sums,) = algorithm.train()["env_runners"]["games"].values()
    finally:
        algorithm.stop()
    # The untrained policy is uniform, whatever was played.
    assert sums["entropy"] / sums["steps"] == pytest.approx(math.log(2), abs=1e-3)
    played = [sums[f"action_{action}"] / sums["steps"] for action in range(2)]
    assert abs(played[0] - 0.5) > 0.01


GAMES = ["Airstriker-Genesis", "Kangaroo-Atari2600"]
COUNT_BONUS = RewardConfig("count-bonus")


def test_a_run_writes_an_agent_that_plays_and_can_be_resumed(ray_cluster, tiny_world, tmp_path):
    out = tmp_path / "run"
    config = explore_preset("debug", runners=0, epochs=3)
    resumed = {"games": GAMES, "model": tiny_world, "out": out, "resume": True, "seed": 3}
    explore(GAMES, tiny_world, out, config=replace(config, epochs=1), seed=3)
    with pytest.raises(InputError, match="already holds a run"):
        explore(GAMES, tiny_world, out, config=config, seed=3)
    best = explore(**resumed, config=config)
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["explore/epsilon"] for row in rows] == pytest.approx([0.1, 0.01, 0.01])
    assert [row["explore/replay_steps"] for row in rows] == [
        row["explore/env_steps"] for row in rows
    ]
    assert rows[0]["explore/env_steps"] >= 24
    assert rows[2]["explore/env_steps"] >= 72
    assert [("evaluation/intrinsic_return" in row) for row in rows] == [True, True, True]
    for row in rows:
        assert 0 <= row["explore/reward"] <= 1
        for game in GAMES:
            assert row[f"explore/screens/{game}"] >= 1
            assert 0 < row[f"explore/intrinsic_return/{game}"] <= 12
    agent = load_policy(best)
    agent.reset(0)
    assert 0 <= agent.act(np.zeros((64, 64, 3), np.uint8)) < 5
    about = json.loads((best / "config.json").read_text())["about"]
    returns = [row["evaluation/intrinsic_return"] for row in rows]
    assert about["evaluation_return"] == max(returns)
    assert about["epoch"] == 1 + returns.index(max(returns))
    assert not list(out.rglob("*.pkl"))

    checkpoints = complete_checkpoints(out)
    assert [path.name for path in checkpoints] == ["step-00000002", "step-00000003"]
    assert explore(**resumed, config=config) == best, "finished: nothing to do"
    load_policy(checkpoints[-1])
    for other in ({"games": GAMES[:1]}, {"config": replace(PRESETS["cpu"], runners=0)}):
        with pytest.raises(InputError, match="resume it as it was started"):
            explore(**{**resumed, "config": config, **other})
    (checkpoints[-1] / "arrays.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="sha256"):
        load_checkpoint(checkpoints[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"games": []}, "no game"),
        ({"games": ["NoSuchGame"]}, "NoSuchGame"),
        ({"games": ["Counting"] * 9}, "9 games need as many envs"),
        ({"reward": RewardConfig(scorer="oracle")}, "oracle"),
        ({"model": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_input_of_a_run_is_one_line(change, message, tmp_path):
    run = {"games": ["Counting"], "model": tmp_path, "out": tmp_path / "out"}
    with pytest.raises(InputError, match=message) as caught:
        explore(**{**run, "config": PRESETS["cpu"], **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("huge", {}, "huge"),
        ("cpu", {"epochs": 0}, "epochs"),
        ("cpu", {"runners": -1}, "runners"),
        ("cpu", {"top_fraction": 0.0}, "top_fraction"),
        ("cpu", {"top_fraction": 2.0}, "top_fraction"),
        ("cpu", {"epsilon": 1.5}, "epsilon"),
        ("cpu", {"updates_per_epoch": 0}, "updates_per_epoch"),
        ("cpu", {"lr": 0.0}, "lr"),
        ("cpu", {"burn_in": 20, "seq_len": 20}, "nothing is left to learn from"),
        ("cpu", {"min_replay_ratio": 0.0}, "min_replay_ratio"),
        ("cpu", {"random_starts": -1}, "random_starts"),
        ("cpu", {"burst_exponent": 1.0}, "burst_exponent"),
        ("cpu", {"noise_alpha": -0.3}, "noise_alpha"),
        ("cpu", {"sticky": 1.0}, "sticky"),
        ("cpu", {"max_staleness": -1}, "max_staleness"),
        ("cpu", {"max_staleness": 1, "runners": 0}, "needs runners"),
    ],
)
def test_bad_settings_are_one_line(preset, change, message):
    with pytest.raises(InputError, match=message) as caught:
        explore_preset(preset, **change)
    assert "\n" not in str(caught.value)


def test_updates_and_replay_follow_the_number_of_runners():
    config = AutoExploreConfig().training(**PRESETS["paper"].algorithm_settings())
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=4)
    assert (config.updates, config.capacity) == (200, 100_000)
    config.env_runners(num_env_runners=256)
    assert config.collected_per_epoch == 204_800
    assert config.capacity == 4 * 204_800
    assert config.updates == math.ceil(8 * 204_800 / (128 * 20))


def test_measures_of_a_policy_by_hand(capsys):
    blind = {"steps": 100.0, "entropy": 100 * math.log(2)}
    blind |= {"probability_0": 50.0, "probability_1": 50.0, "action_0": 40.0, "action_1": 60.0}
    metrics = policy_metrics("g", blind, ("0", "1"))
    assert metrics["explore/mutual_information/g"] == pytest.approx(0, abs=1e-9)
    assert (metrics["explore/action_share/g/0"], metrics["explore/action_share/g/1"]) == (0.4, 0.6)
    warn_if_blind(metrics)
    assert "does not look at the screen" in capsys.readouterr().out
    # Half of the screens call for one action, half for the other, with certainty.
    seeing = policy_metrics("g", blind | {"entropy": 0.0}, ("0", "1"))
    assert seeing["explore/mutual_information/g"] == pytest.approx(math.log(2))
    warn_if_blind(metrics | {"explore/mutual_information/h": 0.5})
    assert capsys.readouterr().out == ""
    assert policy_metrics("g", {"steps": 3.0}, ("0", "1")) == {}


def test_an_incomplete_evaluation_has_no_mean():
    games = {
        "a": {"reward": 6.0, "envs": 2.0, "dropped": 0.0},
        "b": {"reward": 1.0, "envs": 1.0, "dropped": 0.0},
    }
    whole = evaluation_metrics({"env_runners": {"games": games}})
    assert whole["evaluation/intrinsic_return"] == 2
    games["b"]["dropped"] = 1.0
    assert evaluation_metrics({"env_runners": {"games": games}}) == {
        "evaluation/intrinsic_return/a": 3
    }
    assert evaluation_metrics({}) == {}


def test_presets_and_schedule():
    paper = PRESETS["paper"]
    assert paper == ExploreConfig()
    assert (paper.epochs, paper.steps_per_epoch) == (300, 200)
    assert paper.runners * paper.envs_per_runner == 8
    assert (paper.updates_per_epoch, paper.batch_size, paper.seq_len) == (200, 128, 20)
    assert (paper.loss.gamma, paper.loss.lambda_, paper.loss.entropy_coeff) == (0.995, 0.95, 0.001)
    assert (paper.lr, paper.grad_clip) == (1e-4, 10.0)
    assert (paper.temperature, paper.top_fraction) == (1.0, 0.25)
    epsilon = paper.epsilon, paper.final_epsilon, paper.epsilon_epochs
    schedule = [epsilon_at(epoch, *epsilon) for epoch in (0, 75, 150, 299)]
    assert schedule == pytest.approx([0.1, 0.055, 0.01, 0.01])
    for wrong in (
        {"gamma": 1.5},
        {"returns": "montecarlo"},
        {"returns": "vtrace", "rho_clip": 0.0},
        {"target_entropy": 1.0},
    ):
        with pytest.raises(InputError):
            LossConfig(**wrong)


def test_a_model_that_no_runner_can_load_reaches_the_caller(ray_cluster, tmp_path):
    """RLlib would restart such a runner for ever."""
    config = small_explorer(scorer=partial(LocalScorer, tmp_path), envs=1, steps_per_epoch=10)
    algorithm = config.build_algo()
    try:
        with pytest.raises(InputError, match="no saved model"):
            algorithm.train()
    finally:
        algorithm.stop()


@pytest.mark.slow
def test_killed_game_and_killed_runner_do_not_stop_training(ray_cluster):
    algorithm = small_explorer(max_steps=30, runners=2, steps_per_epoch=10).build_algo()

    def pids(runner):
        return os.getpid(), [process.pid for process in runner.env.unwrapped.processes]

    def processes():
        runners = algorithm.env_runner_group
        return runners.foreach_env_runner(pids, local_env_runner=False)

    try:
        algorithm.train()
        steps = len(algorithm.replay)
        assert steps == 40
        (_, games), (runner, _) = processes()
        os.kill(games[0], signal.SIGKILL)
        algorithm.train()
        assert len(algorithm.replay) == steps + 40, "the runner opened its games again"
        os.kill(runner, signal.SIGKILL)
        algorithm.train()
        assert len(algorithm.replay) >= steps + 60, "the other runner played its steps"
        deadline = time.monotonic() + 60
        while len({pid for pid, _ in processes()}) < 2 and time.monotonic() < deadline:
            algorithm.train()
        runners = [pid for pid, _ in processes()]
        assert len(runners) == 2
        assert runner not in runners
    finally:
        algorithm.stop()


def test_a_swallowed_ctrl_c_still_ends_the_run(ray_cluster, tmp_path, monkeypatch):
    """Python drops what a finaliser raises: the epoch ends and is saved, and no other begins."""
    train = AutoExplore.train

    def interrupted(algorithm):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            pytest.fail("nothing was raised")
        return train(algorithm)

    monkeypatch.setattr(AutoExplore, "train", interrupted)
    config = explore_preset("debug", runners=0, epochs=50)
    with pytest.raises(KeyboardInterrupt):
        explore(["Counting"], None, tmp_path / "run", config=config, reward=COUNT_BONUS)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1]
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step-00000001"]
