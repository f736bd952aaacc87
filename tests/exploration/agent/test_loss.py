"""Returns and loss against plain loops."""

import math

import numpy as np
import pytest
import torch

from exploration.agent.config import LossConfig
from exploration.agent.loss import actor_critic_loss, lambda_returns, vtrace_returns

GAMMA, LAMBDA = 0.9, 0.8


def segments(seed: int = 0, rows: int = 6, steps: int = 7):
    """Random segments: whole, cut short, cut short by a termination, terminated at the end."""
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


def test_lambda_returns_equal_a_plain_loop():
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
    # r = 1, gamma = 0.9, V = 10 = 1 / (1 - 0.9): every return is 10, also if only a part of the row
    # is valid.
    values, ones, never = torch.full((1, 4), 10.0), torch.ones(1, 3), torch.zeros(1, 3) > 0
    for length in (1, 2, 3):
        valid = torch.arange(3)[None] < length
        segment = (ones * valid, values, never, valid)
        lambda_ = lambda_returns(*segment, 0.9, 1.0)
        vtrace, _ = vtrace_returns(*segment, ones, 0.9, 1.0)
        for returns in (lambda_, vtrace):
            torch.testing.assert_close(returns[valid], torch.full((length,), 10.0))


def test_vtrace_equals_a_plain_loop():
    rewards, values, terminated, valid, ratio, lengths = segments(1)
    targets, advantages = vtrace_returns(
        rewards, values, terminated, valid, ratio, GAMMA, LAMBDA, 1.0
    )
    for row, length in enumerate(lengths):
        # The sum of Espeholt et al. 2018, Eq. 1.
        discount = [0.0 if terminated[row, t] else GAMMA for t in range(length)]
        rho = [min(1.0, float(ratio[row, t])) for t in range(length)]
        r, v = rewards[row].tolist(), values[row].tolist()
        delta = [rho[t] * (r[t] + discount[t] * v[t + 1] - v[t]) for t in range(length)]
        target = [0.0] * (length + 1)
        for s in range(length):
            target[s] = v[s] + sum(
                math.prod(discount[i] * LAMBDA * rho[i] for i in range(s, t)) * delta[t]
                for t in range(s, length)
            )
            assert math.isclose(float(targets[row, s]), target[s], rel_tol=1e-4, abs_tol=1e-5)
        target[length] = v[length]
        for s in range(length):
            ahead = (1 - LAMBDA) * v[s + 1] + LAMBDA * target[s + 1]
            advantage = r[s] + discount[s] * ahead - v[s]
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
        gamma=GAMMA,
        lambda_=LAMBDA,
        entropy_coeff=0.01,
        value_coeff=0.5,
        rho_clip=rho_clip,
        returns="lambda",
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
    batch["entropy_coeff"] = torch.full((len(values),), 0.3)  # an adjusted coefficient
    adjusted = float(actor_critic_loss(logits, values, batch, config)["loss"])
    assert math.isclose(adjusted, policy + 0.5 * value - 0.3 * entropy, rel_tol=1e-4)


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
    assert logits.grad[:, -1].abs().max() == 0, "the last observation only gives a value"
    nothing = {**batch, "learn": torch.zeros_like(batch["learn"])}
    assert actor_critic_loss(logits, values, nothing, config)["loss"] == 0


def test_the_stored_actions_are_learnt_from():
    logits, values, batch = loss_batch()
    batch = {**batch, "rewards": torch.ones_like(batch["rewards"]) * 5}
    logits.requires_grad_()
    actor_critic_loss(logits, values, batch, LossConfig(entropy_coeff=0.0))["loss"].backward()
    chosen = -logits.grad[:, :-1].gather(-1, batch["actions"][..., None]).squeeze(-1)
    assert (chosen[batch["learn"]] > 0).all(), "a reward makes the stored action more likely"


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    """Two learners whose parts differ in `learn` steps average to the update of one learner."""
    logits, values, batch = loss_batch()
    config = LossConfig(gamma=GAMMA, lambda_=LAMBDA, entropy_coeff=0.01)
    logits.requires_grad_()
    whole = actor_critic_loss(logits, values, batch, config)["loss"]
    (expected,) = torch.autograd.grad(whole, logits)
    batch["count"] = torch.full((len(values),), float(batch["learn"].sum()) / 2)
    losses, steps = [], set()
    for part in (slice(0, None, 2), slice(1, None, 2)):
        rows = {name: x[part] for name, x in batch.items()}
        losses.append(actor_critic_loss(logits[part], values[part], rows, config)["loss"])
        steps.add(int(rows["learn"].sum()))
    assert len(steps) == 2
    torch.testing.assert_close(sum(losses) / 2, whole)
    (gradient,) = torch.autograd.grad(sum(losses) / 2, logits)
    torch.testing.assert_close(gradient, expected)
