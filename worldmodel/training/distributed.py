"""Training on several ranks, each with a copy (DDP) or a shard (FSDP2) of the model.

Both average gradients over ranks, so that steps differ by the order of additions only. Under FSDP,
weights, gradients and the optimizer's moments are DTensors. A checkpoint always holds whole
tensors: a run may resume with another number of ranks or the other parallelism.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from envs.utils.errors import InputError
from worldmodel.models.transformer import TransformerSubBlock
from worldmodel.sharded_tensors import on_cpu

if TYPE_CHECKING:
    from worldmodel.checkpoint import Checkpoint

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Checkpoints hold whole tensors."""


@dataclass(frozen=True)
class Worker:
    """Process of a training run, and its communication with the other ranks."""

    device: torch.device
    rank: int = 0
    ranks: int = 1

    def any_rank(self, *flags: bool | Tensor) -> list[bool]:
        """Return, for each flag, True if it is set on any rank. Wait for the device once."""
        counts = torch.stack([torch.zeros((), device=self.device) + flag for flag in flags])
        if self.ranks > 1:
            dist.all_reduce(counts, dist.ReduceOp.MAX)
        return [bool(count) for count in counts.tolist()]

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum a tensor over ranks, on the CPU."""
        if self.ranks == 1:
            return values
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def gather_lines(self, line: str | None) -> list[str]:
        """Gather the lines of all ranks, without those that are None."""
        lines = [line] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(lines, line)
        return [line for line in lines if line is not None]


def wrap_model(
    objective: nn.Module,
    parallelism: str,
    worker: Worker,
    *,
    precision: str = "fp32",
    find_unused_parameters: bool = False,
) -> nn.Module:
    """Wrap a module to average its gradients over ranks. Return it unchanged on a single rank.

    Call it after loading the weights and before building the optimizer: `fsdp` replaces the
    parameters by shards. With `precision` bf16 it gathers those of the sub-blocks in bf16; shards
    and sums over ranks stay fp32. Unused parameters are those without a gradient in some steps.
    """
    if worker.ranks == 1:
        return objective
    if parallelism == "fsdp":
        mesh = init_device_mesh(worker.device.type, (worker.ranks,))
        # Inputs stay as they are: the sum that runs through the sub-blocks is fp32. So do all other
        # weights: codebook and position bias are computed without autocast.
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if precision == "bf16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for module in list(objective.modules()):
            if isinstance(module, TransformerSubBlock):
                fully_shard(module, mesh=mesh, mp_policy=policy)
        # Reshard the root after each forward pass too: otherwise the weights that a validation
        # gathered, those of the EMA, would stay in use.
        fully_shard(objective, mesh=mesh, reshard_after_forward=True)
        return objective
    return DistributedDataParallel(
        objective,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
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
    all ranks must call, and rank 0 alone receives the weights and the optimizer.
    """
    states: Any = get_state_dict(module, optimizer, options=_WHOLE)
    weights, state = states
    moments = {
        f"{quantity}/{name}": value
        for name, values in state.get("state", {}).items()
        for quantity, value in values.items()
    }
    tensors = {"model": on_cpu(weights), "optimizer": on_cpu(moments)}
    if ema is not None:
        tensors["ema"] = on_cpu(ema)
    return tensors, state.get("param_groups", [])


def load_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: "Checkpoint"
) -> None:
    """Load the optimizer's state from a checkpoint.

    Raise InputError where the checkpoint trains other parameters.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = checkpoint.state["optimizer"]
    if order != [name for group in groups for name in group["params"]]:
        raise InputError(
            f"{checkpoint.path}: trains other parameters than this run: resume it with the "
            "settings that it was started with"
        )
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.optimizer_tensors().items():
        quantity, name = key.split("/", 1)
        moments.setdefault(name, {})[quantity] = tensor
    state = {"state": moments, "param_groups": groups}
    set_optimizer_state_dict(module, optimizer, state, options=_WHOLE)
