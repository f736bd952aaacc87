"""A policy of your own.

autoexplore collect Counting --policy examples.policy:ZigZag --out data/zigzag
"""

import numpy as np


class ZigZag:
    """Run right and left in turn, for up to 30 steps each, with a jump now and then."""

    def __init__(self, actions: int) -> None:
        self.actions = actions

    def reset(self, seed: int) -> None:
        """Begin an episode, which the seed makes reproducible."""
        self.random, self.action, self.left = np.random.default_rng(seed), 0, 0

    def act(self, frame: np.ndarray) -> int:
        """Return an action from 0 to `actions` - 1 for a frame, uint8 (64, 64, 3)."""
        if self.left == 0:
            self.action, self.left = 1 - self.action, int(self.random.integers(10, 31))
        self.left -= 1
        return self.actions - 1 if self.random.random() < 0.1 else self.action
