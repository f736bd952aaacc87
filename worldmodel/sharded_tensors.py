"""Conversion between sharded tensors (DTensor) and whole ones."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, with all ranks calling; return another tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors on the CPU, with all ranks calling."""
    return {
        name: full_tensor(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()
    }


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, sharded as `like`; the tensor if `like` is not."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
