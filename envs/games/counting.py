"""A deterministic game without a ROM whose frames show their step and the action that led to them.

It verifies alignment: after collecting, storing, cutting into clips and scoring, the action stored
with frame t must be the one that frame t + 1 shows.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.games.base import GameEnv
from envs.utils.errors import InputError

STEP_BITS = 16
BRIGHT = 255


class CountingEnv(GameEnv):
    """Frames with the step number in 16 binary cells in the upper half, the last action below.

    The reward of step t (1-based) is t. The episode never terminates. `frame_skip` has no effect.
    """

    game = console = "Counting"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.size < STEP_BITS:
            raise InputError(
                f"Counting needs frames of at least {STEP_BITS} pixels, not {self.size}"
            )
        self._number, self._action = 0, -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return to step 0, with no action cell lit."""
        super().reset(seed=seed)
        self._steps, self._number, self._action = 0, 0, -1
        if options and "state" in options:
            self.load_state(options["state"].data)
        return self.render(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Count one step and show `action` in the resulting frame."""
        self._check_action(action)
        self._action = int(action)
        self._number += 1
        return self.render(), float(self._number), False, self._count_step(), {}

    def save_state(self) -> bytes:
        """Return step number and last action."""
        return json.dumps([self._number, self._action]).encode()

    def load_state(self, state: bytes) -> None:
        """Restore step number and last action."""
        self._number, self._action = json.loads(state)

    def render(self) -> Any:
        """Return the current frame, uint8 (size, size, 3)."""
        frame_HWC = np.zeros((self.size, self.size, 3), np.uint8)
        half = self.size // 2
        for bit in range(STEP_BITS):
            if self._number >> bit & 1:
                frame_HWC[:half, _cell(bit, STEP_BITS, self.size)] = BRIGHT
        if self._action >= 0:
            frame_HWC[half:, _cell(self._action, len(ACTIONS), self.size)] = BRIGHT
        return frame_HWC


def read_step_and_action(frame_HWC: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the step number and the last action of a counting frame; action -1 on the first frame.

    Cell means are compared with a threshold, so frames reconstructed by a lossy model can be read.
    """
    size = frame_HWC.shape[1]
    upper, lower = frame_HWC[: size // 2], frame_HWC[size // 2 :]
    bits = [upper[:, _cell(i, STEP_BITS, size)].mean() > BRIGHT / 2 for i in range(STEP_BITS)]
    lit = [lower[:, _cell(i, len(ACTIONS), size)].mean() > BRIGHT / 2 for i in range(len(ACTIONS))]
    step = sum(1 << bit for bit, is_set in enumerate(bits) if is_set)
    return step, lit.index(True) if any(lit) else -1


def _cell(index: int, count: int, size: int) -> slice:
    """Return the columns of cell `index` of `count` cells across `size` pixels."""
    return slice(index * size // count, (index + 1) * size // count)
