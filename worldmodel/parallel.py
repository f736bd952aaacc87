"""How several ranks hold one model: each a copy of it (DDP), or each a share of every part (FSDP2).

Both add up gradients over ranks and divide by their number, so that a step is the same but for the order of additions.
Under FSDP weights, gradients and the optimizer's moments are DTensors; a checkpoint holds whole tensors in either case,
so that a run may go on with another number of ranks or the other way of holding the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from worldmodel.transformer import Part


def distribute(objective: Any, kind: str, ranks: int, device: torch.device) -> Any:
    """What to call for the losses of a batch: `objective` itself, or what adds up its gradients over ranks.

    Call it when the weights are there and before the optimizer is made: `fsdp` replaces the parameters by shares.
    """
    if ranks == 1:
        return objective
    if kind == "fsdp":
        mesh = init_device_mesh(device.type, (ranks,))
        for module in list(objective.modules()):
            if isinstance(module, Part):
                fully_shard(module, mesh=mesh)
        # What is not in a part too is given back after each pass: else a validation of the average would leave that.
        return fully_shard(objective, mesh=mesh, reshard_after_forward=True)
    return DistributedDataParallel(
        objective,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,  # a quantiser that is switched on late leaves some unused at first
    )


@contextmanager
def adding_up(forward: Any, last: bool) -> Iterator[None]:
    """While entered a backward pass adds gradients up over ranks only where it is the `last` of its step."""
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(last)
        yield
    elif isinstance(forward, DistributedDataParallel) and not last:
        with forward.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor whose shares are put together; all ranks must ask. Others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU; all ranks that share them must ask."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def shared_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The share of a whole tensor that this rank holds of `like`; the whole tensor where `like` is not shared."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
