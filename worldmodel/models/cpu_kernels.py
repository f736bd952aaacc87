"""Forward and backward passes for CPUs that `use_cpu_kernels` puts in place of the plain ones.

The matrix products of a training step on a CPU are so fast that casts, copies into another memory
order and elementwise operations dominate. Here backward passes are written by hand, memory orders
change as part of other operations, buffers are reused, and `set_compile` lets torch compile the
elementwise functions. The results are those of `transformer`, up to the order of additions.

Shapes: as in `transformer`; also I inner width of a feed-forward layer, Q queries, K keys; `...`
any leading dimensions.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.models.frame_order import PEG_FRAMES, FrameIndex, FrameOrder, TemporalTaps
from worldmodel.models.position_encoding import PEG
from worldmodel.models.transformer import (
    LOGIT_SCALE,
    QK_NORM_EPS,
    LayerCache,
    TransformerSubBlock,
    last_peg_inputs,
    prepend_cached,
)

aten = torch.ops.aten
LANES = 32
"""Multiple that the inner width is zero-padded to in half precision: matrix units are a quarter
slower on the paper's rows of 1,365 numbers."""


def use_cpu_kernels(model: nn.Module) -> None:
    """Replace the forward passes of all sub-blocks and PEGs in `model` for CPU tensors.

    Weights are unchanged. On another device the model runs its plain passes.
    """
    for module in model.modules():
        if isinstance(module, TransformerSubBlock | PEG):
            kernel = _peg if isinstance(module, PEG) else _sub_block
            module.forward = functools.partial(_on_cpu, kernel, module)  # type: ignore[method-assign]


def _on_cpu(kernel: Callable[..., Any], module: nn.Module, x: Tensor, *inputs: Any) -> Any:
    """Run the kernel on a CPU, and the module's plain forward pass elsewhere."""
    forward = kernel if x.device.type == "cpu" else type(module).forward
    return forward(module, x, *inputs)


_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def set_compile(on: bool) -> None:
    """Let torch compile the functions of `COMPILABLE` at their next call, or stop that.

    It takes a few seconds for each. Raises InputError without a C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if on and shutil.which(compiler) is None:
        raise InputError(
            f"compile: on a CPU it needs a C++ compiler, and there is no {compiler}: install one"
        )
    _compiled.clear()
    if on:
        _compiled.update({item: torch.compile(item, fullgraph=True) for item in COMPILABLE})


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled form of a function if `set_compile` is on, else the function."""
    return _compiled.get(function, function)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of autocast if it is on, else that of x.

    Autocast does not affect custom autograd functions.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# Modules


def _sub_block(
    block: TransformerSubBlock,
    x_BFhwD: Tensor,
    bias_HLM: Tensor,
    order: FrameOrder,
    cache: LayerCache | None = None,
    newest: int | None = None,
    keep_cache: bool = True,
) -> tuple[Tensor, LayerCache | None]:
    """`TransformerSubBlock.forward`, with each sum and the LayerNorm after it in one function."""
    layer, feed_forward = block.attention, block.feed_forward
    peg_inputs = None if cache is None else cache.peg_inputs_BPhwD
    new_cache = LayerCache(last_peg_inputs(x_BFhwD, peg_inputs)) if keep_cache else None
    dtype = compute_dtype(x_BFhwD)
    sum_and_norm = compiled(add_normed)

    position = block.peg(x_BFhwD, order, peg_inputs)
    x, normed = sum_and_norm(x_BFhwD, position, layer.norm.weight, dtype)

    # Groups are merged after the split, which writes q, k and v in this order; merging them before
    # it would be a copy.
    qkv = rearrange(
        layer.qkv(normed),
        f"b f h w (three heads e) -> three {block.groups} heads ({block.tokens}) e",
        three=3,
        heads=layer.heads,
    )
    split = split_heads(qkv, LOGIT_SCALE * layer.q_scale * layer.k_scale)
    q, k, v = (part.flatten(0, -4) for part in split)
    k, v = prepend_cached(k, v, cache)
    if new_cache is not None and block.caches_keys:
        new_cache.keys_BHPE, new_cache.values_BHPE = k, v
    if newest is not None:
        first = x.shape[1] - newest
        x, q, bias_HLM = x[:, first:], q[:, :, first:].contiguous(), bias_HLM[:, first:]
        if not newest:
            return x, new_cache
    attended = rearrange(
        attention(q, k, v, bias_HLM),
        f"({block.groups}) heads ({block.tokens}) e -> b f h w (heads e)",
        **dict(zip("bfhw", x.shape[:4], strict=True)),
    )

    x, normed = sum_and_norm(x, layer.out(attended), feed_forward.norm.weight, dtype)
    x = x + gated_feed_forward(normed, feed_forward.up.weight, feed_forward.down.weight)
    return x, new_cache


def _peg(
    peg: PEG, x_BFhwD: Tensor, order: FrameOrder, cached_BPhwD: Tensor | None = None
) -> Tensor:
    """`PEG.forward` that copies no frame and skips frames of zeros."""
    frames = x_BFhwD if cached_BPhwD is None else torch.cat([cached_BPhwD, x_BFhwD], dim=1)
    taps = order.temporal_taps(frames.shape[1])
    dtype = compute_dtype(frames)
    encoded: Tensor = _TemporalConv.apply(frames.to(dtype), peg.weight.to(dtype), taps)
    return encoded if cached_BPhwD is None else encoded[:, PEG_FRAMES:]


# Functions


def add_normed(
    x: Tensor, added: Tensor, weight_D: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return x + added, and its LayerNorm in the dtype of the next product."""
    x = x + added
    return x, F.layer_norm(x, weight_D.shape, weight_D).to(dtype)


def split_heads(qkv: Tensor, scale_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split a projection (3, ..., H, N, E), in any memory order, into contiguous q, k and v.

    q is a unit vector times `scale` and k a unit vector: only the product of both scales matters.
    """
    split: tuple[Tensor, Tensor, Tensor] = _SplitHeads.apply(qkv, scale_E.to(qkv.dtype))
    return split


class _SplitHeads(torch.autograd.Function):
    """Normalisation of q and k that writes outputs and gradients in the memory order needed."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, direction, k, v, inverse = compiled(_split)(qkv, scale)
        ctx.save_for_backward(direction, k, inverse, scale)
        ctx.memory = qkv.shape, qkv.stride()
        return q, k, v

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor) -> tuple[Tensor, Tensor]:
        to_q, to_k, to_scale = compiled(_split_backward)(to_q, to_k, *ctx.saved_tensors)
        to_qkv = to_v.new_empty_strided(*ctx.memory)
        for part, gradient in zip(to_qkv, (to_q, to_k, to_v), strict=True):
            part.copy_(gradient)
        return to_qkv, to_scale


def _split(qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return scaled queries, unit queries, unit keys, values, and inverse lengths of q and k."""
    inverse = (
        torch.linalg.vector_norm(qkv[:2], dim=-1, keepdim=True).clamp_min(QK_NORM_EPS).reciprocal()
    )
    direction, k, v = (qkv.new_empty(qkv.shape[1:]) for _ in range(3))
    torch.mul(qkv[0], inverse[0], out=direction)
    torch.mul(qkv[1], inverse[1], out=k)
    return direction * scale, direction, k, v.copy_(qkv[2]), inverse


def _split_backward(
    to_q: Tensor, to_k: Tensor, direction: Tensor, k: Tensor, inverse: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of the projected queries and keys, and of the scale.

    A projection has no gradient along its direction, since its length is divided out.
    """
    to_scale = (to_q * direction).flatten(0, -2).sum(0)
    scaled = to_q * scale
    along = (scaled * direction).sum(-1, keepdim=True)
    of_q = scaled.addcmul_(direction, along, value=-1).mul_(inverse[0])
    of_k = torch.addcmul(to_k, k, (to_k * k).sum(-1, keepdim=True), value=-1).mul_(inverse[1])
    return of_q, of_k, to_scale


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute softmax attention with an additive bias.

    q (G, H, Q, E), k and v (G, H, K, E), bias (H, Q, K) -> (G, H, Q, E). torch's fused kernel for
    CPUs has no gradient for the bias and does not use the matrix unit in bf16.
    """
    attended: Tensor = _Attention.apply(q, k, v, bias.to(v.dtype))
    return attended


class _Attention(torch.autograd.Function):
    """Attention that overwrites logits with weights, and gradients of weights with those of
    logits."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        weights = (q @ k.mT).add_(bias)
        torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, weights = ctx.saved_tensors
        to_v = weights.mT @ grad
        to_logits = grad @ v.mT
        aten._softmax_backward_data(to_logits, weights, -1, weights.dtype, grad_input=to_logits)
        to_bias = to_logits.sum(0) if ctx.needs_input_grad[3] else None
        return to_logits @ k, to_logits.mT @ q, to_v, to_bias


def gated_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Compute GEGLU, (value * gelu(gate)) @ down.T with value, gate = x @ up.T, in the dtype of x.

    x (..., D), up (2I, D), down (D, I) -> (..., D). Only x, value and gate are kept for the
    backward pass: at paper size a step keeps a seventh less than with autograd and takes 2 % more
    time.
    """
    output: Tensor = _GatedFeedForward.apply(x, up, down)
    return output


class _GatedFeedForward(torch.autograd.Function):
    """GEGLU that computes value and gate as two products: gelu is 10 times slower on the strided
    half of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ctx.inner, ctx.dtype = down.shape[1], down.dtype
        rows = x.flatten(0, -2)
        up, down = _padded(up.unflatten(0, (2, ctx.inner)), x.dtype), _padded(down, x.dtype)
        value, gate = (rows @ weight.T for weight in up)
        ctx.save_for_backward(rows, value, gate, up, down)
        return F.linear(F.gelu(gate).mul_(value), down).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, value, gate, up, down = ctx.saved_tensors
        to_rows = grad.flatten(0, -2)
        to_product = to_rows @ down
        product, to_value, to_gate = compiled(_gate_backward)(to_product, value, gate)
        to_down = (to_rows.T @ product)[:, : ctx.inner]
        columns = rows.T.contiguous()  # products of a transposed matrix are slow; used twice
        to_up = rows.new_empty(2, ctx.inner, rows.shape[1], dtype=ctx.dtype)
        for weight_gradient, gradient in zip(to_up, (to_value, to_gate), strict=True):
            weight_gradient.copy_((columns @ gradient).T[: ctx.inner])
        to_x = (to_value @ up[0]).addmm_(to_gate, up[1])
        return to_x.view(grad.shape), to_up.flatten(0, 1), to_down


def _gate_backward(
    to_product: Tensor, value: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return value * gelu(gate), and the gradients of value and gate."""
    active = F.gelu(gate)
    product = value * active
    return product, active.mul_(to_product), aten.gelu_backward(to_product * value, gate)


COMPILABLE = (add_normed, _split, _split_backward, _gate_backward)
"""Functions of elementwise operations and small sums, each of which `set_compile` turns into one
pass over memory. Uncompiled, they work in place where that saves a pass."""


_weight_cache: ContextVar[dict[tuple[int, torch.dtype], Tensor] | None] = ContextVar(
    "weights", default=None
)


@contextmanager
def cached_weights() -> Iterator[None]:
    """Cache the cast and padded weights of `gated_feed_forward` for passes with equal weights.

    Sampling takes 25 passes over a few frames, in which casts would take a seventh of the time.
    """
    outer = _weight_cache.get()
    token = _weight_cache.set({} if outer is None else outer)
    try:
        yield
    finally:
        _weight_cache.reset(token)


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight (., I, ...); in half precision also zero-pad I to a multiple of `LANES`."""
    if dtype.itemsize > 2:
        return weight.to(dtype)
    cache, key = _weight_cache.get(), (weight.data_ptr(), dtype)
    if cache is not None and key in cache:
        return cache[key]
    size = weight.shape[1]
    width = -(-size // LANES) * LANES
    padded = weight.new_empty(len(weight), width, *weight.shape[2:], dtype=dtype)
    padded[:, :size] = weight
    padded[:, size:] = 0
    if cache is not None:
        cache[key] = padded
    return padded


class _TemporalConv(torch.autograd.Function):
    """Sum of 2-D depthwise convolutions of each frame and of the frames that it reads.

    Slices, pads and sums of single frames would cost more than the convolutions, and on a CPU a
    convolution with the flipped kernel is twice as fast as torch's gradient of the input.
    """

    @staticmethod
    def forward(ctx: Any, x_BShwD: Tensor, weight: Tensor, temporal_taps: TemporalTaps) -> Tensor:
        ctx.save_for_backward(x_BShwD, weight)
        ctx.temporal_taps = temporal_taps
        return _temporal_conv(x_BShwD, weight, temporal_taps)

    @staticmethod
    def backward(ctx: Any, grad_BShwD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BShwD, weight = ctx.saved_tensors
        to_weight = torch.zeros_like(weight)
        for tap, (source, target) in enumerate((*ctx.temporal_taps, (slice(None), slice(None)))):
            grad, x = _images(_frames(grad_BShwD, target)), _images(_frames(x_BShwD, source))
            if len(x):
                to_weight[:, :, tap] = torch.ops.aten.convolution_backward(
                    grad, x, weight[:, :, tap], None, (1, 1), (1, 1), (1, 1), False, (0, 0),
                    len(weight), (False, True, False),
                )[1]  # fmt: skip
        back = tuple((target, source) for source, target in ctx.temporal_taps)
        return _temporal_conv(grad_BShwD, weight.flip(3, 4), back), to_weight, None


def _temporal_conv(x_BShwD: Tensor, weight: Tensor, temporal_taps: TemporalTaps) -> Tensor:
    """Sum the convolutions of each frame and of the frames that it reads."""
    output = _depthwise_conv(x_BShwD, weight[:, :, PEG_FRAMES]).contiguous()
    for tap, (source, target) in enumerate(temporal_taps):
        read = _frames(x_BShwD, source)
        if not read.shape[1]:
            continue
        part = _depthwise_conv(read, weight[:, :, tap])
        if isinstance(target, slice):
            output[:, target] += part
        else:
            output.index_add_(1, target, part)
    return output


def _depthwise_conv(x_BFhwD: Tensor, weight: Tensor) -> Tensor:
    images = F.conv2d(_images(x_BFhwD), weight, padding=1, groups=len(weight))
    return rearrange(images, "(b f) d h w -> b f h w d", b=len(x_BFhwD))


def _frames(x_BShwD: Tensor, index: FrameIndex) -> Tensor:
    return x_BShwD[:, index] if isinstance(index, slice) else x_BShwD.index_select(1, index)


def _images(x_BFhwD: Tensor) -> Tensor:
    return rearrange(x_BFhwD, "b f h w d -> (b f) d h w")
