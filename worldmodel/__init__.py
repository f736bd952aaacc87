"""World models of games: frames to tokens, prediction of tokens from actions, uncertainty."""

from worldmodel.config import (
    DynamicsConfig,
    LatentActionConfig,
    TokenizerConfig,
    WorldModelConfig,
    preset,
)
from worldmodel.env import WorldModelEnv, WorldModelVectorEnv
from worldmodel.models.action_map import ActionMap
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieRedux, GenieReduxG, load_world_model
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.world_model import WorldModel

__all__ = [
    "ActionMap",
    "Dynamics",
    "DynamicsConfig",
    "GenieRedux",
    "GenieReduxG",
    "LatentActionConfig",
    "LatentActionModel",
    "Tokenizer",
    "TokenizerConfig",
    "WorldModel",
    "WorldModelConfig",
    "WorldModelEnv",
    "WorldModelVectorEnv",
    "load_world_model",
    "preset",
]
