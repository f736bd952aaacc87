"""Policies that play without learning, and how a worker process gets the policy it plays by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.utils.errors import InputError


class Policy(Protocol):
    """Anything that plays."""

    def reset(self, seed: int) -> None:
        """Begin an episode; what follows depends on the seed and the frames alone."""

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """The action for the newest frame."""


class RandomPolicy:
    """Uniform over the game's actions, one a step (the paper's random agent)."""

    actions = len(ACTIONS)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """The next action, whatever the frame shows."""
        return int(self._generator.integers(self.actions))


class StickyPolicy:
    """Repeats its last action with probability `stickiness`, else draws one uniformly: walks further than chance."""

    actions = len(ACTIONS)

    def __init__(self, stickiness: float) -> None:
        self._stickiness = stickiness

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._action: int | None = None

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """The next action, whatever the frame shows."""
        if self._action is None or self._generator.random() >= self._stickiness:
            self._action = int(self._generator.integers(self.actions))
        return self._action


@dataclass(frozen=True)
class PolicySpec:
    """A policy that each worker process builds for itself."""

    name: str
    """Its name in the metadata of its episodes: policies of one name act alike on equal seeds and frames."""
    build: Callable[[], Policy]
    """Picklable factory. Raises InputError where the policy cannot be used."""


def builtin_policy(name: str) -> PolicySpec:
    """Return the policy called `random` (uniform over the actions, one a step) or `sticky:P` (repeats with P).

    Raises InputError for another name and for a P outside [0, 1).
    """
    kind, _, stickiness = name.partition(":")
    if name == "random":
        return PolicySpec("random", RandomPolicy)
    if kind != "sticky":
        raise InputError(f"policy {name!r} is not known: give random or sticky:P, or the policy of an agent")
    try:
        value = float(stickiness)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(f"policy {name!r}: give the probability to repeat, 0 or more and below 1")
    return PolicySpec(f"sticky{value:g}", partial(StickyPolicy, value))
