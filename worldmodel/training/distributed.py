"""Training on several ranks, each with a copy (DDP) or a shard (FSDP2) of the model.

Both average gradients over ranks, so that a step is the same but for the order of additions. Under
FSDP weights, gradients and the optimizer's moments are DTensors. A checkpoint holds whole tensors
in either case, so that a run may resume with another number of ranks or the other parallelism.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from envs.utils.errors import InputError
from worldmodel.models.transformer import TransformerSubBlock
from worldmodel.sharded_tensors import on_cpu, shard_like

if TYPE_CHECKING:
    from worldmodel.checkpoint import Checkpoint


@dataclass(frozen=True)
class Worker:
    """One process of a training run, and what it asks the others."""

    device: torch.device
    rank: int = 0
    ranks: int = 1

    def any_rank(self, *flags: bool) -> list[bool]:
        """Return for each flag if it is set on any rank."""
        if self.ranks == 1:
            return list(flags)
        counts = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return [bool(count) for count in counts]

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum a tensor over ranks, on the CPU."""
        if self.ranks == 1:
            return values
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def gather_lines(self, line: str | None) -> list[str]:
        """Collect the lines of all ranks that have one."""
        lines = [line] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(lines, line)
        return [line for line in lines if line is not None]


def wrap_model(objective: nn.Module, parallelism: str, worker: Worker) -> nn.Module:
    """Wrap a module so that its gradients are averaged over ranks; on a single rank return it.

    Call it with the weights in place and before building the optimizer: `fsdp` replaces the
    parameters by shards.
    """
    if worker.ranks == 1:
        return objective
    if parallelism == "fsdp":
        mesh = init_device_mesh(worker.device.type, (worker.ranks,))
        for module in list(objective.modules()):
            if isinstance(module, TransformerSubBlock):
                fully_shard(module, mesh=mesh)
        # Also reshard the root after each pass: otherwise validating the EMA would leave it there.
        fully_shard(objective, mesh=mesh, reshard_after_forward=True)
        return objective
    return DistributedDataParallel(
        objective,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        # A quantizer that is switched on late leaves some unused at first.
        find_unused_parameters=True,
    )


@contextmanager
def gradient_sync(wrapped_objective: nn.Module, last: bool) -> Iterator[None]:
    """Average gradients over ranks only in the `last` backward pass of a step."""
    if isinstance(wrapped_objective, FSDPModule):
        wrapped_objective.set_requires_gradient_sync(last)
        yield
    elif isinstance(wrapped_objective, DistributedDataParallel) and not last:
        with wrapped_objective.no_sync():
            yield
    else:
        yield


def training_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor] | None = None
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """Gather the content of a checkpoint -> (tensors of each file, the optimizer's groups as JSON).

    Tensors are whole and on the CPU. The optimizer's are named `<quantity>/<parameter>`. Under FSDP
    all ranks must call.
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
    if ema is not None:
        tensors["ema"] = on_cpu(ema)
    return tensors, groups


def load_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: "Checkpoint"
) -> None:
    """Load the optimizer's state from a checkpoint.

    Raise InputError where the checkpoint trains other parameters.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = checkpoint.state["optimizer"]
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if order != [name for group in groups for name in group["params"]]:
        raise InputError(
            f"{checkpoint.path}: trains other parameters than this run: continue it with "
            "its own settings"
        )
    places = {name: place for place, name in enumerate(order)}
    parameters = dict(module.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.optimizer_tensors().items():
        quantity, name = key.split("/", 1)
        state.setdefault(places[name], {})[quantity] = shard_like(tensor, parameters[name])
    numbered = [{**group, "params": [places[name] for name in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})
