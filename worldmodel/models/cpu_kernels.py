"""Faster forward passes for CPUs, which `use_cpu_kernels` puts in place of the plain ones of
`transformer`.

A CPU's matrix unit multiplies so fast that a training step is bound by everything else: casts,
copies into another memory order, elementwise operations. Here forward and backward passes are
written by hand: memory orders change while something is computed anyway, what is no longer needed
is overwritten, and `set_compile` lets torch compile the elementwise parts. The numbers are those of
the plain passes, up to the order of additions.

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
    TemporalBlock,
    TransformerSubBlock,
    last_peg_inputs,
)

aten = torch.ops.aten
LANES = 32
"""Multiple that the inner width is padded to with zeros where products are computed in half
precision: on rows of 1,365 numbers, the paper's, matrix units are a quarter slower."""


def optimize_model(model: nn.Module, device: torch.device, *, compile: bool = False) -> None:
    """Prepare a model for its device: CPU kernels on a CPU; elsewhere sub-blocks are compiled where
    `compile` asks.

    Raises InputError where it is to be compiled for a CPU and there is no C++ compiler.
    """
    if device.type == "cpu":
        set_compile(compile, device)
        use_cpu_kernels(model)
    elif compile:
        for module in model.modules():
            if isinstance(module, TransformerSubBlock):
                module.compile()


def use_cpu_kernels(model: nn.Module) -> None:
    """Replace the forward passes of all sub-blocks and position encodings in `model`; weights stay
    as they are.
    """
    for module in model.modules():
        if isinstance(module, TransformerSubBlock):
            module.forward = functools.partial(_sub_block, module)  # type: ignore[method-assign]
        elif isinstance(module, PEG):
            module.forward = functools.partial(_peg, module)  # type: ignore[method-assign]


_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def set_compile(on: bool, device: torch.device) -> None:
    """Let torch compile the functions of `COMPILABLE` in this process when they are next called, or
    stop that.

    Takes a few seconds for each. Matrix products, which are most of the work, are left to their
    libraries. Raises InputError where the device is a CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if on and device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"compile: on a CPU it needs a C++ compiler, and there is no {compiler}: install one"
        )
    _compiled.clear()
    if on:
        _compiled.update({function: torch.compile(function) for function in COMPILABLE})


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled form of a function where `set_compile` is on, else the function
    itself.
    """
    return _compiled.get(function, function)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that autocast computes in where it is on, else that of x: autocast knows no
    custom functions.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# Modules


def _sub_block(
    block: TransformerSubBlock,
    x_BFhwD: Tensor,
    attn_bias_HNN: Tensor,
    order: FrameOrder,
    cache: LayerCache | None = None,
) -> tuple[Tensor, LayerCache]:
    """`TransformerSubBlock.forward`, with each sum and the LayerNorm after it in one function."""
    attention, feed_forward = block.attention, block.feed_forward
    peg_inputs = None if cache is None else cache.peg_inputs_BPhwD
    new_cache = LayerCache(last_peg_inputs(x_BFhwD, peg_inputs))
    dtype = compute_dtype(x_BFhwD)
    sum_and_norm = compiled(add_normed)

    position = block.peg(x_BFhwD, order, peg_inputs)
    x, normed = sum_and_norm(x_BFhwD, position, attention.norm.weight, dtype)
    if isinstance(block, TemporalBlock):
        attended = _attend_in_time(block, normed, order, cache, new_cache)
    else:
        attended = _attend_in_space(block, normed, attn_bias_HNN)
    x, normed = sum_and_norm(x, attention.out(attended), feed_forward.norm.weight, dtype)
    x = x + gated_feed_forward(normed, feed_forward.up.weight, feed_forward.down.weight)
    return x, new_cache


def _attend_in_space(
    block: TransformerSubBlock, normed_BFhwD: Tensor, attn_bias_HNN: Tensor
) -> Tensor:
    """Compute what the heads of a `SpatialBlock` attend to, (B, F, h, w, H*E)."""
    layer, (_, frames, height, _, _) = block.attention, normed_BFhwD.shape
    qkv = layer.qkv(normed_BFhwD)
    qkv = rearrange(
        qkv, "b f h w (three heads e) -> three (b f) heads (h w) e", three=3, heads=layer.heads
    )
    q, k, v = split_heads(qkv, LOGIT_SCALE * layer.q_scale * layer.k_scale)
    attended = attention(q, k, v, attn_bias_HNN)
    return rearrange(attended, "(b f) heads (h w) e -> b f h w (heads e)", f=frames, h=height)


def _attend_in_time(
    block: TemporalBlock,
    normed_BFhwD: Tensor,
    order: FrameOrder,
    cache: LayerCache | None,
    new_cache: LayerCache,
) -> Tensor:
    """Compute what the heads of a `TemporalBlock` attend to, (B, F, h, w, H*E)."""
    layer, (_, _, height, width, _) = block.attention, normed_BFhwD.shape
    qkv = layer.qkv(normed_BFhwD)
    # Groups are merged after the split, which writes q, k and v in this order; before it that would
    # be a copy.
    qkv = rearrange(
        qkv, "b f h w (three heads e) -> three b h w heads f e", three=3, heads=layer.heads
    )
    split = split_heads(qkv, LOGIT_SCALE * layer.q_scale * layer.k_scale)
    q, k, v = (part.flatten(0, 2) for part in split)
    if cache is not None and cache.keys_BHPE is not None and cache.values_BHPE is not None:
        k = torch.cat([cache.keys_BHPE.to(k.dtype), k], dim=2)
        v = torch.cat([cache.values_BHPE.to(v.dtype), v], dim=2)
    new_cache.keys_BHPE, new_cache.values_BHPE = k, v
    attended = attention(q, k, v, order.alibi_bias(block.slopes_H))
    return rearrange(attended, "(b h w) heads f e -> b f h w (heads e)", h=height, w=width)


def _peg(
    peg: PEG, x_BFhwD: Tensor, order: FrameOrder, cached_BPhwD: Tensor | None = None
) -> Tensor:
    """`PEG.forward`: no frame is copied, and frames of zeros are left out."""
    frames = x_BFhwD if cached_BPhwD is None else torch.cat([cached_BPhwD, x_BFhwD], dim=1)
    taps = order.temporal_taps(frames.shape[1])
    dtype = compute_dtype(frames)
    encoded: Tensor = _TemporalConv.apply(frames.to(dtype), peg.weight.to(dtype), taps)
    return encoded if cached_BPhwD is None else encoded[:, PEG_FRAMES:]


# Functions


def add_normed(
    x: Tensor, added: Tensor, weight_D: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return x + added, and its LayerNorm in the type that the next product is computed in."""
    x = x + added
    return x, F.layer_norm(x, weight_D.shape, weight_D).to(dtype)


def split_heads(qkv: Tensor, scale_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split a projection (3, ..., H, N, E), in any memory order, into q, k, v (..., H, N, E),
    contiguous.

    q is a unit vector times `scale`, k a unit vector: only the product of both scales matters.
    """
    split: tuple[Tensor, Tensor, Tensor] = _SplitHeads.apply(qkv, scale_E.to(qkv.dtype))
    return split


class _SplitHeads(torch.autograd.Function):
    """Normalise q and k, and write q, k and v, and backward their gradients, in the memory order
    that is needed.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, direction, k, v, inverse = compiled(_split)(qkv, scale)
        ctx.save_for_backward(direction, k, inverse, scale)
        ctx.memory = qkv.shape, qkv.stride()
        return q, k, v

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor) -> tuple[Tensor, Tensor]:
        to_q, to_k, to_scale = compiled(_across)(to_q, to_k, *ctx.saved_tensors)
        to_qkv = to_v.new_empty_strided(*ctx.memory)
        for part, gradient in zip(to_qkv, (to_q, to_k, to_v), strict=True):
            part.copy_(gradient)
        return to_qkv, to_scale


def _split(qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return scaled queries, their directions, directions of the keys, values, one over the lengths
    of both.
    """
    inverse = (
        torch.linalg.vector_norm(qkv[:2], dim=-1, keepdim=True).clamp_min(QK_NORM_EPS).reciprocal()
    )
    direction, k, v = (qkv.new_empty(qkv.shape[1:]) for _ in range(3))
    torch.mul(qkv[0], inverse[0], out=direction)
    torch.mul(qkv[1], inverse[1], out=k)
    return direction * scale, direction, k, v.copy_(qkv[2]), inverse


def _across(
    to_q: Tensor, to_k: Tensor, direction: Tensor, k: Tensor, inverse: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn gradients of scaled queries and of keys into those of their projections; and of the
    scale.

    A projection has no gradient along its own direction, since its length is divided out.
    """
    to_scale = (to_q * direction).flatten(0, -2).sum(0)
    scaled = to_q * scale
    along = (scaled * direction).sum(-1, keepdim=True)
    of_q = scaled.addcmul_(direction, along, value=-1).mul_(inverse[0])
    of_k = torch.addcmul(to_k, k, (to_k * k).sum(-1, keepdim=True), value=-1).mul_(inverse[1])
    return of_q, of_k, to_scale


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute softmax attention with an additive bias. q, k, v (G, H, ., E), bias (H, Q, K) -> (G,
    H, Q, E).

    Not torch's fused kernel for CPUs, which has no gradient for the bias and did not use the matrix
    unit in bf16.
    """
    attended: Tensor = _Attention.apply(q, k, v, bias.to(v.dtype))
    return attended


class _Attention(torch.autograd.Function):
    """Attention that overwrites logits by weights, and gradients of weights by gradients of
    logits.
    """

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
    """Compute GEGLU, (value * gelu(gate)) @ down.T of value, gate = x @ up.T, in the type of x.

    x (..., D), up (2I, D), down (D, I) -> (..., D). Only x, value and gate are kept for the
    backward pass: at paper size a step keeps a seventh less than autograd's, and recomputing the
    rest takes 2 % longer.
    """
    output: Tensor = _GatedFeedForward.apply(x, up, down)
    return output


class _GatedFeedForward(torch.autograd.Function):
    """GEGLU whose value and gate are two products: on the strided halves of one, a CPU's gelu is 10
    times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        inner, dtype = down.shape[1], down.dtype
        rows = x.flatten(0, -2)
        up, down = _padded(up.unflatten(0, (2, inner)), x.dtype), _padded(down, x.dtype)
        value, gate = (rows @ weight.T for weight in up)
        ctx.save_for_backward(rows, value, gate, up, down)
        ctx.inner, ctx.dtype = inner, dtype
        return F.linear(F.gelu(gate).mul_(value), down).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, value, gate, up, down = ctx.saved_tensors
        to_rows = grad.flatten(0, -2)
        to_product = to_rows @ down
        product, to_value, to_gate = compiled(_gate_backward)(to_product, value, gate)
        to_down = (to_rows.T @ product)[:, : ctx.inner]
        # Products of a transposed matrix are slow on a CPU; this one serves two of them.
        columns = rows.T.contiguous() if rows.device.type == "cpu" else rows.T
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


COMPILABLE = (add_normed, _split, _across, _gate_backward)
"""Functions of elementwise operations and small sums, which `set_compile` makes one pass over
memory of.

They are written for the case that they are not compiled: in place and into memory of the right
order where that saves a pass."""


_weight_cache: ContextVar[dict[tuple[int, torch.dtype], Tensor] | None] = ContextVar(
    "weights", default=None
)


@contextmanager
def cached_weights() -> Iterator[None]:
    """Cache the weights that `gated_feed_forward` casts and pads, while entered: for passes with
    the same weights.

    Sampling takes 25 passes over a few frames, and casting the weights in each costs a seventh of
    the time.
    """
    outer = _weight_cache.get()
    token = _weight_cache.set({} if outer is None else outer)
    try:
        yield
    finally:
        _weight_cache.reset(token)


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight (., I, ...) to the type of the products; in half precision pad I with zeros to
    `LANES`.
    """
    if dtype.itemsize > 2:
        return weight.to(dtype)
    cache, key = _weight_cache.get(), (weight.data_ptr(), dtype)
    if cache is not None and key in cache:
        return cache[key]
    size = weight.shape[1]
    padded = weight.new_empty(
        len(weight), -(-size // LANES) * LANES, *weight.shape[2:], dtype=dtype
    )
    padded[:, :size] = weight
    padded[:, size:] = 0
    if cache is not None:
        cache[key] = padded
    return padded


class _TemporalConv(torch.autograd.Function):
    """Sum of 2-D depthwise convolutions of each frame and of the frames that `temporal_taps` names
    for it.

    Written by hand because slices, pads and sums of single frames cost more than the convolutions
    themselves, and because on a CPU a convolution with the flipped kernel is twice as fast as
    torch's gradient of the input.
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
