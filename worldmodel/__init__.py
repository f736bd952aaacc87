"""World models of games: frames to tokens, tokens and actions to the next tokens, and the
uncertainty of those.
"""

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
from worldmodel.models.genie import GenieRedux, GenieReduxG, WorldModel, load_world_model
from worldmodel.models.latent_action import LatentActionModel, LatentActionOutput
from worldmodel.models.tokenizer import Tokenizer, TokenizerOutput

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
