"""Episodes that begin differently although the emulator is deterministic."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class RandomStarts(gymnasium.Wrapper[Frame, np.int64, Frame, np.int64]):
    """Env whose episodes begin after 0 to `steps` uniformly random steps.

    These steps count towards `max_steps` of the env. If the game ends in them, the episode begins
    at the game's own start.
    """

    def __init__(self, env: gymnasium.Env[Frame, np.int64], steps: int) -> None:
        super().__init__(env)
        self._max_random = steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Reset the env and play the random steps, drawn by the env's generator."""
        frame, info = self.env.reset(seed=seed, options=options)
        actions = int(self.env.action_space.n)  # type: ignore[attr-defined]
        steps = self.env.unwrapped.np_random.integers(self._max_random, endpoint=True)
        for action in self.env.unwrapped.np_random.integers(actions, size=steps):
            frame, _, terminated, truncated, _ = self.env.step(action)
            if terminated or truncated:
                return self.env.reset(options=options)
        return frame, info
