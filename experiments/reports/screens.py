"""Counts of the distinct screens that agents have seen (`envs.utils.screen_hash`)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader
from envs.utils.screen_hash import distinct_screens

KEPT = 20_000
"""Number of example frames kept for each game and agent; the rest are only counted."""
COMPARED = 4_000
"""Number of examples among which the most different ones are chosen."""


@dataclass
class ScreenStats:
    """Distinct screens that one agent saw of one game.

    curve: (frames played, distinct screens so far). examples: for the first KEPT screens, the first
    frame that showed it, by the screen's id.
    """

    frames: int = 0
    ids: set[bytes] = field(default_factory=set)
    curve: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    examples: dict[bytes, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, frames_THWC: NDArray[np.uint8], every: int = 50) -> None:
        """Add an episode. The curve gets a point at each new screen and every `every` frames."""
        for start in range(0, len(frames_THWC), every):
            part = frames_THWC[start : start + every]
            if distinct_screens(part) - self.ids:
                self._take(part)
            self.frames += len(part)
            if self.curve[-1][0] < self.frames:
                self.curve.append((self.frames, len(self.ids)))

    def after(self, frames: int) -> int:
        """Return the number of distinct screens after that many frames."""
        return max(count for played, count in self.curve if played <= frames)

    def _take(self, frames_THWC: NDArray[np.uint8]) -> None:
        for place, frame in enumerate(frames_THWC, 1):
            (identity,) = distinct_screens(frame[None])
            if identity in self.ids:
                continue
            self.ids.add(identity)
            self.curve.append((self.frames + place, len(self.ids)))
            if len(self.examples) < KEPT:
                self.examples[identity] = frame


def seen_by_game(folder: Path) -> dict[str, ScreenStats]:
    """Return the screens of a folder of episodes, by game."""
    seen: dict[str, ScreenStats] = {}
    reader = EpisodeReader(folder)
    for index, game in enumerate(reader.games):
        seen.setdefault(game, ScreenStats()).add(reader[index].frames_THWC)
    return seen


def equal_frame_counts(one: ScreenStats, other: ScreenStats) -> tuple[int, int]:
    """Return the distinct screens of both after as many frames as the shorter one played."""
    frames = min(one.frames, other.frames)
    return one.after(frames), other.after(frames)


def unique_to(
    here: ScreenStats, elsewhere: Iterable[ScreenStats], count: int
) -> list[NDArray[np.uint8]]:
    """Return up to `count` screens of `here` that no other has, as different as possible.

    Each next one is the farthest from those already taken, by the mean absolute difference of
    the frames (farthest-point sampling).
    """
    others: set[bytes] = set().union(*(seen.ids for seen in elsewhere))
    own = [frame for identity, frame in here.examples.items() if identity not in others]
    if not own:
        return []
    own = own[:: max(len(own) // COMPARED, 1)]
    small = np.stack(own)[:, ::4, ::4].astype(np.float32).reshape(len(own), -1)
    taken = [0]
    distance = np.abs(small - small[0]).mean(1)
    while len(taken) < min(count, len(own)):
        taken.append(int(distance.argmax()))
        distance = np.minimum(distance, np.abs(small - small[taken[-1]]).mean(1))
    return [own[index] for index in taken]
