"""Replay buffer: uniform segments, joined fragments, eviction, exact state, compressed frames."""

import dataclasses
import pickle

import numpy as np
import pytest

from envs.utils.errors import InputError
from exploration.agent.compressed_frames import BLOCK, CompressedFrames
from exploration.agent.replay_buffer import Fragment, ReplayBuffer


def fragment(
    name: str, steps: int, first: int = 0, terminated: bool = False, start: int = 0
) -> Fragment:
    """A fragment whose frames and columns all count from `start`, which identifies each step."""
    number = np.arange(start, start + steps + 1)
    pixels_T111 = (number % 256).astype(np.uint8)[:, None, None, None]
    return Fragment(
        episode_id=name,
        game="g",
        first_step=first,
        terminated=terminated,
        frames=CompressedFrames.of(np.broadcast_to(pixels_T111, (steps + 1, 8, 8, 3))),
        actions_T=number[:-1] % 5,
        rewards_T=number[:-1].astype(np.float32),
        log_probabilities_T=-number[:-1].astype(np.float32),
        scored_T=np.arange(first, first + steps) >= 3,
        h_TD=np.repeat(number[:-1, None], 2, 1).astype(np.float16),
        c_TD=np.repeat(-number[:-1, None], 2, 1).astype(np.float16),
        errors_T=np.zeros(steps, np.float32),
    )


def test_segments_are_stored_steps_and_start_uniformly():
    replay = ReplayBuffer(1_000, seed=1)
    replay.add(fragment("a", 10))
    replay.add(fragment("b", 4, terminated=True, start=100))
    replay.add(fragment("a", 6, first=10, start=10))  # follows the first one
    assert len(replay) == 20
    batch = replay.sample(4_000, 5)
    starts = batch["h"][:, 0].astype(int)
    counts = np.bincount(starts, minlength=104)[[*range(16), *range(100, 104)]]
    assert counts.min() > 140, "every step is the start of a segment about equally often"
    assert counts.max() < 260
    for row, start in enumerate(starts):
        end = 16 if start < 16 else 104
        steps = min(5, end - start)
        number = np.arange(start, start + steps)
        scored = number - (100 if start >= 100 else 0) >= 3
        terminated = [end == 104 and start + i == 103 for i in range(5)]
        assert batch["obs"][row, : steps + 1, 0, 0, 0].tolist() == [*number, start + steps]
        assert batch["actions"][row, :steps].tolist() == (number % 5).tolist()
        assert batch["rewards"][row, :steps].tolist() == number.tolist()
        assert batch["logp"][row, :steps].tolist() == (-number).tolist()
        assert batch["valid"][row].tolist() == [True] * steps + [False] * (5 - steps)
        assert batch["learn"][row, :steps].tolist() == scored.tolist()
        assert batch["terminated"][row].tolist() == terminated
        assert not batch["obs"][row, steps + 1 :].any()
    assert batch["obs"].dtype == np.uint8


def test_burn_in_is_left_out_unless_the_episode_starts_there():
    replay = ReplayBuffer(1_000)
    replay.add(fragment("a", 12))
    batch = replay.sample(200, 6, burn_in=4)
    for row, start in enumerate(batch["h"][:, 0].astype(int)):
        for step in range(min(6, 12 - start)):
            assert batch["learn"][row, step] == (start + step >= 3 and (step >= 4 or start == 0))


def test_the_oldest_fragments_are_evicted_and_gaps_stay():
    replay = ReplayBuffer(10)
    for index, name in enumerate("abcd"):
        replay.add(fragment(name, 4, start=20 * index))
    assert len(replay) == 8
    assert set(replay.sample(200, 2)["h"][:, 0].astype(int)) == {*range(40, 44), *range(60, 64)}
    replay.add(fragment("d", 2, first=6, start=66))  # steps 4 and 5 were dropped
    batch = replay.sample(200, 8)
    after_60 = batch["h"][:, 0] >= 60
    assert set(batch["valid"][after_60].sum(1)) == {1, 2, 3, 4}
    with pytest.raises(InputError, match="empty"):
        ReplayBuffer(5).sample(1, 1)


def test_a_growing_episode_outlives_an_older_one_that_ended():
    replay = ReplayBuffer(10)
    replay.add(fragment("long", 4))
    replay.add(fragment("ended", 4, terminated=True, start=100))
    replay.add(fragment("long", 4, first=4, start=4))
    assert len(replay) == 8
    assert set(replay.sample(200, 2)["h"][:, 0].astype(int)) == set(range(8))


def test_a_restored_buffer_continues_exactly():
    replay, other = ReplayBuffer(1_000, seed=3), ReplayBuffer(1_000, seed=4)
    for name in "ab":
        replay.add(fragment(name, 9))
    other.add(fragment("gone", 5))
    replay.sample(7, 4)
    other.set_state(replay.get_state())
    for both in (replay, other):
        both.add(fragment("a", 3, first=9, start=9))
    for _ in range(3):
        mine, theirs = replay.sample(8, 4), other.sample(8, 4)
        for name, rows in mine.items():
            np.testing.assert_array_equal(rows, theirs[name])
    assert len(other) == 21


def test_packed_batches_are_the_same_segments_dealt_out_whole():
    replay, other = ReplayBuffer(1_000, seed=5), ReplayBuffer(1_000, seed=5)
    for buffer in (replay, other):
        buffer.add(fragment("a", 70))
        buffer.add(fragment("b", 9, start=100))
    whole, packed = replay.sample(8, 40), other.sample_packed(8, 40)
    assert len(pickle.dumps(packed)) < whole["obs"].nbytes / 4
    for part, rows in enumerate(pickle.loads(pickle.dumps(packed.parts(2)))):
        unpacked = rows.unpack()
        assert unpacked.keys() == whole.keys()
        for name, values in unpacked.items():
            np.testing.assert_array_equal(values, whole[name][part::2])


def test_compressed_frames_are_exact_and_small():
    generator = np.random.default_rng(0)
    frames = np.zeros((3 * BLOCK, 16, 16, 3), np.uint8)
    frames[:, :2, :2] = generator.integers(0, 256, (3 * BLOCK, 2, 2, 3))
    for cut in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 70):
        whole = CompressedFrames.of(frames[: cut + 1])
        whole = whole.extended(CompressedFrames.of(frames[cut:]))
        assert len(whole) == len(frames)
        for start, stop in ((0, 96), (31, 33), (5, 5), (64, 96), (95, 96)):
            np.testing.assert_array_equal(whole.read(start, stop), frames[start:stop])
        assert sum(map(len, whole.blocks)) < frames.nbytes / 10


def test_short_fragments_share_blocks():
    replay = ReplayBuffer(10_000)
    for start in range(0, 400, 10):
        replay.add(fragment("a", 10, first=start, start=start))
    (joined,) = replay.fragments
    assert len(joined.frames.blocks) <= 401 / BLOCK * 1.5


def test_rewards_are_scaled_game_by_game():
    replay = ReplayBuffer(1_000, seed=0)
    replay.add(fragment("a", 40))
    replay.add(dataclasses.replace(fragment("b", 40, start=500), game="other"))
    scale = replay.reward_scale()
    assert scale["g"] == pytest.approx((np.arange(3, 40).mean(), np.arange(3, 40).std()))
    assert scale["other"][0] == pytest.approx(scale["g"][0] + 500)
    plain = ReplayBuffer(1_000, seed=0)
    plain.set_state(replay.get_state())
    raw, scaled = plain.sample(300, 5), replay.sample(300, 5, scale=scale)
    mean = np.where(raw["h"][:, :1] >= 500, scale["other"][0], scale["g"][0])
    expected = np.where(raw["learn"], (raw["rewards"] - mean) / scale["g"][1], 0)
    np.testing.assert_allclose(scaled["rewards"], expected, rtol=1e-4, atol=1e-4)
    assert abs(scaled["rewards"][raw["learn"]].mean()) < 0.2
