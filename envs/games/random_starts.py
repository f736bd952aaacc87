"""Episodes that begin differently although the emulator is deterministic."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class DrawnStarts(gymnasium.Wrapper[Frame, np.int64, Frame, np.int64]):
    """Env whose subclasses draw the beginning of each episode in `_begin`.

    They have a generator of their own, because that of the env may be part of a state. The seed of
    a reset seeds it too.
    """

    def __init__(self, env: gymnasium.Env[Frame, np.int64]) -> None:
        super().__init__(env)
        self._generator = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Reset the env and go to the beginning of an episode."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        start = self.env.reset(seed=seed, options=options)
        return self._begin(start, options)

    def _begin(
        self, start: tuple[Frame, dict[str, Any]], options: dict[str, Any] | None
    ) -> tuple[Frame, dict[str, Any]]:
        """Return the first frame of an episode, and its info. start: those of the reset."""
        raise NotImplementedError


class RandomStarts(DrawnStarts):
    """Env whose episodes begin after 0 to `steps` uniformly random steps.

    These steps count towards `max_steps` of the env. If the game ends in them, the episode begins
    at the game's own start.
    """

    def __init__(self, env: gymnasium.Env[Frame, np.int64], steps: int) -> None:
        super().__init__(env)
        self._max_random = steps

    def _begin(
        self, start: tuple[Frame, dict[str, Any]], options: dict[str, Any] | None
    ) -> tuple[Frame, dict[str, Any]]:
        frame, info = start
        actions = int(self.env.action_space.n)  # type: ignore[attr-defined]
        steps = self._generator.integers(self._max_random, endpoint=True)
        for action in self._generator.integers(actions, size=steps):
            frame, _, terminated, truncated, _ = self.env.step(action)
            if terminated or truncated:
                return self.env.reset(options=options)
        return frame, info
