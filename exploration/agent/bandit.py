"""Bandit that chooses how much an episode explores, by the returns of recent episodes (Agent57).

The arms are the epsilons of a family: `epsilon ** (1 + x * spread)` with x evenly from 0 to 1.
"""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ARMS = 8
WINDOW = 90
"""Newest episodes that count."""
RANDOM_SHARE = 0.5
"""Share of the episodes whose arm is drawn uniformly."""


def epsilon_family(epsilon: float, spread: float) -> NDArray[np.float32]:
    """Return the epsilon of each arm, the largest first (Horgan et al. 2018, Eq. 1)."""
    return np.float32(epsilon) ** (1 + np.linspace(0, 1, ARMS, dtype=np.float32) * spread)


class EpisodeBandit:
    """Upper confidence bounds of each arm's mean return over the newest episodes.

    Returns count from 0, the smallest of the window, to 1, the largest.
    """

    def __init__(self) -> None:
        self._window: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, episodes: Sequence[tuple[int, float]]) -> None:
        """Add the arm and the return of episodes that ended."""
        self._window.extend(episodes)

    def best(self) -> int:
        """Return the arm with the highest bound; one that was not played has none."""
        bounds = np.full(ARMS, math.inf)
        arms_N = np.array([arm for arm, _ in self._window], int)
        returns_N = np.array([value for _, value in self._window])
        for arm in np.unique(arms_N):
            own_N = returns_N[arms_N == arm]
            share = (own_N.mean() - returns_N.min()) / max(np.ptp(returns_N), 1e-9)
            bounds[arm] = share + math.sqrt(math.log(len(arms_N)) / len(own_N))
        return int(bounds.argmax())

    def odds(self) -> NDArray[np.float32]:
        """Return the probability of each arm in the next episodes."""
        odds_K = np.full(ARMS, RANDOM_SHARE / ARMS, np.float32)
        odds_K[self.best()] += 1 - RANDOM_SHARE
        return odds_K

    def get_state(self) -> list[list[float]]:
        """Return arms and returns of the window, as plain values."""
        return [[arm, value] for arm, value in self._window]

    def set_state(self, state: Sequence[Sequence[float]]) -> None:
        """Restore a state of `get_state`."""
        self._window.clear()
        self.add([(int(arm), float(value)) for arm, value in state])
