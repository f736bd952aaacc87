"""Policies without learning, and the specs from which worker processes build their policy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.utils.errors import InputError


class Policy(Protocol):
    """A policy that plays episodes frame by frame."""

    def reset(self, seed: int) -> None:
        """Begin an episode, whose actions depend only on the seed and the frames."""

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the action for the newest frame."""


class RandomPolicy:
    """The paper's random agent: one uniformly random action per step."""

    actions = len(ACTIONS)
    """Number of actions of the game."""

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""
        return int(self._generator.integers(self.actions))


class StickyPolicy:
    """A random policy that repeats its last action with probability `stickiness`.

    It moves further through a game than uniform random play.
    """

    actions = len(ACTIONS)
    """Number of actions of the game."""

    def __init__(self, stickiness: float) -> None:
        self._stickiness = stickiness

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._action: int | None = None

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""
        if self._action is None or self._generator.random() >= self._stickiness:
            self._action = int(self._generator.integers(self.actions))
        return self._action


@dataclass(frozen=True)
class PolicySpec:
    """A policy that each worker process builds for itself."""

    name: str
    """Name in the episodes' metadata; policies of one name act alike on equal seeds and frames."""
    build: Callable[[], Policy]
    """Picklable factory; raises InputError if the policy cannot be used."""


def builtin_policy(name: str) -> PolicySpec:
    """Return the policy `random` or `sticky:P`, which repeats an action with probability P.

    Raises: InputError for another name and for a P outside [0, 1).
    """
    kind, _, stickiness = name.partition(":")
    if name == "random":
        return PolicySpec("random", RandomPolicy)
    if kind != "sticky":
        raise InputError(
            f"policy {name!r} is not known: give random or sticky:P, or the policy of an agent"
        )
    try:
        value = float(stickiness)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(f"policy {name!r}: give a probability to repeat in [0, 1)")
    return PolicySpec(f"sticky{value:g}", partial(StickyPolicy, value))
