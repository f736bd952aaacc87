"""A small world without a ROM that rewards exploration: a row of rooms, optionally with a noisy TV.

Random play seldom reaches the rooms far to the right. With the TV, the leftmost room shows
unpredictable noise: an explorer rewarded for high uncertainty stays there, one that is robust to
noise moves on.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.utils.errors import InputError

ROOMS = 6
CELLS_PER_ROOM = 4
"""Cells of a room, one per block of the floor; a step to the right or left moves by one."""
START = CELLS_PER_ROOM + 1
"""First cell of an episode: in the second room from the left, next to the TV."""
BLOCKS = 4
"""Blocks across and down a frame: three rows of wall, and one row of floor with a block per cell.
"""
WALL = BLOCKS - 1
COLOURS = np.array([[230, 40, 40], [40, 200, 60], [50, 70, 230], [220, 210, 50]], np.uint8)
NOISE_COLOURS = np.array(
    [
        *([50, 210, 210], [210, 50, 210], [250, 140, 40], [110, 60, 160]),
        *([150, 150, 150], [120, 80, 40], [250, 170, 200], [20, 110, 60]),
    ],
    np.uint8,
)
"""Twice as many colours as walls have: the best model has higher entropy on noise than on a new
wall.
"""
AGENT_COLOUR = 255
WALLS = COLOURS[np.random.default_rng(17).integers(len(COLOURS), size=(ROOMS, WALL, BLOCKS))]
"""Wall of each room, (rooms, 3, 4, 3): all rooms differ, and they are the same in every process."""


class CorridorEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Frames uint8 (size, size, 3): the wall of the current room, and on the floor the current
    cell.

    Right and left move by one cell, the other actions stay; the ends are closed. The reward grows
    from 0 in the first room to 1 in the last. With `television` the wall of the first room is
    random at each step. The episode never terminates and is truncated after `max_steps` steps.
    `frame_skip` and `state` only complete the common signature of all games.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (gymnasium's own declaration)
    init_state = ""
    rom_sha1 = retro_version = resize = ""
    action_masks: tuple[int, ...] = ()

    def __init__(
        self,
        *,
        television: bool = False,
        frame_skip: int = 4,
        size: int = 64,
        seed: int | None = None,
        state: str | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.game = self.console = "NoisyTV" if television else "Corridor"
        if state is not None:
            raise InputError(f"{self.game} has no savestates: omit state {state!r}")
        if size < BLOCKS or size % BLOCKS:
            raise InputError(
                f"{self.game} needs frames of a multiple of {BLOCKS} pixels, not {size}"
            )
        self.television, self.frame_skip, self.size, self.max_steps = (
            television,
            frame_skip,
            size,
            max_steps,
        )
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS), seed=seed)
        self.render_mode = "rgb_array"
        self.cell = START
        self._steps = 0
        self._wall = WALLS[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return to the start cell; the seed determines the noise."""
        super().reset(seed=seed)
        self.cell, self._steps = START, 0
        self._draw_wall()
        return self.render(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move one cell, or stay."""
        if not 0 <= action < len(ACTIONS):
            raise InputError(f"{self.game}: action {action} is not one of 0 to {len(ACTIONS) - 1}")
        move = {"right": 1, "left": -1}.get(ACTIONS[int(action)], 0)
        self.cell = min(max(self.cell + move, 0), ROOMS * CELLS_PER_ROOM - 1)
        self._steps += 1
        self._draw_wall()
        truncated = self.max_steps is not None and self._steps >= self.max_steps
        return self.render(), self.cell // CELLS_PER_ROOM / (ROOMS - 1), False, truncated, {}

    def _draw_wall(self) -> None:
        room = self.cell // CELLS_PER_ROOM
        self._wall = WALLS[room]
        if room == 0 and self.television:
            self._wall = NOISE_COLOURS[
                self.np_random.integers(len(NOISE_COLOURS), size=(WALL, BLOCKS))
            ]

    def render(self) -> Any:
        """Return the current frame, uint8 (size, size, 3)."""
        blocks = np.zeros((BLOCKS, BLOCKS, 3), np.uint8)
        blocks[:WALL] = self._wall
        blocks[WALL, self.cell % CELLS_PER_ROOM] = AGENT_COLOUR
        return blocks.repeat(self.size // BLOCKS, 0).repeat(self.size // BLOCKS, 1)


def read_cell(frame_HWC: NDArray[np.uint8]) -> int:
    """Return the cell, from 0, that a frame shows; a wall of no room is the TV's, in room 0."""
    block = frame_HWC.shape[0] // BLOCKS
    blocks = frame_HWC[block // 2 :: block, block // 2 :: block]
    rooms = [room for room in range(1, ROOMS) if np.array_equal(blocks[:WALL], WALLS[room])]
    return (rooms[0] if rooms else 0) * CELLS_PER_ROOM + int(blocks[WALL, :, 0].argmax())
