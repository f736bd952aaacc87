"""Distinct screens."""

import numpy as np
import pytest

from envs.utils.errors import InputError
from envs.utils.screen_hash import distinct_screens


def test_distinct_screens_counts_places_not_pixels() -> None:
    frames = np.full((4, 64, 64, 3), 40, np.uint8)
    frames[1, 10, 10] = 60  # one faint pixel
    frames[2, 8:16, 8:16] = 200  # a sprite
    frames[3, 8:16, 40:48] = 200  # the same sprite elsewhere
    assert len(distinct_screens(frames[:2])) == 1
    assert len(distinct_screens(frames)) == 3
    assert distinct_screens(frames[:2]) | distinct_screens(frames[2:]) == distinct_screens(frames)
    with pytest.raises(InputError, match="uint8"):
        distinct_screens(frames.astype(np.float32))
    with pytest.raises(InputError, match="cells"):
        distinct_screens(np.zeros((1, 60, 60, 3), np.uint8))
