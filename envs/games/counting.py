"""A deterministic env without a ROM whose frames show their step and the action that led to them.

It verifies alignment: after collecting, storing, cutting into clips and scoring, the action stored
with frame t must be the one that frame t + 1 shows.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.utils.errors import InputError

STEP_BITS = 16
BRIGHT = 255


class CountingEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Frames uint8 (size, size, 3): the step number in 16 binary cells above, the last action
    below.

    The reward of step t (1-based) is t. The episode never terminates and is truncated after
    `max_steps` steps. `frame_skip` and `state` only complete the common signature of all games.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (gymnasium's own declaration)
    game = console = "Counting"
    init_state = ""
    rom_sha1 = retro_version = resize = ""
    action_masks: tuple[int, ...] = ()

    def __init__(
        self,
        *,
        frame_skip: int = 4,
        size: int = 64,
        seed: int | None = None,
        state: str | None = None,
        max_steps: int | None = None,
    ) -> None:
        if state is not None:
            raise InputError(f"Counting has no savestates: omit state {state!r}")
        if size < STEP_BITS:
            raise InputError(f"Counting needs frames of at least {STEP_BITS} pixels, not {size}")
        self.frame_skip, self.size, self.max_steps = frame_skip, size, max_steps
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS), seed=seed)
        self.render_mode = "rgb_array"
        self._step = 0
        self._action = -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return to step 0, with no action cell lit."""
        super().reset(seed=seed)
        self._step, self._action = 0, -1
        return self.render(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Count one step and show `action` in the resulting frame."""
        if not 0 <= action < len(ACTIONS):
            raise InputError(f"Counting: action {action} is not one of 0 to {len(ACTIONS) - 1}")
        self._step, self._action = self._step + 1, int(action)
        truncated = self.max_steps is not None and self._step >= self.max_steps
        return self.render(), float(self._step), False, truncated, {}

    def render(self) -> Any:
        """Return the current frame, uint8 (size, size, 3)."""
        frame_HWC = np.zeros((self.size, self.size, 3), np.uint8)
        half = self.size // 2
        for bit in range(STEP_BITS):
            if self._step >> bit & 1:
                frame_HWC[:half, slice(*_cell(bit, STEP_BITS, self.size))] = BRIGHT
        if self._action >= 0:
            frame_HWC[half:, slice(*_cell(self._action, len(ACTIONS), self.size))] = BRIGHT
        return frame_HWC


def read_frame(frame_HWC: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the step number and the last action of a counting frame; action -1 on the first frame.

    It compares cell means with a threshold, so it also reads frames reconstructed by a lossy model.
    """
    size = frame_HWC.shape[1]
    half = size // 2
    bits = [
        frame_HWC[:half, slice(*_cell(bit, STEP_BITS, size))].mean() > BRIGHT / 2
        for bit in range(STEP_BITS)
    ]
    lit = [
        frame_HWC[half:, slice(*_cell(a, len(ACTIONS), size))].mean() > BRIGHT / 2
        for a in range(len(ACTIONS))
    ]
    return sum(1 << bit for bit, is_set in enumerate(bits) if is_set), lit.index(True) if any(
        lit
    ) else -1


def _cell(index: int, count: int, size: int) -> tuple[int, int]:
    """Return the first and the last-plus-one column of cell `index` of `count` across `size`
    pixels.
    """
    return index * size // count, (index + 1) * size // count
