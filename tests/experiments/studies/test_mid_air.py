"""Starts in mid-air, of actions alone and of a picture in which something jumps."""

import numpy as np

from envs.controls import ACTIONS, COINRUN_ACTIONS
from envs.utils.images import Frames
from experiments.studies.mid_air import jump_actions, mid_air_frames, motion_shares

RIGHT, JUMP = ACTIONS.index("right"), ACTIONS.index("jump")


def jumping_dot(heights: list[int], scrolled_at: int | None = None) -> Frames:
    """Frames of a dot at these heights; the scenery behind it changes once at `scrolled_at`."""
    frames = np.zeros((len(heights), 32, 32, 3), np.uint8)
    for number, height in enumerate(heights):
        if scrolled_at is not None and number >= scrolled_at:
            frames[number, :, :] = 60
        frames[number, 28 - height : 30 - height, 10:12] = 255
    return frames


def test_jump_counts_alone_and_with_another_button() -> None:
    assert jump_actions(ACTIONS) == [JUMP]
    assert [COINRUN_ACTIONS[number] for number in jump_actions(COINRUN_ACTIONS)] == [
        "jump",
        "jump right",
        "jump left",
    ]
    assert jump_actions(("right", "jump+right", "none")) == [1]


def test_frames_two_to_four_steps_after_the_newest_press() -> None:
    still = np.full(12, RIGHT, np.uint8)
    assert mid_air_frames(still, [JUMP]).tolist() == []
    once = still.copy()
    once[3] = JUMP
    assert mid_air_frames(once, [JUMP]).tolist() == [5, 6, 7]
    held = still.copy()
    held[3:9] = JUMP  # one press, held
    assert mid_air_frames(held, [JUMP]).tolist() == [5, 6, 7]
    again = once.copy()
    again[5] = JUMP
    assert mid_air_frames(again, [JUMP]).tolist() == [5, 7, 8, 9]
    last = still.copy()
    last[10] = JUMP
    assert mid_air_frames(last, [JUMP]).tolist() == [12]  # the last frame follows the last action
    assert mid_air_frames(once, [JUMP], since=(1, 2)).tolist() == [4, 5]


def test_with_frames_something_small_has_to_be_in_flight() -> None:
    actions = np.full(10, RIGHT, np.uint8)
    actions[2] = JUMP
    flight = [0, 0, 0, 2, 5, 7, 8, 7, 4, 0, 0]
    assert mid_air_frames(actions, [JUMP], jumping_dot(flight)).tolist() == [4, 5, 6]
    no_effect = [0] * 11
    assert mid_air_frames(actions, [JUMP], jumping_dot(no_effect)).tolist() == []
    landed = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    assert mid_air_frames(actions, [JUMP], jumping_dot(landed)).tolist() == [4]
    # Controls that move the scenery do more than little.
    assert mid_air_frames(actions, [JUMP], jumping_dot(flight, 5)).tolist() == [4]
    assert mid_air_frames(actions, [JUMP], jumping_dot(flight, 5), most_motion=1).tolist() == [
        4,
        5,
        6,
    ]


def test_motion_is_the_share_of_changed_pixels() -> None:
    frames = np.zeros((3, 10, 10, 3), np.uint8)
    frames[1, :5] = 3  # noise of a lossy picture
    frames[2, 0, :4] = 200
    assert motion_shares(frames).tolist() == [0, 0.04]
