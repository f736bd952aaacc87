"""Counts of the distinct screens that agents have seen (`envs.utils.screen_hash`)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader
from envs.utils.screen_hash import distinct_screens

KEPT = 20_000
"""Maximum number of example frames kept for each game and agent; the rest are only counted."""
COMPARED = 4_000
"""Maximum number of examples among which the most different ones are chosen."""


@dataclass
class ScreenStats:
    """Distinct screens that one agent saw of one game.

    curve: (frames played, distinct screens so far). examples: the first frame of each of the first
    KEPT screens, by the screen's id.
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
                self._add_new(part)
            self.frames += len(part)
            if self.curve[-1][0] < self.frames:
                self.curve.append((self.frames, len(self.ids)))

    def after(self, frames: int) -> int:
        """Return the number of distinct screens after `frames` frames."""
        return max(count for played, count in self.curve if played <= frames)

    def _add_new(self, frames_THWC: NDArray[np.uint8]) -> None:
        for number, frame in enumerate(frames_THWC, 1):
            (screen,) = distinct_screens(frame[None])
            if screen in self.ids:
                continue
            self.ids.add(screen)
            self.curve.append((self.frames + number, len(self.ids)))
            if len(self.examples) < KEPT:
                self.examples[screen] = frame


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
    own: ScreenStats, others: Iterable[ScreenStats], count: int
) -> list[NDArray[np.uint8]]:
    """Return up to `count` screens of `own` that no other has, as different as possible.

    Farthest-point sampling by the mean absolute difference of the frames.
    """
    known: set[bytes] = set().union(*(other.ids for other in others))
    unique = [frame for screen, frame in own.examples.items() if screen not in known]
    if not unique:
        return []
    unique = unique[:: max(len(unique) // COMPARED, 1)]
    small = np.stack(unique)[:, ::4, ::4].astype(np.float32).reshape(len(unique), -1)
    chosen = [0]
    distance = np.abs(small - small[0]).mean(1)
    while len(chosen) < min(count, len(unique)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.abs(small - small[chosen[-1]]).mean(1))
    return [unique[index] for index in chosen]
