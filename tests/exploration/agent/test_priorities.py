"""Priorities: their formula, odds of segments, importance weights, errors that come back."""

import numpy as np
import pytest

from exploration.agent.priorities import Priority, SegmentOdds, segment_priorities
from exploration.agent.replay_buffer import ReplayBuffer
from exploration.agent.updates import dealt_back
from tests.exploration.agent.test_replay_buffer import fragment

R2D2 = Priority(0.9, 0.6)


def test_priority_mixes_the_largest_and_the_mean_error_of_a_segment():
    priorities = segment_priorities(np.array([1.0, 0.0, -4.0, 2.0]), 3)
    expected = [0.9 * 4 + 0.1 * 5 / 3, 0.9 * 4 + 0.1 * 2, 0.9 * 4 + 0.1 * 3, 0.9 * 2 + 0.1 * 2]
    assert priorities == pytest.approx(expected)


def test_segments_are_drawn_in_proportion_and_weighted_back():
    errors = [np.array([1.0, 3.0]), np.array([6.0])]
    odds = SegmentOdds.of(errors, 1, exponent=1.0)
    steps = odds.draw(20_000, np.random.default_rng(0))
    assert np.bincount(steps) / len(steps) == pytest.approx([0.1, 0.3, 0.6], abs=0.015)
    weights = odds.importance(np.arange(3), 1.0)
    assert weights == pytest.approx([1, 1 / 3, 1 / 6])
    assert odds.importance(np.array([1, 2]), 0.0).tolist() == [1, 1]
    half = SegmentOdds.of(errors, 1, exponent=0.5)
    assert np.diff(half.cumulative_N) == pytest.approx(np.sqrt([3, 6]) / np.sqrt([1, 3, 6]).sum())


def test_segments_without_errors_are_drawn_uniformly():
    odds = SegmentOdds.of([np.zeros(4)], 2, exponent=0.9)
    assert np.diff(odds.cumulative_N, prepend=0.0) == pytest.approx([0.25] * 4)


def test_errors_come_back_to_the_steps_that_were_drawn():
    replay = ReplayBuffer(1_000, seed=0, priority=R2D2)
    replay.add(fragment("a", 10))  # the first three of an episode have no reward
    replay.add(fragment("b", 6, start=100))
    batch = replay.sample_packed(200, 3)
    number_BT = batch.columns["rewards"] + 1.0
    replay.set_errors(batch, np.where(number_BT > 100, 0.01, number_BT).astype(np.float32))
    a, b = replay.fragments
    assert a.errors_T.tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 9, 10]
    assert b.errors_T == pytest.approx([0, 0, 0, 0.01, 0.01, 0.01])
    starts = replay.sample(400, 3)["h"][:, 0]
    assert (starts >= 100).mean() < 0.05, "segments of small errors are drawn seldom"
    replay.add(fragment("c", 5, first=3, start=200))
    assert (replay.fragments[-1].errors_T == 10).all(), "new steps have the largest error"


def test_a_restored_buffer_of_priorities_continues_exactly():
    replay, other = (ReplayBuffer(1_000, seed=seed, priority=R2D2) for seed in (1, 2))
    for start, name in enumerate("ab"):
        replay.add(fragment(name, 9, start=100 * start))
    for error in (0.5, 2.0):
        batch = replay.sample_packed(3, 4)
        replay.set_errors(batch, np.full((3, 4), error, np.float32))
    other.set_state(replay.get_state())
    for both in (replay, other):
        both.add(fragment("a", 3, first=9, start=9))
    for _ in range(3):
        mine, theirs = (both.sample_packed(8, 4) for both in (replay, other))
        for name, rows in mine.unpack().items():
            np.testing.assert_array_equal(rows, theirs.unpack()[name])
        for both, drawn in ((replay, mine), (other, theirs)):
            both.set_errors(drawn, drawn.columns["rewards"])


def test_rows_of_several_learners_are_put_back_in_order():
    replay = ReplayBuffer(1_000, priority=R2D2)
    replay.add(fragment("a", 30))
    batch = replay.sample_packed(5, 4)
    parts = [part.columns["rewards"] for part in batch.parts(2)]
    np.testing.assert_array_equal(dealt_back(parts), batch.columns["rewards"])
