"""Priorities of segments by the errors of their steps (R2D2, Kapturowski et al. 2019).

Shapes: T steps of a fragment, N steps of a replay buffer, B drawn segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LARGEST_SHARE = 0.9
"""Weight of the largest error of a segment in its priority; the mean error has the rest."""
SMALLEST = 1e-3
"""Priority of a segment without an error, as a share of the mean: it is drawn, too."""


@dataclass(frozen=True)
class Priority:
    """Settings of a draw by priority."""

    exponent: float = 0.0
    """Exponent of the priorities in the probabilities; 0 draws uniformly."""
    correction: float = 0.6
    """Exponent of the importance weights: 1 makes up for the draw, 0 leaves it as it is."""


UNIFORM = Priority()


def segment_priorities(errors_T: NDArray[np.floating], length: int) -> NDArray[np.float64]:
    """Compute 0.9 max |error| + 0.1 mean |error| of the segments that begin with each step, (T,).

    Segments end with the fragment.
    """
    padded = np.concatenate([np.abs(errors_T, dtype=np.float64), np.zeros(length - 1)])
    windows_TL = sliding_window_view(padded, length)
    steps_T = np.minimum(length, np.arange(len(errors_T), 0, -1))
    means_T = windows_TL.sum(axis=1) / steps_T
    return LARGEST_SHARE * windows_TL.max(axis=1) + (1 - LARGEST_SHARE) * means_T


@dataclass(frozen=True)
class SegmentOdds:
    """Probabilities with which segments are drawn, by their first steps."""

    cumulative_N: NDArray[np.float64]
    """Probabilities up to and including each step; the last is 1."""

    @classmethod
    def of(
        cls, errors: Sequence[NDArray[np.floating]], length: int, exponent: float
    ) -> "SegmentOdds":
        """Make the probabilities proportional to the priorities to the power of `exponent`.

        `errors`: those of each fragment's steps.
        """
        priorities_N = np.concatenate([segment_priorities(own, length) for own in errors])
        smallest = SMALLEST * float(priorities_N.mean()) or 1.0
        cumulative_N = (np.maximum(priorities_N, smallest) ** exponent).cumsum()
        return cls(cumulative_N / cumulative_N[-1])

    def draw(self, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw the first steps of so many segments."""
        return np.searchsorted(self.cumulative_N, generator.random(size), side="right")

    def importance(self, steps_B: NDArray[np.int64], exponent: float) -> NDArray[np.float32]:
        """Compute (N p)^-exponent of drawn segments, divided by the largest of them."""
        p_N = np.diff(self.cumulative_N, prepend=0.0)
        weights_B = (len(p_N) * p_N[steps_B]) ** -exponent
        return (weights_B / weights_B.max()).astype(np.float32)
