"""Returns and loss against plain loops, and the replay."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from exploration.agent.compressed_frames import BLOCK, BlockCache, CompressedFrames
from exploration.agent.loss import LossConfig, actor_critic_loss, lambda_returns, vtrace_returns
from exploration.agent.replay_buffer import Fragment, ReplayBuffer

GAMMA, LAMBDA = 0.9, 0.8


def segments(seed: int = 0, rows: int = 6, steps: int = 7):
    """Random segments: whole, cut short, cut short by a termination, terminated at the very end."""
    generator = torch.Generator().manual_seed(seed)
    rewards_BT = torch.rand(rows, steps, generator=generator)
    values_BT1 = torch.randn(rows, steps + 1, generator=generator)
    ratio_BT = torch.exp(torch.randn(rows, steps, generator=generator))
    lengths = [steps, steps, 3, 3, 1, steps - 1]
    valid_BT = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    terminated_BT = torch.zeros(rows, steps, dtype=torch.bool)
    for row, end in ((1, steps), (3, 3)):
        terminated_BT[row, end - 1] = True
    return rewards_BT, values_BT1, terminated_BT, valid_BT, ratio_BT, lengths


def test_lambda_returns_are_the_plain_loops():
    rewards, values, terminated, valid, _, lengths = segments()
    got = lambda_returns(rewards, values, terminated, valid, GAMMA, LAMBDA)
    for row, length in enumerate(lengths):
        following = 0.0 if terminated[row, length - 1] else float(values[row, length])
        for t in reversed(range(length)):
            over = bool(terminated[row, t])
            ahead = 0.0 if over else (1 - LAMBDA) * float(values[row, t + 1]) + LAMBDA * following
            following = float(rewards[row, t]) + GAMMA * ahead
            assert math.isclose(float(got[row, t]), following, rel_tol=1e-5, abs_tol=1e-6)


def test_a_cut_segment_is_worth_its_last_value():
    # r = 1, gamma = 0.9, V = 10 = 1 / (1 - 0.9): every return is 10, also when only a part of the
    # row is valid.
    for length in (1, 2, 3):
        valid = torch.arange(3)[None] < length
        ends = (
            torch.ones(1, 3) * valid,
            torch.full((1, 4), 10.0),
            torch.zeros(1, 3, dtype=torch.bool),
            valid,
        )
        for returns in (
            lambda_returns(*ends, 0.9, 1.0),
            vtrace_returns(*ends, torch.ones(1, 3), 0.9, 1.0)[0],
        ):
            torch.testing.assert_close(returns[valid], torch.full((length,), 10.0))


def test_vtrace_is_the_plain_loops():
    rewards, values, terminated, valid, ratio, lengths = segments(1)
    targets, advantages = vtrace_returns(
        rewards, values, terminated, valid, ratio, GAMMA, LAMBDA, 1.0
    )
    for row, length in enumerate(lengths):
        # Espeholt et al. 2018, eq. 1, as the sum it is written as.
        discount = [0.0 if terminated[row, t] else GAMMA for t in range(length)]
        rho = [min(1.0, float(ratio[row, t])) for t in range(length)]
        delta = [
            rho[t]
            * (
                float(rewards[row, t])
                + discount[t] * float(values[row, t + 1])
                - float(values[row, t])
            )
            for t in range(length)
        ]
        target = [0.0] * (length + 1)
        for s in range(length):
            target[s] = float(values[row, s]) + sum(
                math.prod(discount[i] * LAMBDA * rho[i] for i in range(s, t)) * delta[t]
                for t in range(s, length)
            )
            assert math.isclose(float(targets[row, s]), target[s], rel_tol=1e-4, abs_tol=1e-5)
        target[length] = float(values[row, length])
        for s in range(length):
            ahead = (1 - LAMBDA) * float(values[row, s + 1]) + LAMBDA * target[s + 1]
            advantage = float(rewards[row, s]) + discount[s] * ahead - float(values[row, s])
            assert math.isclose(float(advantages[row, s]), advantage, rel_tol=1e-4, abs_tol=1e-5)
    ones = torch.ones_like(ratio)
    on_policy, _ = vtrace_returns(rewards, values, terminated, valid, ones, GAMMA, LAMBDA)
    plain = lambda_returns(rewards, values, terminated, valid, GAMMA, LAMBDA)
    torch.testing.assert_close(on_policy, plain, atol=1e-5, rtol=1e-5)


def loss_batch(seed: int = 0):
    rewards, values, terminated, valid, _, _ = segments(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    learn = valid.clone()
    learn[0, :4] = False
    batch = {
        "rewards": rewards,
        "terminated": terminated,
        "valid": valid,
        "learn": learn,
        "actions": torch.randint(0, 3, valid.shape, generator=generator),
        "logp": -torch.rand(valid.shape, generator=generator) - 0.5,
    }
    logits = torch.randn(*values.shape, 3, generator=generator)
    return logits, values, batch


@pytest.mark.parametrize("rho_clip", [0.0, 1.0])
def test_loss_by_hand(rho_clip):
    logits, values, batch = loss_batch()
    config = LossConfig(
        gamma=GAMMA, lambda_=LAMBDA, entropy_coeff=0.01, value_coeff=0.5, rho_clip=rho_clip
    )
    parts = actor_critic_loss(logits, values, batch, config)
    ends = batch["rewards"], values, batch["terminated"], batch["valid"]
    returns = lambda_returns(*ends, GAMMA, LAMBDA)
    policy = value = entropy = 0.0
    rows = [(b, t) for b, t in np.argwhere(batch["learn"].numpy())]
    for b, t in rows:
        p = torch.softmax(logits[b, t], -1)
        log_pi = math.log(p[batch["actions"][b, t]])
        weight = min(rho_clip, math.exp(log_pi - float(batch["logp"][b, t]))) if rho_clip else 1.0
        advantage = float(returns[b, t] - values[b, t])
        policy -= weight * log_pi * advantage / len(rows)
        value += advantage**2 / len(rows)
        entropy -= float((p * p.log()).sum()) / len(rows)
    for name, expected in (("policy_loss", policy), ("value_loss", value), ("entropy", entropy)):
        assert math.isclose(float(parts[name]), expected, rel_tol=1e-4)
    assert math.isclose(float(parts["loss"]), policy + 0.5 * value - 0.01 * entropy, rel_tol=1e-4)


@pytest.mark.parametrize("returns", ["lambda", "vtrace"])
def test_steps_without_a_score_and_padding_are_left_out_of_the_loss(returns):
    logits, values, batch = loss_batch()
    logits.requires_grad_()
    values = values.clone().requires_grad_()
    config = LossConfig(returns=returns, rho_clip=1.0, normalize_advantages=True)
    actor_critic_loss(logits, values, batch, config)["loss"].backward()
    out = ~batch["learn"]
    assert logits.grad[:, :-1][out].abs().max() == 0
    assert values.grad[:, :-1][out].abs().max() == 0
    assert logits.grad[:, :-1][batch["learn"]].abs().sum(-1).min() > 0
    assert logits.grad[:, -1].abs().max() == 0, (
        "the last observation only gives a value to go on from"
    )
    nothing = {**batch, "learn": torch.zeros_like(batch["learn"])}
    assert actor_critic_loss(logits, values, nothing, config)["loss"] == 0


def test_the_stored_actions_are_learnt_from():
    logits, values, batch = loss_batch()
    batch = {**batch, "rewards": torch.ones_like(batch["rewards"]) * 5}
    logits.requires_grad_()
    actor_critic_loss(logits, values, batch, LossConfig(entropy_coeff=0.0))["loss"].backward()
    chosen = -logits.grad[:, :-1].gather(-1, batch["actions"][..., None]).squeeze(-1)
    assert (chosen[batch["learn"]] > 0).all(), (
        "a step that paid makes its own stored action likelier"
    )


def fragment(
    name: str, steps: int, first: int = 0, terminated: bool = False, start: int = 0
) -> Fragment:
    """Frames and everything else count on from `start`, so that each row of a batch says where it
    comes from."""
    number = np.arange(start, start + steps + 1)
    return Fragment(
        episode_id=name,
        game="g",
        first_step=first,
        terminated=terminated,
        film=CompressedFrames.of(
            np.broadcast_to(
                (number % 256).astype(np.uint8)[:, None, None, None], (steps + 1, 8, 8, 3)
            )
        ),
        actions_T=number[:-1] % 5,
        rewards_T=number[:-1].astype(np.float32),
        log_probabilities_T=-number[:-1].astype(np.float32),
        scored_T=np.arange(first, first + steps) >= 3,
        h_TD=np.repeat(number[:-1, None], 2, 1).astype(np.float16),
        c_TD=np.repeat(-number[:-1, None], 2, 1).astype(np.float16),
    )


def test_replay_gives_back_what_was_put_in_and_starts_everywhere():
    replay = ReplayBuffer(1_000, seed=1)
    replay.add(fragment("a", 10))
    replay.add(fragment("b", 4, terminated=True, start=100))
    replay.add(fragment("a", 6, first=10, start=10))  # goes on where the first stopped
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
        assert batch["obs"][row, : steps + 1, 0, 0, 0].tolist() == [*number, start + steps]
        assert batch["actions"][row, :steps].tolist() == (number % 5).tolist()
        assert batch["rewards"][row, :steps].tolist() == number.tolist()
        assert batch["logp"][row, :steps].tolist() == (-number).tolist()
        assert batch["valid"][row].tolist() == [True] * steps + [False] * (5 - steps)
        assert (
            batch["learn"][row, :steps].tolist()
            == (number - (100 if start >= 100 else 0) >= 3).tolist()
        )
        assert batch["terminated"][row].tolist() == [
            end == 104 and start + i == 103 for i in range(5)
        ]
        assert not batch["obs"][row, steps + 1 :].any()
    assert batch["obs"].dtype == np.uint8


def test_burn_in_is_left_out_unless_the_episode_starts_there():
    replay = ReplayBuffer(1_000)
    replay.add(fragment("a", 12))
    batch = replay.sample(200, 6, burn_in=4)
    for row, start in enumerate(batch["h"][:, 0].astype(int)):
        for step in range(min(6, 12 - start)):
            assert batch["learn"][row, step] == (start + step >= 3 and (step >= 4 or start == 0))


def test_replay_evicts_the_oldest_and_keeps_gaps_apart():
    replay = ReplayBuffer(10)
    for index, name in enumerate("abcd"):
        replay.add(fragment(name, 4, start=20 * index))
    assert len(replay) == 8
    assert set(replay.sample(200, 2)["h"][:, 0].astype(int)) == {*range(40, 44), *range(60, 64)}
    replay.add(fragment("d", 2, first=6, start=66))  # steps 4 and 5 were dropped
    batch = replay.sample(200, 8)
    assert {
        int(valid.sum())
        for valid, h in zip(batch["valid"], batch["h"][:, 0], strict=True)
        if h >= 60
    } == {
        1,
        2,
        3,
        4,
    }
    with pytest.raises(InputError, match="empty"):
        ReplayBuffer(5).sample(1, 1)


def test_replay_state_goes_on_exactly():
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


def test_parts_of_a_batch_have_the_whole_ones_gradient():
    """What two learners average is what one would have computed, though their parts differ in steps
    to learn from."""
    logits, values, batch = loss_batch()
    batch["logp"] = batch["logp"].clone()
    config = LossConfig(gamma=GAMMA, lambda_=LAMBDA, entropy_coeff=0.01)
    logits.requires_grad_()
    whole = actor_critic_loss(logits, values, batch, config)["loss"]
    (expected,) = torch.autograd.grad(whole, logits)
    count = torch.full((len(values),), float(batch["learn"].sum()) / 2)
    parts = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        rows = {name: x[part] for name, x in (batch | {"count": count}).items()}
        parts.append(actor_critic_loss(logits[part], values[part], rows, config)["loss"])
    assert (
        len({int(batch["learn"][part].sum()) for part in (slice(0, None, 2), slice(1, None, 2))})
        == 2
    )
    torch.testing.assert_close(sum(parts) / 2, whole)
    (got,) = torch.autograd.grad(sum(parts) / 2, logits)
    torch.testing.assert_close(got, expected)


def test_films_give_back_their_frames_and_take_a_fraction_of_the_memory():
    generator = np.random.default_rng(0)
    frames = np.zeros((3 * BLOCK, 16, 16, 3), np.uint8)
    frames[:, :2, :2] = generator.integers(0, 256, (3 * BLOCK, 2, 2, 3))
    cache = BlockCache(size=2)
    for cut in (1, BLOCK - 1, BLOCK, BLOCK + 1, 70):
        film = CompressedFrames.of(frames[:cut]).joined(CompressedFrames.of(frames[cut:]))
        assert len(film) == len(frames)
        np.testing.assert_array_equal(film.without_last().read(0, len(film)), frames[:-1])
        for start, stop in ((0, 96), (31, 33), (5, 5), (64, 96), (95, 96)):
            for opened in (None, cache):
                np.testing.assert_array_equal(film.read(start, stop, opened), frames[start:stop])
        assert film.bytes < frames.nbytes / 10
    replay = ReplayBuffer(10_000)
    for start in range(0, 400, 10):  # fragments of ten steps do not stay blocks of ten
        replay.add(fragment("a", 10, first=start, start=start))
    (stretch,) = replay._stretches
    assert len(stretch.film.blocks) <= 401 / BLOCK * 1.5
    assert replay.bytes == stretch.bytes > 0


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
    middle = np.where(raw["h"][:, :1] >= 500, scale["other"][0], scale["g"][0])
    expected = np.where(raw["learn"], (raw["rewards"] - middle) / scale["g"][1], 0)
    np.testing.assert_allclose(scaled["rewards"], expected, rtol=1e-4, atol=1e-4)
    assert abs(scaled["rewards"][raw["learn"]].mean()) < 0.2
