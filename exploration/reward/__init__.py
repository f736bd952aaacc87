"""Intrinsic rewards: token entropy (Eq. 2-4), disagreement, baselines, and their scorers."""

from exploration.reward.token_entropy import uncertainty_reward

__all__ = ["uncertainty_reward"]
