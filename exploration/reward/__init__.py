"""Intrinsic rewards: token entropy (Eq. 2-4), disagreement and baselines, and the scorers that
compute them."""

from exploration.reward.token_entropy import uncertainty_reward

__all__ = ["uncertainty_reward"]
