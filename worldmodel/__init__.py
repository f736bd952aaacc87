"""Learns to predict games: frames to tokens, tokens and actions to the next tokens, and how unsure that is."""

from worldmodel.config import DynamicsConfig, TokenizerConfig, WorldModelConfig, preset
from worldmodel.dynamics import Dynamics
from worldmodel.env import WorldModelEnv, WorldModelVectorEnv
from worldmodel.genie import GenieReduxG
from worldmodel.tokenizer import Tokenizer, TokenizerOutput

__all__ = [
    "Dynamics",
    "DynamicsConfig",
    "GenieReduxG",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerOutput",
    "WorldModelConfig",
    "WorldModelEnv",
    "WorldModelVectorEnv",
    "preset",
]
