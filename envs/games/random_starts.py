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
        # The env's own generator may be part of a state that it continues from.
        self._generator = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Reset the env and play the random steps. `seed` also seeds these."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        frame, info = self.env.reset(seed=seed, options=options)
        actions = int(self.env.action_space.n)  # type: ignore[attr-defined]
        steps = self._generator.integers(self._max_random, endpoint=True)
        for action in self._generator.integers(actions, size=steps):
            frame, _, terminated, truncated, _ = self.env.step(action)
            if terminated or truncated:
                return self.env.reset(options=options)
        return frame, info
