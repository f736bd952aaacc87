"""An optimizer's state as named tensors and JSON data, so that a checkpoint holds it without a pickle."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from envs.errors import InputError
from worldmodel.parallel import on_cpu, shared_like

if TYPE_CHECKING:
    from worldmodel.checkpoint import Checkpoint


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as tensors named `<quantity>/<parameter>` and its groups as JSON data."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    tensors = {
        f"{quantity}/{names[cast(nn.Parameter, parameter)]}": value
        for parameter, values in optimizer.state.items()
        for quantity, value in values.items()
    }
    groups = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [names[p] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    return on_cpu(tensors), groups


def load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: "Checkpoint") -> None:
    """Give an optimizer over the same parameters the state that a checkpoint holds. Raises InputError otherwise."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = checkpoint.state["optimizer"]
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if order != [name for group in groups for name in group["params"]]:
        raise InputError(f"{checkpoint.path}: trains other parameters than this run: continue it with its own settings")
    places = {name: place for place, name in enumerate(order)}
    parameters = dict(module.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.optimizer_tensors().items():
        quantity, name = key.split("/", 1)
        state.setdefault(places[name], {})[quantity] = shared_like(tensor, parameters[name])
    numbered = [{**group, "params": [places[name] for name in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})
