"""Actor-critic loss: returns (lambda or V-trace), policy gradient, value and entropy terms.

The loss uses the stored actions; the published code draws new ones, from which nothing is learnt.
Segments of the replay buffer are older than the weights: `rho_clip` weights each step's policy
gradient by min(rho_clip, pi(a) / mu(a)), where mu is the policy that acted, and returns="vtrace"
corrects the returns as well.

Shapes: B segments, T steps, T1 = T + 1 observations, A actions.
"""

import torch
from torch import Tensor

from exploration.agent.config import LossConfig

LOSS_PARTS = (
    "total_loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "return",
    "ratio",
    "learn_share",
)
"""Metrics of an update; the first is RLlib's name for the whole loss."""


def lambda_returns(
    rewards_BT: Tensor,
    values_BT1: Tensor,
    terminated_BT: Tensor,
    valid_BT: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Compute G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}), (B, T).

    The return after a termination is 0. A segment that stops without one is bootstrapped from V of
    its last observation, wherever in the row it stops: at steps that are not `valid`, G is V.
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
    """Compute V-trace targets (Espeholt et al. 2018, Eq. 1) with trace lambda * min(1, ratio).

    Returns value targets and advantages, (B, T) each; the advantages are not yet weighted by rho.
    Ends of segments are treated as in `lambda_returns`, which gives the same targets if every ratio
    is 1.
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


def actor_critic_loss(
    logits_BT1A: Tensor, values_BT1: Tensor, batch: dict[str, Tensor], config: LossConfig
) -> dict[str, Tensor]:
    """Compute the loss to minimise, `loss`, and its terms, means over the `learn` steps.

    `batch` holds the arrays of `ReplayBuffer.sample`. Without a step to learn from the loss is 0.
    `entropy_coeff` (B,), if given, replaces that of `config`; `weight` (B,), if given, weights the
    loss of each segment. `errors` (B, T) are those of the values, absolute.
    If several learners share a batch, `count` (B,) is the mean number of `learn` steps of their
    parts, so that the mean of their losses is the loss of the whole batch. Advantages are
    normalised within a part.
    """
    learn_BT = batch["learn"]
    num_steps = learn_BT.sum().clamp(min=1)
    divisor = batch["count"][0] if "count" in batch else num_steps

    def mean(x_BT: Tensor) -> Tensor:
        return torch.where(learn_BT, x_BT, torch.zeros_like(x_BT)).sum() / divisor

    def weighted_mean(x_BT: Tensor) -> Tensor:
        return mean(x_BT * batch["weight"][:, None] if "weight" in batch else x_BT)

    # Log-probabilities of the stored actions, and importance ratios pi / mu.
    log_pi_BTA = torch.log_softmax(logits_BT1A[:, :-1], dim=-1)
    log_pi_BT = log_pi_BTA.gather(-1, batch["actions"].long()[..., None]).squeeze(-1)
    ratio_BT = (log_pi_BT.detach() - batch["logp"]).exp()

    # Value targets and advantages; no gradient flows through either.
    targets_BT, advantages_BT = _targets_and_advantages(
        values_BT1.detach(), ratio_BT, batch, config
    )

    # Normalize the advantages over the steps to learn from.
    if config.normalize_advantages:
        centred_BT = advantages_BT - mean(advantages_BT) * divisor / num_steps
        deviation = (mean(centred_BT.square()) * divisor / num_steps).sqrt()
        advantages_BT = centred_BT / (deviation + 1e-6)

    # Policy gradient loss, each step weighted by its clipped importance ratio.
    clipped_BT = ratio_BT.clamp(max=config.rho_clip)
    weight_BT = clipped_BT if config.rho_clip else torch.ones_like(ratio_BT)
    policy_loss = -weighted_mean(log_pi_BT * advantages_BT * weight_BT)

    # Value loss: squared error to the lambda returns or V-trace targets.
    errors_BT = values_BT1[:, :-1] - targets_BT
    value_loss = weighted_mean(errors_BT.square())

    # Entropy bonus, which favours exploration.
    entropy = mean(-(log_pi_BTA.exp() * log_pi_BTA).sum(-1))
    bonus = batch["entropy_coeff"][0] if "entropy_coeff" in batch else config.entropy_coeff

    return {
        "loss": policy_loss + config.value_coeff * value_loss - bonus * entropy,
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": entropy.detach(),
        "return": mean(targets_BT),
        "ratio": mean(ratio_BT),
        "learn_share": learn_BT.float().mean(),
        "errors": errors_BT.detach().abs(),
    }


def _targets_and_advantages(
    values_BT1: Tensor, ratio_BT: Tensor, batch: dict[str, Tensor], config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Compute value targets and advantages (B, T) with the configured kind of returns."""
    segments = batch["rewards"], values_BT1, batch["terminated"], batch["valid"]
    discounts = config.gamma, config.lambda_
    if config.returns == "vtrace":
        return vtrace_returns(*segments, ratio_BT, *discounts, config.rho_clip)
    targets_BT = lambda_returns(*segments, *discounts)
    return targets_BT, targets_BT - values_BT1[:, :-1]
