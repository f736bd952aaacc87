"""Device and precision of a model: what `auto` stands for, passes in half and in full precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import get_args

import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.config import Precision


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of a name; on NVIDIA GPUs fp32 products may then use TF32.

    auto is an NVIDIA GPU, or the CPU if this process sees none. Raises InputError for a device that
    it does not see.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    device = torch.device(name)
    missing = ""
    if device.type == "cuda" and not cuda:
        missing = "torch finds no GPU" if torch.version.cuda else "torch is built without CUDA"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        missing = "this is no Mac with a GPU"
    if missing:
        raise InputError(f"device {name}: {missing}: use another device, or auto")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return device


def resolve_precision(precision: str, device: torch.device, *, training: bool = False) -> str:
    """Return bf16 or fp32 for a precision that may be auto. Raises InputError for another name.

    auto is bf16 on NVIDIA GPUs since Ampere, and in training on CPUs with matrix units for it;
    other hardware emulates it, CPUs ten times slower than fp32.
    """
    if precision not in get_args(Precision):
        names = ", ".join(get_args(Precision))
        raise InputError(f"precision {precision!r}: choose one of {names}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        fast = training and device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of passes in `precision`, bf16 or fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def product_format(device: torch.device, precision: str) -> str:
    """Name the format of the factors in products of a model in `precision`: bf16, tf32 or fp32.

    In fp32, NVIDIA GPUs since Ampere take TF32 where `torch.backends` allows it for products or for
    convolutions. Token ids may differ between formats.
    """
    if precision == "bf16":
        return precision
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    if device.type == "cuda" and allowed and torch.cuda.get_device_capability(device)[0] >= 8:
        return "tf32"
    return "fp32"


def cast_for_inference(x: Tensor) -> Tensor:
    """Return `x` in the type of autocast if that is on and no gradients are computed.

    Sums with the residual stream then move half the bytes. Training keeps them in fp32.
    """
    kind = x.device.type
    # Tensors without data, on which costs are counted, have no autocast.
    if kind == "meta" or torch.is_grad_enabled() or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Return a tensor on a device, copied to an NVIDIA GPU asynchronously from pinned memory.

    Torch does not reuse the pinned memory before the copy is done.
    """
    if device.type == "cuda" and tensor.is_cpu and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def float64(x: Tensor) -> Tensor:
    """Convert to float64, on the CPU if the device has no such type."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return the context of operations on the device of `tensor` that no autocast changes."""
    # Tensors without data, on which costs are counted, have no autocast.
    if tensor.device.type == "meta":
        return nullcontext()
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=False)
