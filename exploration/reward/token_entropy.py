"""AutoExplore reward (Eq. 3-4): token entropies to the reward of a window.

The model sees the first CONTEXT frames of a window and all its actions; the reward belongs to the
step that led to the newest frame. Shapes: B windows, N tokens of a frame.
"""

import numpy as np
from numpy.typing import NDArray

from envs.utils.errors import InputError

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
    """Compute Eq. 3-4: the mean of the `top_fraction` largest token entropies of each window.

    (B, N) in [0, 1] -> (B,) in [0, 1]. At least one token counts; 64 of the paper's 256. Not
    rounded and not doubled, unlike the published code.
    """
    check_top_fraction(top_fraction)
    num_tokens = entropy_BN.shape[1]
    k = max(1, round(num_tokens * top_fraction))
    top_k = np.partition(entropy_BN, num_tokens - k, axis=1)[:, num_tokens - k :]
    return top_k.mean(axis=1, dtype=np.float64).clip(0.0, 1.0).astype(np.float32)
