"""Exploration by an agent whose reward is the world model's uncertainty.

Names are imported on first use: emulator processes import this package too, and must load neither
torch nor RLlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exploration.agent.policy import load_policy
    from exploration.algorithm import AutoExplore, AutoExploreConfig
    from exploration.config import ExploreConfig
    from exploration.reward.scorers import LocalScorer, Scorer, ServeScorer
    from exploration.reward.token_entropy import uncertainty_reward
    from exploration.train import explore

_LAZY_EXPORTS = {
    "AutoExplore": "algorithm",
    "AutoExploreConfig": "algorithm",
    "ExploreConfig": "config",
    "LocalScorer": "reward.scorers",
    "Scorer": "reward.scorers",
    "ServeScorer": "reward.scorers",
    "explore": "train",
    "load_policy": "agent.policy",
    "uncertainty_reward": "reward.token_entropy",
}

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'exploration' has no attribute {name!r}")
    return getattr(import_module(f"exploration.{_LAZY_EXPORTS[name]}"), name)
