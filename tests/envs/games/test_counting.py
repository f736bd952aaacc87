"""The counting env: frames that show their step and action."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.games.counting import read_step_and_action


@pytest.mark.filterwarnings("ignore:.*render modes.*")
@pytest.mark.parametrize("game", ["Counting"])
def test_gymnasium_checker(game: str) -> None:
    env = envs.make(game, max_steps=5)
    try:
        check_env(env)
    finally:
        env.close()


def test_counting_frames_say_step_and_action() -> None:
    env = envs.make("Counting", max_steps=300)
    frame, _ = env.reset()
    assert read_step_and_action(frame) == (0, -1)
    for step in range(1, 301):
        action = step * 7 % 5
        frame, reward, terminated, truncated, _ = env.step(np.int64(action))
        blurred = np.clip(frame * 0.7 + 20, 0, 255).astype(np.uint8)
        assert read_step_and_action(frame) == read_step_and_action(blurred) == (step, action)
        assert (reward, terminated, truncated) == (step, False, step == 300)
