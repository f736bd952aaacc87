"""Starts in mid-air: single frames that do not tell if the character goes up or down (Fig. 12)."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.utils.images import Frames

SINCE = (2, 4)
"""Fewest and most steps since jump was pressed."""
MOST_MOTION = 0.1
"""Largest share of the picture that may change in a step since then."""
SAME = 8
"""Largest difference of two equal pixels, of 255."""


def jump_actions(names: Sequence[str]) -> list[int]:
    """Return the numbers of the actions that press jump, alone or with another button."""
    return [number for number, name in enumerate(names) if "jump" in re.split(r"[+ ]", name)]


def mid_air_frames(
    actions_T: NDArray[np.integer],
    jumps: Sequence[int],
    frames_THWC: Frames | None = None,
    *,
    since: tuple[int, int] = SINCE,
    most_motion: float = MOST_MOTION,
) -> NDArray[np.int64]:
    """Return the indices of the frames of an episode in which the character is in mid-air.

    actions_T[t] led from frame t to frame t + 1; `jumps` are those that press jump. The newest
    press lies `since` steps back. Given the frames, the picture must have changed in each step
    since the press, and by no more than `most_motion` of its pixels: something small is in flight,
    and the controls pressed meanwhile did little else. Frames do not tell whether it is the
    character that moves, or only something else.
    """
    pressed = np.isin(actions_T, jumps)
    begins = pressed & ~np.concatenate([[False], pressed[:-1]])
    numbers = np.arange(len(actions_T))
    # Newest press before frame t, for t = 1 to T; the number is -T - since where there was none.
    never = -len(actions_T) - since[1] - 1
    newest = np.maximum.accumulate(np.where(begins, numbers, never))
    steps = numbers + 1 - newest
    found = numbers[(steps >= since[0]) & (steps <= since[1])] + 1
    if frames_THWC is None or not len(found):
        return found
    motion = motion_shares(frames_THWC)
    flights = [motion[newest[t - 1] : t] for t in found.tolist()]
    return found[[flight.min() > 0 and flight.max() <= most_motion for flight in flights]]


def motion_shares(frames_THWC: Frames) -> NDArray[np.float64]:
    """Return the share of pixels in [0, 1] that differ between frame and next frame, (T - 1,)."""
    earlier, later = frames_THWC[:-1].astype(np.int16), frames_THWC[1:].astype(np.int16)
    return (abs(later - earlier).max(-1) > SAME).mean((1, 2))
