"""Savestates: continuing from one gives the same frames, rewards and ends, bit for bit."""

from typing import Any

import numpy as np
import pytest

import envs
from envs.games.base import GameEnv
from envs.utils.errors import InputError


def play(env: Any, actions: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    frames, rewards = [], []
    for action in actions:
        frame, reward, terminated, truncated, _ = env.step(action)
        frames.append(frame)
        rewards.append(reward)
        if terminated or truncated:
            break
    return frames, rewards


@pytest.mark.parametrize(
    "game",
    ["Counting", "Corridor", "NoisyTV", "CoinRun", "Airstriker-Genesis", "PrivateEye-Atari2600"],
)
def test_a_game_continues_from_a_state_bit_for_bit(game: str) -> None:
    env: Any = envs.make(game, max_steps=100)
    generator = np.random.default_rng(0)
    count = int(env.action_space.n)
    path, later = (generator.integers(count, size=size) for size in (40, 60))
    env.reset(seed=1)
    before, _ = play(env, path)
    state = env.unwrapped.state()
    assert np.array_equal(state.frame_HWC, before[-1])
    expected = play(env, later)
    env.reset(seed=2)
    play(env, generator.integers(count, size=25))
    for _ in range(2):
        frame, _ = env.reset(options={"state": state})
        assert np.array_equal(frame, before[-1])
        frames, rewards = play(env, later)
        assert rewards == expected[1]
        assert np.array_equal(np.stack(frames), np.stack(expected[0]))
    # The episode that begins there has its own limit of steps.
    env.reset(options={"state": state})
    assert len(play(env, np.zeros(100, int))[0]) > 60 or game == "CoinRun"
    env.close()


def test_a_game_without_savestates_says_what_works() -> None:
    class Plain(GameEnv):
        game = "Plain"

    with pytest.raises(InputError, match=r"no savestates: explore it with .* dirichlet"):
        Plain().save_state()
