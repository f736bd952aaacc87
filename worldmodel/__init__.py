"""Learns to predict games: frames to tokens, tokens and actions to the next tokens, and how unsure that is."""

from worldmodel.action_map import ActionMap
from worldmodel.config import DynamicsConfig, LatentActionConfig, TokenizerConfig, WorldModelConfig, preset
from worldmodel.dynamics import Dynamics
from worldmodel.env import WorldModelEnv, WorldModelVectorEnv
from worldmodel.genie import GenieRedux, GenieReduxG, WorldModel, load_world_model
from worldmodel.latent_action import LatentActionModel, LatentActionOutput
from worldmodel.tokenizer import Tokenizer, TokenizerOutput

__all__ = [
    "ActionMap",
    "Dynamics",
    "DynamicsConfig",
    "GenieRedux",
    "GenieReduxG",
    "LatentActionConfig",
    "LatentActionModel",
    "LatentActionOutput",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerOutput",
    "WorldModel",
    "WorldModelConfig",
    "WorldModelEnv",
    "WorldModelVectorEnv",
    "load_world_model",
    "preset",
]
