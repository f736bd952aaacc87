"""Whole tensors from sharded ones (DTensor), and the way back."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor whose shares are put together; all ranks must ask. Others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU; all ranks that share them must ask."""
    return {
        name: full_tensor(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()
    }


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The share of a whole tensor that this rank holds of `like`; the whole tensor where `like` is not shared."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
