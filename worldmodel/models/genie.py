"""GenieRedux-G and GenieRedux: world models on real and on latent actions."""

import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.config import check_action_ids
from worldmodel.models import saved_model
from worldmodel.models.action_map import ActionMap
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.weights import check_lam
from worldmodel.models.world_model import WorldModel


class GenieReduxG(WorldModel):
    """World model on real actions.

    Raises InputError if tokenizer and dynamics do not belong together, or the dynamics was trained
    on latent actions.
    """

    PARTS: ClassVar[dict[str, Any]] = {"tokenizer": Tokenizer, "dynamics": Dynamics}

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics) -> None:
        super().__init__(tokenizer, dynamics)
        if self.cfg.dynamics.latent_actions:
            raise InputError(
                "dynamics was trained on latent actions: build a GenieRedux of it and its LAM"
            )


class GenieRedux(WorldModel):
    """World model on the latent actions of `lam`, or on real ones through `action_map`.

    It takes latent actions, such as `lam.encode` infers; `for_game` returns the same model on real
    actions. A dynamics without a latent action model adopts this one. Raises InputError if the
    three do not belong together, or the dynamics was trained on real actions.
    """

    PARTS: ClassVar[dict[str, Any]] = {
        "tokenizer": Tokenizer,
        "lam": LatentActionModel,
        "dynamics": Dynamics,
    }

    def __init__(
        self,
        tokenizer: Tokenizer,
        lam: LatentActionModel,
        dynamics: Dynamics,
        action_map: ActionMap | None = None,
    ) -> None:
        super().__init__(tokenizer, dynamics)
        if not self.cfg.dynamics.latent_actions:
            raise InputError(
                "dynamics was trained on real actions: build a GenieReduxG of it, without a LAM"
            )
        if (lam.cfg.lam, lam.cfg.size) != (self.cfg.lam, self.cfg.size):
            raise InputError(
                "LAM and dynamics are of different configurations: use the LAM it was trained with"
            )
        check_lam(dynamics, lam)
        self.lam, self.action_map = lam, action_map
        self._latent_of_A: Tensor | None = None

    @property
    def actions(self) -> int:
        """Number of latent actions or, after `for_game`, of real ones."""
        return self.cfg.actions if self._latent_of_A is None else len(self._latent_of_A)

    def check_actions(self, actions_BA: Tensor, batch: int, count: int) -> None:
        check_action_ids(actions_BA, batch, count, self.actions)

    def encode_actions(self, actions_BA: Tensor, first: bool = True) -> Tensor:
        if self._latent_of_A is not None:
            actions_BA = self._latent_of_A.to(actions_BA.device)[actions_BA.long()]
        return self.dynamics.encode_actions(actions_BA, first)

    def for_game(self, game: str | None) -> Self:
        """Return the same model on real actions, each mapped to a latent one.

        For None, and for a game that the map was not fitted on, the map of all games is used.
        Raises InputError without a map.
        """
        if self.action_map is None:
            raise InputError("this GenieRedux has no action map: fit one with `autoexplore export`")
        driven = copy.copy(self)
        driven._latent_of_A = torch.tensor(self.action_map.latent_actions(game))
        return driven


def load_world_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    *,
    compile: bool | None = None,
) -> WorldModel:
    """Load the GenieRedux or GenieReduxG in a folder. Raises InputError as `WorldModel.load`."""
    classes = {kind.__name__: kind for kind in (GenieReduxG, GenieRedux)}
    return saved_model.read_model(classes, Path(path), device, precision, compile=compile)
