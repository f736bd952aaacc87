"""Policies without learning, and the specs from which worker processes build their policy."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.games.base import GameEnv
from envs.utils.errors import InputError


class Policy(Protocol):
    """A policy that plays episodes frame by frame.

    It may have a `name` too, which errors then show.
    """

    def reset(self, seed: int) -> None:
        """Begin an episode, whose actions depend only on the seed and the frames."""

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the action for the newest frame."""


class GamePolicy(ABC):
    """Policy that is told its game before each episode."""

    @abstractmethod
    def begin_game(self, game: GameEnv) -> None:
        """Prepare for the next episode. Raises: InputError if the game cannot be played."""

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Begin an episode, whose actions depend only on the seed and the frames."""

    @abstractmethod
    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the action for the newest frame."""


class UntrainedPolicy(GamePolicy):
    """Policy that chooses actions by chance, for any number of actions, whatever the frame."""

    actions = len(ACTIONS)
    """Number of actions of the game."""

    def begin_game(self, game: GameEnv) -> None:
        """Choose among the actions of the game."""
        self.actions = len(game.action_names)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._begin()

    def _begin(self) -> None:
        """Prepare an episode."""

    @abstractmethod
    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""

    def _uniform(self) -> int:
        return int(self._generator.integers(self.actions))


class RandomPolicy(UntrainedPolicy):
    """The paper's random agent: one uniformly random action per step."""

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""
        return self._uniform()


class StickyPolicy(UntrainedPolicy):
    """A random policy that repeats its last action with probability `stickiness`.

    It moves further through a game than uniform random play.
    """

    def __init__(self, stickiness: float) -> None:
        self._stickiness = stickiness

    def _begin(self) -> None:
        self._action: int | None = None

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""
        if self._action is None or self._generator.random() >= self._stickiness:
            self._action = self._draw()
        return self._action

    def _draw(self) -> int:
        return self._uniform()


class DirichletPolicy(StickyPolicy):
    """A random policy for each episode, with action probabilities drawn from Dirichlet(`alpha`).

    A small `alpha` prefers few actions, so that an episode goes far in some direction.
    """

    def __init__(self, alpha: float, stickiness: float = 0.8) -> None:
        super().__init__(stickiness)
        self._alpha = alpha

    def _begin(self) -> None:
        super()._begin()
        # Of a tiny alpha all gamma variates may be 0, and then every probability is NaN.
        weights_A = self._generator.gamma(self._alpha, size=self.actions) + 1e-12
        self._probability_A = weights_A / weights_A.sum()

    def _draw(self) -> int:
        return int(self._generator.choice(self.actions, p=self._probability_A))


class ZipfPolicy(UntrainedPolicy):
    """Bursts: a random action is held for n steps, n ~ Zipf(`exponent`) (Dabney et al. 2021).

    Most bursts are short and a few are very long.
    """

    def __init__(self, exponent: float) -> None:
        self._exponent = exponent

    def _begin(self) -> None:
        self._left = 0

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""
        if not self._left:
            self._action, self._left = self._uniform(), int(self._generator.zipf(self._exponent))
        self._left -= 1
        return self._action


class HoldPolicy(UntrainedPolicy):
    """A held button: one action, replaced by a uniformly random one with probability `epsilon`.

    It is the control that shows what an agent adds to a constant.
    """

    def __init__(self, action: int, epsilon: float = 0.15) -> None:
        self._action, self._epsilon = action, epsilon

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Return the next action; the frame does not matter."""
        return self._uniform() if self._generator.random() < self._epsilon else self._action


@dataclass(frozen=True)
class PolicySpec:
    """A policy that each worker process builds for itself."""

    name: str
    """Name in the episodes' metadata; policies of one name act alike on equal seeds and frames."""
    build: Callable[[], Policy]
    """Picklable factory; raises InputError if the policy cannot be used."""
    actions: tuple[str, ...] = ()
    """Actions that the policy was trained with; empty for a policy that takes any."""


UNTRAINED = "random, sticky:P, dirichlet:ALPHA, zipf:EXPONENT or hold:ACTION"
"""Names of the policies of `builtin_policy`."""


def builtin_policy(name: str, actions: Sequence[str] = ACTIONS) -> PolicySpec:
    """Return an untrained policy by its name, one of UNTRAINED.

    sticky: P is the probability to repeat an action, in [0, 1). dirichlet: ALPHA above 0, e.g. 0.3.
    zipf: EXPONENT above 1, e.g. 2. hold: ACTION is a name of `actions`, or an index into the
    actions of the game.

    Raises: InputError for another name, and for a value out of range.
    """
    kind, _, text = name.partition(":")
    if name == "random":
        return PolicySpec("random", RandomPolicy)
    if kind == "hold":
        names = list(actions)
        index = names.index(text) if text in names else int(text) if text.isdigit() else -1
        if index < 0:
            raise InputError(f"policy {name!r}: give one of {', '.join(names)}, or an index")
        return PolicySpec(f"hold{index}", partial(HoldPolicy, index))
    ranges: dict[str, tuple[Callable[[float], Policy], float, float, str]] = {
        "sticky": (StickyPolicy, 0.0, 1.0, "a probability to repeat in [0, 1)"),
        "dirichlet": (DirichletPolicy, 1e-3, 1e3, "an alpha from 0.001 to below 1000"),
        "zipf": (ZipfPolicy, 1.05, 100.0, "an exponent from 1.05 to below 100"),
    }
    if kind not in ranges:
        raise InputError(
            f"policy {name!r} is not known: give {UNTRAINED}, the policy of an agent, or the "
            "import path of a class, e.g. my_package.module:Policy"
        )
    policy, low, high, expected = ranges[kind]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value < high:
        raise InputError(f"policy {name!r}: give {expected}")
    return PolicySpec(f"{kind}{value:g}", partial(policy, value))
