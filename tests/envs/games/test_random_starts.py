"""Random starts: episodes differ, seeds repeat them, and an ended game begins anew."""

import gymnasium
import numpy as np

from envs.games.counting import CountingEnv
from envs.games.random_starts import RandomStarts


def test_episodes_begin_differently_and_a_seed_repeats_them() -> None:
    first, second = (RandomStarts(CountingEnv(), 10) for _ in range(2))
    starts = [first.reset(seed=3)[0], *(first.reset()[0] for _ in range(30))]
    assert len({start.tobytes() for start in starts}) > 20
    assert np.array_equal(second.reset(seed=3)[0], starts[0])
    assert np.array_equal(second.reset()[0], starts[1])
    plain = RandomStarts(CountingEnv(), 0)
    assert np.array_equal(plain.reset(seed=1)[0], CountingEnv().reset()[0])


class ShortGame(gymnasium.Env):
    """A game that ends in its third step."""

    observation_space = gymnasium.spaces.Box(0, 255, (1,), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.uint8), 0.0, self.steps == 3, False, {}


def test_a_game_that_ends_in_the_random_steps_starts_at_its_beginning() -> None:
    env = RandomStarts(ShortGame(), 9)
    starts = {int(env.reset(seed=seed)[0][0]) for seed in range(60)}
    assert starts == {0, 1, 2}
    env.reset(seed=0)
    assert not env.step(0)[2] or env.unwrapped.steps == 3
