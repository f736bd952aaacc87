"""Preparation of a model for its device: CPU kernels, or sub-blocks compiled for a GPU."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.models.cpu_kernels import set_compile, use_cpu_kernels
from worldmodel.models.frame_order import FrameOrder
from worldmodel.models.transformer import LayerCache, TransformerSubBlock

MAX_GRAPHS = 1_024
"""Most graphs that torch may compile of a sub-block before it raises an error. There is one for
each combination of spatial or temporal, with or without gradients, cache and order of the frames,
and each has forms for one and for several clips and frames: about thirty for models of a size, of
which a process may load many."""


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


def optimize_loaded(model: nn.Module, device: torch.device, *, compile: bool | None = None) -> None:
    """Prepare a model that was loaded to be run, not trained: `optimize_model` on GPUs.

    On a CPU it compiles nothing, and leaves what a training run in this process compiles.
    """
    if device.type == "cpu":
        use_cpu_kernels(model)
    else:
        optimize_model(model, device, compile=compile)


def compile_sub_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Replace the forward passes of all sub-blocks in `model` by compiled ones.

    Blocks of equal sizes share their graphs. Forward hooks, such as those of FSDP, and activation
    checkpointing stay outside. A compiled model can be copied and pickled.
    """
    # The default of 8 is reached by training and validation together.
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = MAX_GRAPHS
    for module in model.modules():
        if isinstance(module, TransformerSubBlock):
            module.forward = functools.partial(  # type: ignore[method-assign]
                _run_compiled, backend, module
            )


@functools.cache
def _compiled_forward(backend: str | Callable[..., Any]) -> Callable[..., Any]:
    # A graph that breaks would run in pieces, slowly, and only a log would tell.
    return torch.compile(TransformerSubBlock.forward, backend=backend, fullgraph=True)


def _run_compiled(
    backend: str | Callable[..., Any],
    block: TransformerSubBlock,
    x_BFhwD: Tensor,
    bias_HLM: Tensor,
    order: FrameOrder,
    cache: LayerCache | None = None,
    newest: int | None = None,
    keep_cache: bool = True,
) -> tuple[Tensor, LayerCache | None]:
    """`TransformerSubBlock.forward`, compiled unless a copy of the model was moved to a CPU."""
    if backend == "inductor" and x_BFhwD.is_cpu:
        return type(block).forward(block, x_BFhwD, bias_HLM, order, cache, newest, keep_cache)
    forward = _compiled_forward(backend)
    if torch.is_grad_enabled():  # steps of a training run have equal shapes
        return forward(block, x_BFhwD, bias_HLM, order, cache, newest, keep_cache)

    # A graph takes seconds to compile. Generation and the reward query share theirs: one serves all
    # numbers of clips and of frames from two on, and computes a new cache and all frames, which are
    # left out here.
    _vary(x_BFhwD, 0, 1)
    if block.caches_keys:
        _vary(bias_HLM, 1, 2)
    if cache is not None:
        _vary(cache.peg_inputs_BPhwD, 0)
        _vary(cache.keys_BHPE, 0, 2)
        _vary(cache.values_BHPE, 0, 2)
    frames = x_BFhwD.shape[1]
    x_BFhwD, new_cache = forward(block, x_BFhwD, bias_HLM, order, cache)
    if newest is not None:
        x_BFhwD = x_BFhwD[:, frames - newest :]
    if not keep_cache or new_cache is None:
        return x_BFhwD, None
    if new_cache.keys_BHPE is not None and new_cache.values_BHPE is not None:
        # In one memory order, since another one would compile another graph.
        new_cache.keys_BHPE = new_cache.keys_BHPE.contiguous()
        new_cache.values_BHPE = new_cache.values_BHPE.contiguous()
    return x_BFhwD, new_cache


def _vary(tensor: Tensor | None, *dimensions: int) -> None:
    """Let the next graph that is compiled for a tensor take other sizes of these dimensions."""
    if tensor is not None:
        for dimension in dimensions:
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def _can_compile(device: torch.device) -> bool:
    """Return True if torch can compile for a GPU here: with Triton, and a C compiler for it."""
    compilers = (os.environ.get("CC", ""), "gcc", "clang")
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] >= 7
        and importlib.util.find_spec("triton") is not None
        and any(map(shutil.which, compilers))
    )
