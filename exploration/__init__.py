"""The agent that goes where the world model is unsure.

Names are loaded when they are first asked for: the processes that hold emulators import this package too, and must
load neither torch nor RLlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exploration.algorithm import AutoExplore, AutoExploreConfig
    from exploration.policy import load_policy
    from exploration.recipes import ExploreRecipe
    from exploration.reward import uncertainty_reward
    from exploration.run import explore
    from exploration.scorers import LocalScorer, Scorer, ServeScorer

_HOMES = {
    "AutoExplore": "algorithm",
    "AutoExploreConfig": "algorithm",
    "ExploreRecipe": "recipes",
    "LocalScorer": "scorers",
    "Scorer": "scorers",
    "ServeScorer": "scorers",
    "explore": "run",
    "load_policy": "policy",
    "uncertainty_reward": "reward",
}

__all__ = [
    "AutoExplore",
    "AutoExploreConfig",
    "ExploreRecipe",
    "LocalScorer",
    "Scorer",
    "ServeScorer",
    "explore",
    "load_policy",
    "uncertainty_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'exploration' has no attribute {name!r}")
    return getattr(import_module(f"exploration.{_HOMES[name]}"), name)
