"""Exploration by an agent whose reward is the world model's uncertainty.

Names are imported on first use: emulator processes import this package too, and must load neither
torch nor RLlib.
"""

from typing import TYPE_CHECKING

from envs.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from exploration.agent.policy import load_policy
    from exploration.algorithm import AutoExplore, AutoExploreConfig
    from exploration.config import ExploreConfig
    from exploration.reward.scorers import LocalScorer, Scorer, ServeScorer
    from exploration.reward.token_entropy import uncertainty_reward
    from exploration.train import explore

__all__ = [
    "AutoExplore",
    "AutoExploreConfig",
    "ExploreConfig",
    "LocalScorer",
    "Scorer",
    "ServeScorer",
    "explore",
    "load_policy",
    "uncertainty_reward",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "AutoExplore": "algorithm",
        "AutoExploreConfig": "algorithm",
        "ExploreConfig": "config",
        "LocalScorer": "reward.scorers",
        "Scorer": "reward.scorers",
        "ServeScorer": "reward.scorers",
        "explore": "train",
        "load_policy": "agent.policy",
        "uncertainty_reward": "reward.token_entropy",
    },
)
