"""How many distinct screens an agent has seen, and which.

Two frames are the same screen where they look alike at a coarse glance: grey, 16x16 squares, 8 levels (after the cells
of Go-Explore, Ecoffet et al. 2021). Exact comparison would count every flicker and every turn of a score's last digit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRID, LEVELS = 16, 8
KEPT = 20_000
"""Frames kept as examples for each game and agent; the rest are only counted."""
COMPARED = 4_000
"""Examples among which the most different ones are looked for."""


def screen_ids(frames_THWC: NDArray[np.uint8]) -> list[bytes]:
    """An identity for each frame's screen, uint8 (T, H, W, 3) with H and W multiples of 16 -> T values."""
    count, height, width = frames_THWC.shape[:3]
    squares = frames_THWC.reshape(count, GRID, height // GRID, GRID, width // GRID, 3)
    grey = squares.mean((2, 4, 5), dtype=np.float32)
    cells = (grey * (LEVELS / 256)).astype(np.uint8)
    return [cell.tobytes() for cell in cells]


@dataclass
class Seen:
    """What one agent saw of one game. ids: its screens. curve: how many of them after so many frames.
    screens: id -> the first frame that showed it, for the first KEPT of them.
    """

    frames: int = 0
    ids: set[bytes] = field(default_factory=set)
    curve: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    screens: dict[bytes, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, frames_THWC: NDArray[np.uint8], every: int = 50) -> None:
        """Take in one episode."""
        for start in range(0, len(frames_THWC), every):
            part = frames_THWC[start : start + every]
            for frame, identity in zip(part, screen_ids(part), strict=True):
                if identity not in self.ids:
                    self.ids.add(identity)
                    if len(self.screens) < KEPT:
                        self.screens[identity] = frame
            self.frames += len(part)
            self.curve.append((self.frames, len(self.ids)))


def seen_by_game(folder: Path) -> dict[str, Seen]:
    """What the agent that played a folder of episodes saw, game by game."""
    from envs.episodes import EpisodeReader

    seen: dict[str, Seen] = {}
    reader = EpisodeReader(folder)
    for index, game in enumerate(reader.games):
        seen.setdefault(game, Seen()).add(reader[index].frames_THWC)
    return seen


def only_in(here: Seen, elsewhere: Iterable[Seen], count: int) -> list[NDArray[np.uint8]]:
    """Up to `count` screens of `here` that are in none of the others, as different from each other as can be.

    Each next one is the farthest from those already taken (by mean absolute difference of coarse squares).
    """
    others: set[bytes] = set().union(*(seen.ids for seen in elsewhere))
    own = [(identity, frame) for identity, frame in here.screens.items() if identity not in others]
    if not own:
        return []
    own = own[:: max(len(own) // COMPARED, 1)]
    cells = np.stack([np.frombuffer(identity, np.uint8) for identity, _ in own]).astype(np.float32)
    taken = [0]
    distance = np.abs(cells - cells[0]).mean(1)
    while len(taken) < min(count, len(own)):
        taken.append(int(distance.argmax()))
        distance = np.minimum(distance, np.abs(cells - cells[taken[-1]]).mean(1))
    return [own[index][1] for index in taken]
