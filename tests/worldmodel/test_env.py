"""The world model as an env: Gymnasium's checker, the same frames as generation, seeds, an agent
that plays in it.
"""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from envs.utils.errors import InputError
from exploration.agent.config import PolicyConfig
from exploration.agent.policy import Agent, CnnLstm
from worldmodel import Dynamics, GenieReduxG, Tokenizer, WorldModelEnv, WorldModelVectorEnv, preset
from worldmodel.env import Rollout


@pytest.fixture(scope="module")
def model() -> GenieReduxG:
    torch.manual_seed(0)
    cfg = preset("debug")
    cfg = dataclasses.replace(cfg, dynamics=dataclasses.replace(cfg.dynamics, chunk_size=1))
    dynamics = Dynamics(cfg)
    for parameter in dynamics.parameters():  # fresh weights are too small for actions to show
        torch.nn.init.normal_(parameter, std=0.2)
    return GenieReduxG(Tokenizer(cfg), dynamics).eval()


def clips(count: int = 3, frames: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(count, frames, 64, 64, 3), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore:.*render modes.*")
def test_gymnasium_checker(model: GenieReduxG) -> None:
    env = WorldModelEnv(model, clips(), max_steps=5)
    check_env(env)
    assert env.action_space == gymnasium.spaces.Discrete(5)


@pytest.mark.parametrize("frames", [5, 20])
def test_a_rollout_is_generation_frame_by_frame(model: GenieReduxG, frames: int) -> None:
    given = torch.rand(2, 2, 3, 64, 64)
    actions = torch.randint(5, (2, frames + 1))
    whole = model.generate(given, actions, steps=2, temperature=0.0, mode="autoregressive")
    rollout = Rollout(model, given, actions[:, :1], steps=2)
    made = torch.stack([rollout.step(actions[:, 1 + step]) for step in range(frames)], 1)
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=0)


def test_films_are_seeded_and_truncated_together(model: GenieReduxG) -> None:
    env = WorldModelVectorEnv(model, clips(), num_envs=4, max_steps=3, temperature=1.0)

    def play(seed: int) -> list[NDArray[np.uint8]]:
        frames = [env.reset(seed=seed)[0]]
        for step in range(3):
            screens, rewards, terminated, truncated, _ = env.step(np.arange(4))
            frames.append(screens)
            assert not rewards.any()
            assert not terminated.any()
            assert truncated.tolist() == [step == 2] * 4
        return frames

    first, again, other = play(1), play(1), play(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    with pytest.raises(InputError, match=r"call reset\(\) first"):
        env.step(np.zeros(4, np.int64))


def test_actions_decide_what_is_seen(model: GenieReduxG) -> None:
    env = WorldModelVectorEnv(model, clips(count=1), num_envs=5)
    env.reset(seed=0)
    for _ in range(3):
        screens = env.step(np.arange(5))[0]
    assert len({screen.tobytes() for screen in screens}) > 1


def test_an_explorer_plays_in_it(model: GenieReduxG) -> None:
    torch.manual_seed(0)
    env, agent = (
        WorldModelEnv(model, clips(), max_steps=4),
        Agent(CnnLstm(PolicyConfig()), 0.1, 1.0),
    )
    screen, _ = env.reset(seed=0)
    agent.reset(0)
    truncated, steps = False, 0
    while not truncated:
        screen, _, _, truncated, _ = env.step(np.int64(agent.act(screen)))
        steps += 1
    assert steps == 4


def test_bad_input_is_named(model: GenieReduxG) -> None:
    with pytest.raises(
        InputError, match=r"start frames: expected uint8 \(N, P, 64, 64, 3\), got float64"
    ):
        WorldModelEnv(model, clips().astype(float))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="start actions: expected shape"):
        WorldModelEnv(model, clips(), start_actions=np.zeros((3, 2), np.int64))
    env = WorldModelEnv(model, clips())
    with pytest.raises(InputError, match=r"call reset\(\) first"):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"actions: expected integers in \[0, 4\]"):
        env.step(np.int64(5))
