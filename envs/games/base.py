"""The base class of all games."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.utils.errors import InputError

EnvOptions = tuple[tuple[str, str | int], ...]
"""Options of `envs.make` with their names, e.g. the levels of CoinRun."""


class GameState(NamedTuple):
    """A moment of a game, from which `reset(options={"state": ...})` continues."""

    data: bytes
    """Result of `save_state`."""
    frame_HWC: NDArray[np.uint8]
    """Frame of that moment: an emulator draws it only in the step that leads there."""


class GameEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """A game with square RGB frames and discrete actions.

    The class attributes below are stored with every recorded episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (declared by gymnasium)
    render_mode = "rgb_array"
    game = console = ""
    init_state = rom_sha1 = retro_version = resize = ""
    action_masks: tuple[int, ...] = ()
    """Button mask of each action; empty for games without buttons."""
    action_names: tuple[str, ...] = ACTIONS

    def __init__(
        self,
        *,
        frame_skip: int = 4,
        size: int = 64,
        seed: int | None = None,
        state: str | None = None,
        max_steps: int | None = None,
    ) -> None:
        """Create the spaces: frames uint8 (size, size, 3), one action for each of `action_names`.

        `seed` seeds the action space. An episode is truncated after `max_steps` steps.

        Raises: InputError for values below 1, or for a `state` of a game without savestates.
        """
        if state is not None:
            raise InputError(f"{self.game} has no savestates: omit state {state!r}")
        if frame_skip < 1 or size < 1 or (max_steps is not None and max_steps < 1):
            raise InputError(
                f"frame_skip {frame_skip}, size {size} and max_steps {max_steps} must be at least 1"
            )
        self.frame_skip, self.size, self.max_steps = frame_skip, size, max_steps
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self.action_names), seed=seed)
        self._steps = 0

    def state(self) -> GameState:
        """Return the current moment."""
        return GameState(self.save_state(), self._observe())

    def save_state(self) -> bytes:
        """Return what `load_state` needs to continue from here, bit for bit.

        Raises: InputError for a game without savestates.
        """
        raise InputError(
            f"{self.game} has no savestates: explore it with a policy from the start, such as "
            "dirichlet:0.3"
        )

    def load_state(self, state: bytes) -> None:
        """Restore a state of `save_state`. Raises: InputError for a state of another game."""
        raise InputError(f"{self.game} has no savestates")

    def _observe(self) -> NDArray[np.uint8]:
        """Return the current frame as a step returns it."""
        frame_HWC: Any = self.render()
        return np.asarray(frame_HWC, np.uint8)

    def hide_aids(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return frames as they are recorded: without what is painted for agents alone."""
        return frames_THWC

    def _count_step(self) -> bool:
        """Count a step and return True if it was the last one of `max_steps`."""
        self._steps += 1
        return self.max_steps is not None and self._steps >= self.max_steps

    def _check_action(self, action: Any) -> None:
        count = int(self.action_space.n)  # type: ignore[attr-defined]
        if not 0 <= action < count:
            raise InputError(f"{self.game}: action {action} is not one of 0 to {count - 1}")
