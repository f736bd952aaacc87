"""World models of games: frames to tokens, prediction of tokens from actions, uncertainty.

Names are imported on first use, so that configurations can be read without torch.
"""

from typing import TYPE_CHECKING

from envs.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
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

__getattr__ = lazy_exports(
    __name__,
    {
        "ActionMap": "models.action_map",
        "Dynamics": "models.dynamics",
        "DynamicsConfig": "config",
        "GenieRedux": "models.genie",
        "GenieReduxG": "models.genie",
        "LatentActionConfig": "config",
        "LatentActionModel": "models.latent_action",
        "Tokenizer": "models.tokenizer",
        "TokenizerConfig": "config",
        "WorldModel": "models.world_model",
        "WorldModelConfig": "config",
        "WorldModelEnv": "env",
        "WorldModelVectorEnv": "env",
        "load_world_model": "models.genie",
        "preset": "config",
    },
)
