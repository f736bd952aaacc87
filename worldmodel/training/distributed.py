"""How several ranks hold one model: each a copy of it (DDP), or each a share of every part (FSDP2).

Both add up gradients over ranks and divide by their number, so that a step is the same but for the order of additions.
Under FSDP weights, gradients and the optimizer's moments are DTensors; a checkpoint holds whole tensors in either case,
so that a run may go on with another number of ranks or the other way of holding the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from envs.utils.errors import InputError
from worldmodel.models.transformer import TransformerSubBlock
from worldmodel.sharded_tensors import on_cpu, shard_like

if TYPE_CHECKING:
    from worldmodel.checkpoint import Checkpoint


def wrap_model(objective: Any, kind: str, ranks: int, device: torch.device) -> Any:
    """What to call for the losses of a batch: `objective` itself, or what adds up its gradients over ranks.

    Call it when the weights are there and before the optimizer is made: `fsdp` replaces the parameters by shares.
    """
    if ranks == 1:
        return objective
    if kind == "fsdp":
        mesh = init_device_mesh(device.type, (ranks,))
        for module in list(objective.modules()):
            if isinstance(module, TransformerSubBlock):
                fully_shard(module, mesh=mesh)
        # What is not in a part too is given back after each pass: else a validation of the average would leave that.
        return fully_shard(objective, mesh=mesh, reshard_after_forward=True)
    return DistributedDataParallel(
        objective,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,  # a quantiser that is switched on late leaves some unused at first
    )


@contextmanager
def gradient_sync(forward: Any, last: bool) -> Iterator[None]:
    """While entered a backward pass adds gradients up over ranks only where it is the `last` of its step."""
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(last)
        yield
    elif isinstance(forward, DistributedDataParallel) and not last:
        with forward.no_sync():
            yield
    else:
        yield


def training_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None = None
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """Gather what a checkpoint holds -> (whole tensors on the CPU of each file, the optimizer's groups as JSON data).

    The optimizer's tensors are named `<quantity>/<parameter>`. Where ranks share the weights all of them must call.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    moments = {
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
    tensors = {"model": on_cpu(module.state_dict()), "optimizer": on_cpu(moments)}
    if average is not None:
        tensors["ema"] = on_cpu(average)
    return tensors, groups


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
        state.setdefault(places[name], {})[quantity] = shard_like(tensor, parameters[name])
    numbered = [{**group, "params": [places[name] for name in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})
