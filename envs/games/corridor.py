"""A small world without a ROM that rewards exploration: a row of rooms, optionally with a noisy TV.

Random play seldom reaches the rooms far to the right. With the TV, the leftmost room shows
unpredictable noise: an explorer rewarded for high uncertainty stays there, one that is robust to
noise moves on.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.controls import ACTIONS
from envs.games.base import GameEnv
from envs.utils.errors import InputError

ROOMS = 6
CELLS_PER_ROOM = 4
"""Cells of a room, one per block of the floor; a step to the right or left moves by one."""
START = CELLS_PER_ROOM + 1
"""First cell of an episode: in the second room from the left, next to the TV."""
BLOCKS = 4
"""Blocks across and down a frame: three rows of wall above one row of floor, a block per cell."""
WALL = BLOCKS - 1
COLOURS = np.array([[230, 40, 40], [40, 200, 60], [50, 70, 230], [220, 210, 50]], np.uint8)
NOISE_COLOURS = np.array(
    [
        *([50, 210, 210], [210, 50, 210], [250, 140, 40], [110, 60, 160]),
        *([150, 150, 150], [120, 80, 40], [250, 170, 200], [20, 110, 60]),
    ],
    np.uint8,
)
"""Twice as many colours as walls have: noise has a higher entropy than any new wall."""
AGENT_COLOUR = 255
WALLS = COLOURS[np.random.default_rng(17).integers(len(COLOURS), size=(ROOMS, WALL, BLOCKS))]
"""Wall of each room, (rooms, 3, 4, 3): all rooms differ, and they are the same in every process."""


class CorridorEnv(GameEnv):
    """Frames with the wall of the current room and, on the floor, the current cell.

    Right and left move by one cell, the other actions stay; the ends are closed. The reward grows
    from 0 in the first room to 1 in the last. With `television` the wall of the first room is
    random at each step. The episode never terminates. `frame_skip` has no effect.
    """

    def __init__(self, *, television: bool = False, **options: Any) -> None:
        self.game = self.console = "NoisyTV" if television else "Corridor"
        super().__init__(**options)
        if self.size % BLOCKS:
            raise InputError(
                f"{self.game} needs frames of a multiple of {BLOCKS} pixels, not {self.size}"
            )
        self.television = television
        self.cell = START
        self._wall = WALLS[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return to the start cell; the seed determines the noise."""
        super().reset(seed=seed)
        self.cell, self._steps = START, 0
        self._draw_wall()
        if options and "state" in options:
            self.load_state(options["state"].data)
        return self.render(), {}

    def save_state(self) -> bytes:
        """Return the cell, the wall and the state of the noise."""
        return json.dumps(
            [self.cell, self._wall.tolist(), self.np_random.bit_generator.state]
        ).encode()

    def load_state(self, state: bytes) -> None:
        """Restore the cell, the wall and the noise."""
        self.cell, wall, self.np_random.bit_generator.state = json.loads(state)
        self._wall = np.array(wall, np.uint8)

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move one cell, or stay."""
        self._check_action(action)
        move = {"right": 1, "left": -1}.get(ACTIONS[int(action)], 0)
        self.cell = min(max(self.cell + move, 0), ROOMS * CELLS_PER_ROOM - 1)
        self._draw_wall()
        reward = self.cell // CELLS_PER_ROOM / (ROOMS - 1)
        return self.render(), reward, False, self._count_step(), {}

    def _draw_wall(self) -> None:
        room = self.cell // CELLS_PER_ROOM
        self._wall = WALLS[room]
        if room == 0 and self.television:
            noise = self.np_random.integers(len(NOISE_COLOURS), size=(WALL, BLOCKS))
            self._wall = NOISE_COLOURS[noise]

    def render(self) -> Any:
        """Return the current frame, uint8 (size, size, 3)."""
        blocks = np.zeros((BLOCKS, BLOCKS, 3), np.uint8)
        blocks[:WALL] = self._wall
        blocks[WALL, self.cell % CELLS_PER_ROOM] = AGENT_COLOUR
        return blocks.repeat(self.size // BLOCKS, 0).repeat(self.size // BLOCKS, 1)


def read_cell(frame_HWC: NDArray[np.uint8]) -> int:
    """Return the cell, from 0, that a frame shows; an unknown wall is the noise of room 0."""
    block = frame_HWC.shape[0] // BLOCKS
    blocks = frame_HWC[block // 2 :: block, block // 2 :: block]
    rooms = [room for room in range(1, ROOMS) if np.array_equal(blocks[:WALL], WALLS[room])]
    return (rooms[0] if rooms else 0) * CELLS_PER_ROOM + int(blocks[WALL, :, 0].argmax())
