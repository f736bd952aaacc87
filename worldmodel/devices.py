"""Device and precision of a model: what `auto` stands for, passes in half and in full precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from envs.utils.errors import InputError

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Device as users give it; auto is the first GPU, or the CPU if there is none."""
Precision = Literal["auto", "bf16", "fp32"]
"""Precision as users give it; bf16 is autocast, auto is bf16 where the hardware computes it."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name. Raises InputError if this machine has no such device."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = torch.device(name).type
    if not available.get(kind, True):
        reason = "torch finds no GPU" if torch.version.cuda else "torch is built without CUDA"
        reason = reason if kind == "cuda" else "this is no Mac with a GPU"
        raise InputError(f"device {name}: {reason}: use another device, or auto")
    return torch.device(name)


def computes_bf16(device: torch.device) -> bool:
    """Return True if the hardware computes bf16: GPUs since Ampere, CPUs with matrix units.

    Other hardware emulates it, CPUs ten times slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return bf16 or fp32 for a precision that may be auto. Raises InputError for another name."""
    if precision not in get_args(Precision):
        names = ", ".join(get_args(Precision))
        raise InputError(f"precision {precision!r}: choose one of {names}")
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of passes in `precision`, bf16 or fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return the context of operations on the device of `tensor` that no autocast changes."""
    # Tensors without data, on which costs are counted, have no autocast.
    if tensor.device.type == "meta":
        return nullcontext()
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=False)
