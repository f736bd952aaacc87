"""Preparation of a model for its device: CPU kernels, or sub-blocks compiled for a GPU."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from worldmodel.models.cpu_kernels import set_compile, use_cpu_kernels
from worldmodel.models.transformer import TransformerSubBlock

MAX_GRAPHS = 128
"""Most graphs that torch may compile of a sub-block before it runs the plain one. There is one for
each combination of spatial or temporal, with or without gradients, cache and order of the frames,
and each has forms for fixed and varying numbers of clips and frames: about thirty in all."""


def optimize_model(model: nn.Module, device: torch.device, *, compile: bool | None = None) -> None:
    """Prepare a model for its device: CPU kernels on a CPU, compiled sub-blocks on other devices.

    `compile` None compiles on NVIDIA GPUs for which there is a compiler. Raises InputError if it is
    True for a CPU and there is no C++ compiler.
    """
    if device.type == "cpu":
        set_compile(bool(compile))
        use_cpu_kernels(model)
    elif compile or (compile is None and _can_compile(device)):
        compile_sub_blocks(model)


def compile_sub_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Replace the forward passes of all sub-blocks in `model` by compiled ones.

    Blocks of equal sizes share their graphs. Forward hooks, such as those of FSDP, and activation
    checkpointing stay outside.
    """
    # The default of 8 is reached by training and validation together. Then torch runs the plain
    # passes, and only a warning tells.
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    forward = torch.compile(TransformerSubBlock.forward, backend=backend)
    for module in model.modules():
        if isinstance(module, TransformerSubBlock):
            module.forward = functools.partial(forward, module)  # type: ignore[method-assign]


def _can_compile(device: torch.device) -> bool:
    """Return True if torch can compile for a GPU here: with Triton, and a C compiler for it."""
    compilers = (os.environ.get("CC", ""), "gcc", "clang")
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] >= 7
        and importlib.util.find_spec("triton") is not None
        and any(map(shutil.which, compilers))
    )
