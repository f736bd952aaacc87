"""AutoExplore reward (Eq. 2-4): uncertainty of the world model about the newest frame.

Pure functions on arrays.

Shapes: B windows, N tokens of a frame, T steps of a fragment, L frames that a fragment looks back
to. A window is five frames o_{t-4}..o_t and the four actions between them; the model sees the first
two frames and all four actions, and predicts three. Its reward belongs to the step that led to o_t.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.utils.errors import InputError
from worldmodel.uncertainty import WINDOW

__all__ = [
    "CONTEXT",
    "TOP_FRACTION",
    "WINDOW",
    "RewardWindows",
    "check_top_fraction",
    "cut_windows",
    "uncertainty_reward",
]

CONTEXT = 2
"""Context frames of a window, which the model is given."""
TOP_FRACTION = 0.25
"""Share of the tokens, the most uncertain ones, whose mean entropy is the reward."""


def check_top_fraction(top_fraction: float) -> None:
    """Raise InputError for a share of tokens outside (0, 1]."""
    if not 0 < top_fraction <= 1:
        raise InputError(
            f"top_fraction {top_fraction}: must be above 0 and at most 1 (the paper has 0.25)"
        )


def uncertainty_reward(
    entropy_BN: NDArray[np.floating], top_fraction: float = TOP_FRACTION
) -> NDArray[np.float32]:
    """Compute Eq. 3-4: the mean of the `top_fraction` largest normalised token entropies of each
    window.

    (B, N) in [0, 1] -> (B,) in [0, 1]. At least one token counts; 64 of the paper's 256. Not
    rounded, and not doubled (the published code does both). Raises InputError for a fraction
    outside (0, 1].
    """
    check_top_fraction(top_fraction)
    num_tokens = entropy_BN.shape[1]
    k = max(1, round(num_tokens * top_fraction))
    top_k = np.partition(entropy_BN, num_tokens - k, axis=1)[:, num_tokens - k :]
    return top_k.mean(axis=1, dtype=np.float64).clip(0.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class RewardWindows:
    """Windows of one fragment, and the steps that they score."""

    frames_B5HWC: NDArray[np.uint8]
    actions_B4: NDArray[np.int64]
    scored_T: NDArray[np.bool_]
    """True for the B steps whose newest observation has four before it."""


def cut_windows(
    frames_LHWC: NDArray[np.uint8], actions_L: NDArray[np.integer], steps: int
) -> RewardWindows:
    """Cut all windows that end in one of the last `steps` frames of a piece of one episode, without
    copying frames.

    `frames_LHWC` holds what is known of the episode before the fragment, then the fragment: its
    first frame and `steps` more; `actions_L` is one shorter, and action i turned frame i into frame
    i + 1. Frames that do not have four before them, at the start of an episode, have no window.
    """
    known = len(frames_LHWC)
    if len(actions_L) != known - 1 or not 0 <= steps < known:
        raise ValueError(
            f"{known} frames need {known - 1} actions, not {len(actions_L)}, "
            f"and fewer steps than {steps}"
        )
    newest = np.arange(known - steps, known)
    scored_T = newest >= WINDOW - 1
    first = newest[scored_T] - (WINDOW - 1)
    if not len(first):
        return RewardWindows(
            np.empty((0, WINDOW, *frames_LHWC.shape[1:]), np.uint8),
            np.empty((0, 4), np.int64),
            scored_T,
        )
    span = slice(first[0], first[-1] + 1)
    frames = np.lib.stride_tricks.sliding_window_view(frames_LHWC, WINDOW, axis=0)[span]
    actions = np.lib.stride_tricks.sliding_window_view(actions_L, WINDOW - 1)[span]
    return RewardWindows(np.moveaxis(frames, -1, 1), actions.astype(np.int64), scored_T)
