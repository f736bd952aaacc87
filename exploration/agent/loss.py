"""Actor-critic loss: returns (lambda, V-trace), policy gradient, value and entropy terms."""

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.utils.errors import InputError

RETURNS = ("lambda", "vtrace")
LOSS_PARTS = (
    "total_loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "return",
    "ratio",
    "learn_share",
)
"""What a learner logs of each update; the first is RLlib's name for the whole."""


def lambda_returns(
    rewards_BT: Tensor,
    values_BT1: Tensor,
    terminated_BT: Tensor,
    valid_BT: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}); what follows a termination is worth nothing. (B, T).

    A segment that stops without a termination is worth V of its last observation, wherever in the row it stops: on rows
    past the end (not `valid`) G is V itself.
    """
    returns_BT = torch.zeros_like(rewards_BT)
    following_B = values_BT1[:, -1]
    for t in reversed(range(rewards_BT.shape[1])):
        ahead_B = (1 - lambda_) * values_BT1[:, t + 1] + lambda_ * following_B
        return_B = rewards_BT[:, t] + gamma * (~terminated_BT[:, t]).float() * ahead_B
        following_B = torch.where(valid_BT[:, t], return_B, values_BT1[:, t])
        returns_BT[:, t] = following_B
    return returns_BT


def vtrace_returns(
    rewards_BT: Tensor,
    values_BT1: Tensor,
    terminated_BT: Tensor,
    valid_BT: Tensor,
    ratio_BT: Tensor,
    gamma: float,
    lambda_: float,
    rho_clip: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace (Espeholt et al. 2018, eq. 1) with trace lambda * min(1, ratio) -> (value targets, advantages), (B, T).

    The advantages do not hold rho yet. Ends of segments are treated as in `lambda_returns`; with every ratio 1 the
    targets are those of `lambda_returns`.
    """
    targets_BT, advantages_BT = torch.zeros_like(rewards_BT), torch.zeros_like(rewards_BT)
    following_B = values_BT1[:, -1]
    for t in reversed(range(rewards_BT.shape[1])):
        value_B, next_B, ratio_B = values_BT1[:, t], values_BT1[:, t + 1], ratio_BT[:, t]
        discount_B = gamma * (~terminated_BT[:, t]).float()
        delta_B = ratio_B.clamp(max=rho_clip) * (rewards_BT[:, t] + discount_B * next_B - value_B)
        trace_B = lambda_ * ratio_B.clamp(max=1.0)
        target_B = value_B + delta_B + discount_B * trace_B * (following_B - next_B)
        ahead_B = (1 - lambda_) * next_B + lambda_ * following_B
        advantages_BT[:, t] = rewards_BT[:, t] + discount_B * ahead_B - value_B
        following_B = torch.where(valid_BT[:, t], target_B, value_B)
        targets_BT[:, t] = following_B
    return targets_BT, advantages_BT


@dataclass(frozen=True)
class LossConfig:
    """The numbers of the loss. The defaults are the published ones (spec: agent)."""

    gamma: float = 0.995
    lambda_: float = 0.95
    entropy_coeff: float = 0.001
    value_coeff: float = 1.0
    returns: str = "lambda"
    """lambda, or vtrace (off-policy corrected)."""
    rho_clip: float = 1.0
    """Largest weight of a step's policy gradient, pi / mu below it. 0 weighs every step 1, as published."""
    normalize_advantages: bool = False
    """Give the advantages of a batch mean 0 and deviation 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or not 0 <= self.lambda_ <= 1:
            raise InputError(
                f"gamma {self.gamma} and lambda_ {self.lambda_} must lie between 0 and 1"
            )
        if self.returns not in RETURNS:
            raise InputError(f"returns {self.returns!r}: choose one of {', '.join(RETURNS)}")
        if self.rho_clip < 0 or (self.returns == "vtrace" and self.rho_clip == 0):
            raise InputError(
                f"rho_clip {self.rho_clip}: must be 0 (off) or more, and above 0 with vtrace"
            )


def actor_critic_loss(
    logits_BT1A: Tensor, values_BT1: Tensor, batch: dict[str, Tensor], config: LossConfig
) -> dict[str, Tensor]:
    """The named parts of the loss, means over the steps to `learn` from; `loss` is what is optimised.

    `batch` is `ReplayBuffer.sample`'s. A batch without any step to learn from has loss 0. A learner's part of a batch has
    `count`, (B,), the steps to learn from in an average part: the parts' losses then have the whole batch's as mean.
    Advantages are normalised within a part.
    """
    learn_BT = batch["learn"]
    own_count = learn_BT.sum().clamp(min=1)
    count = batch["count"][0] if "count" in batch else own_count
    log_pi_BTA = torch.log_softmax(logits_BT1A[:, :-1], dim=-1)
    log_pi_BT = log_pi_BTA.gather(-1, batch["actions"].long()[..., None]).squeeze(-1)
    ratio_BT = (log_pi_BT.detach() - batch["logp"]).exp()
    ends = batch["rewards"], values_BT1.detach(), batch["terminated"], batch["valid"]
    if config.returns == "vtrace":
        targets_BT, advantages_BT = vtrace_returns(
            *ends, ratio_BT, config.gamma, config.lambda_, config.rho_clip
        )
    else:
        targets_BT = lambda_returns(*ends, config.gamma, config.lambda_)
        advantages_BT = targets_BT - values_BT1[:, :-1].detach()

    def mean(x_BT: Tensor) -> Tensor:
        return torch.where(learn_BT, x_BT, torch.zeros_like(x_BT)).sum() / count

    if config.normalize_advantages:
        centred_BT = advantages_BT - mean(advantages_BT) * count / own_count
        deviation = (mean(centred_BT.square()) * count / own_count).sqrt()
        advantages_BT = centred_BT / (deviation + 1e-6)
    weight_BT = (
        ratio_BT.clamp(max=config.rho_clip) if config.rho_clip else torch.ones_like(ratio_BT)
    )
    policy = -mean(log_pi_BT * advantages_BT * weight_BT)
    value = mean((values_BT1[:, :-1] - targets_BT).square())
    entropy = mean(-(log_pi_BTA.exp() * log_pi_BTA).sum(-1))
    return {
        "loss": policy + config.value_coeff * value - config.entropy_coeff * entropy,
        "policy_loss": policy.detach(),
        "value_loss": value.detach(),
        "entropy": entropy.detach(),
        "return": mean(targets_BT),
        "ratio": mean(ratio_BT),
        "learn_share": learn_BT.float().mean(),
    }
