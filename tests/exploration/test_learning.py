"""Learning to walk a corridor with both kinds of returns, and updates with two learners."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from envs.games.corridor import CELLS_PER_ROOM, ROOMS, CorridorEnv, read_cell
from exploration.agent.policy import Agent
from exploration.algorithm import AutoExploreConfig
from exploration.config import explore_preset
from exploration.reward.scorers import ClipRewards
from worldmodel.config import WINDOW

pytestmark = pytest.mark.slow

LAST_ROOM = (ROOMS - 1) * CELLS_PER_ROOM
TINY = {"channels": (4, 4, 8, 8), "lstm_dim": 16, "precision": "fp32"}


class ShortCorridor(CorridorEnv):
    """Episodes of 40 steps."""

    def __init__(self, config=None):
        super().__init__(max_steps=40)


class FarAwayScorer:
    """Scorer whose uncertainty grows with the position of the newest frame in the corridor."""

    def submit(self, frames_THWC, actions_T, top_fraction):
        cells_B = np.array([read_cell(frame) for frame in frames_THWC[WINDOW - 1 :]], np.float32)
        return lambda: ClipRewards(cells_B / (ROOMS * CELLS_PER_ROOM))


def corridor(seed: int, scorer: type = FarAwayScorer, **settings):
    config = AutoExploreConfig().environment(ShortCorridor).explore_settings(scorer=scorer)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=4)
    sizes = {"steps_per_epoch": 40, "updates_per_epoch": 16, "batch_size": 8, "seq_len": 10}
    learning = {"lr": 5e-3, "gamma": 0.9, "entropy_coeff": 0.01, "normalize_rewards": True}
    config.training(**TINY, **sizes, **(learning | settings))
    return config.debugging(seed=seed, log_level="ERROR").build_algo()


def farthest(agent: Agent, seed: int) -> int:
    """The farthest position in one episode."""
    env = CorridorEnv()
    frame, _ = env.reset(seed=seed)
    agent.reset(seed)
    cells = []
    for _ in range(40):
        frame, *_ = env.step(np.int64(agent.act(frame)))
        cells.append(env.cell)
    return max(cells)


@pytest.mark.parametrize("returns", ["lambda", "vtrace"])
def test_the_agent_walks_the_corridor_to_its_end_over_three_seeds(ray_cluster, returns):
    reached = {}
    for seed in range(3) if returns == "lambda" else range(1):
        algorithm = corridor(seed, returns=returns)
        try:
            untrained = farthest(Agent(algorithm.network(), 0.0, 1.0), seed)
            for _ in range(6):
                algorithm.train()
            reached[seed] = untrained, farthest(Agent(algorithm.network(), 0.0, 1.0), seed)
        finally:
            algorithm.stop()
    assert all(before < LAST_ROOM for before, _ in reached.values()), reached
    assert all(after >= LAST_ROOM for _, after in reached.values()), reached


def test_the_agent_learns_from_priorities_and_episodes_of_many_epsilons(ray_cluster):
    mixture = {"epsilon": 0.5, "final_epsilon": 0.5, "epsilon_spread": 4.0, "burst_exponent": 2.0}
    algorithm = corridor(0, priority_exponent=0.9, **mixture)
    try:
        untrained = farthest(Agent(algorithm.network(), 0.0, 1.0), 0)
        for _ in range(8):
            algorithm.train()
        trained = farthest(Agent(algorithm.network(), 0.0, 1.0), 0)
        returns = algorithm.bandit.get_state()
    finally:
        algorithm.stop()
    assert untrained < LAST_ROOM <= trained
    assert len(returns) == 8 * 4, "each env ends one episode in an epoch"


class RealisticScorer(FarAwayScorer):
    """Scorer with the level and the spread of a real uncertainty: 0.2 + 0.03 * depth."""

    def submit(self, frames_THWC, actions_T, top_fraction):
        depth_B = super().submit(frames_THWC, actions_T, top_fraction)().rewards_B
        return lambda: ClipRewards(0.2 + 0.03 * depth_B)


@pytest.mark.parametrize("preset", ["paper", "cpu"])
def test_a_reward_of_the_real_shape_is_climbed_with_the_losses_of(ray_cluster, preset):
    config = explore_preset(preset)
    loss = dataclasses.asdict(config.loss) | {"normalize_rewards": config.normalize_rewards}
    reached = []
    for seed in range(2):
        algorithm = corridor(seed, scorer=RealisticScorer, **loss)
        try:
            for _ in range(10):
                algorithm.train()
            reached.append(farthest(Agent(algorithm.network(), 0.0, 1.0), seed))
        finally:
            algorithm.stop()
    assert min(reached) >= LAST_ROOM, reached


def test_the_entropy_coefficient_brings_the_entropy_to_its_target(ray_cluster):
    algorithm = corridor(0, scorer=RealisticScorer, target_entropy=0.5, entropy_coeff=1e-3)
    try:
        entropies = [algorithm.train()["learning"]["entropy"] for _ in range(25)]
        assert algorithm.updates.entropy_scale > 1
        state = algorithm.get_state()
        assert state["entropy_scale"] == algorithm.updates.entropy_scale
    finally:
        algorithm.stop()
    assert np.mean(entropies[-5:]) / math.log(5) == pytest.approx(0.5, abs=0.15), entropies


def test_two_learners_make_the_update_of_one(ray_cluster):
    """Also if the parts of a batch differ in the number of steps to learn from."""
    config = AutoExploreConfig().explore_settings(games=["Corridor"], max_steps=30)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    sizes = {"steps_per_epoch": 30, "updates_per_epoch": 1, "batch_size": 4, "seq_len": 10}
    config.training(**TINY, **sizes, lr=5e-3).debugging(log_level="ERROR")
    copies = {learners: config.copy(copy_frozen=False) for learners in (0, 2)}
    algorithms = [
        copy.learners(num_learners=learners).debugging(seed=learners).build_algo()
        for learners, copy in copies.items()
    ]
    one, two = algorithms
    try:
        one.train()
        two.train()
        two.learner_group.set_state(one.learner_group.get_state())
        start = one.network().state_dict()
        for _ in range(3):
            batch = one.replay.sample_packed(4, 10)
            batch.columns["rewards"] = np.random.default_rng(1).random((4, 10), np.float32)
            batch.columns["learn"][::2, 3:] = False
            for algorithm in algorithms:
                algorithm.updates.make([batch])
        moved = 0.0
        for name, tensor in one.network().state_dict().items():
            torch.testing.assert_close(
                two.network().state_dict()[name], tensor, atol=1e-4, rtol=1e-3
            )
            moved = max(moved, float((tensor - start[name]).abs().max()))
        assert moved > 5e-3
    finally:
        for algorithm in algorithms:
            algorithm.stop()
