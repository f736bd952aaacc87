"""What a block does most, with forward and backward passes written by hand: fewer passes over memory than autograd's.

A matrix unit multiplies so fast that a training step is bound by all that is not a product: casts, copies into another
order of dimensions, elementwise operations. Here orders change while something is computed anyway, what is no longer
needed is overwritten, and `set_compile` lets torch compile the elementwise parts.

Shapes: G groups of N tokens that attend to each other, H heads, E width of a head, Q queries, K keys, D width, I inner
width of a feed-forward layer; `...` any leading dimensions.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.models.frame_order import PEG_FRAMES, FrameIndex, TemporalTaps

aten = torch.ops.aten
SMALLEST = 1e-6
"""Lengths below this are taken for it where a vector is divided by its length."""
LANES = 32
"""The inner width is filled up with zeros to a multiple of this where products are made in half precision: on rows of
1,365 numbers, the paper's, matrix units are a quarter slower."""


P = ParamSpec("P")
R = TypeVar("R")


class Compilable(Generic[P, R]):
    """A function of elementwise operations and small sums, which `set_compile` makes one pass over memory of.

    Written for the case that it is not compiled: in place and into memory of the right order where that saves a pass.
    """

    every: ClassVar[list["Compilable[Any, Any]"]] = []

    def __init__(self, plain: Callable[P, R]) -> None:
        self.plain = self.now = plain
        functools.update_wrapper(self, plain)
        self.every.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.now(*args, **kwargs)


def set_compile(on: bool, device: torch.device) -> None:
    """Let torch compile what is fusable in this process when it is next called, or stop that.

    Takes a few seconds for each kernel. Products, which are most of the work, are left to the libraries that make them.
    Raises InputError where the device is a CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if on and device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(f"compile: on a CPU it needs a C++ compiler, and there is no {compiler}: install one")
    for kernel in Compilable.every:
        kernel.now = torch.compile(kernel.plain) if on else kernel.plain


@Compilable
def add_normed(x: Tensor, part: Tensor, weight_D: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> (x + part, its LayerNorm in the type that the next product is computed in)."""
    x = x + part
    return x, F.layer_norm(x, weight_D.shape, weight_D).to(dtype)


def split_heads(qkv: Tensor, scale_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A projection (3, ..., H, N, E), in memory in any order -> q, k, v (..., H, N, E), contiguous.

    q is a unit vector times `scale`, k a unit vector: scales of both count only as their product.
    """
    made: tuple[Tensor, Tensor, Tensor] = _SplitHeads.apply(qkv, scale_E.to(qkv.dtype))
    return made


class _SplitHeads(torch.autograd.Function):
    """Brings q, k and v, and backward their gradients, into the other order where they are computed."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, direction, k, v, inverse = _split(qkv, scale)
        ctx.save_for_backward(direction, k, inverse, scale)
        ctx.memory = qkv.shape, qkv.stride()
        return q, k, v

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor) -> tuple[Tensor, Tensor]:
        to_q, to_k, to_scale = _across(to_q, to_k, *ctx.saved_tensors)
        to_qkv = to_v.new_empty_strided(*ctx.memory)
        for part, made in zip(to_qkv, (to_q, to_k, to_v), strict=True):
            part.copy_(made)
        return to_qkv, to_scale


@Compilable
def _split(qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> (scaled queries, their directions, directions of the keys, values, one over the lengths of both)."""
    inverse = torch.linalg.vector_norm(qkv[:2], dim=-1, keepdim=True).clamp_min(SMALLEST).reciprocal()
    direction, k, v = (qkv.new_empty(qkv.shape[1:]) for _ in range(3))
    torch.mul(qkv[0], inverse[0], out=direction)
    torch.mul(qkv[1], inverse[1], out=k)
    return direction * scale, direction, k, v.copy_(qkv[2]), inverse


@Compilable
def _across(
    to_q: Tensor, to_k: Tensor, direction: Tensor, k: Tensor, inverse: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scaled queries and of keys -> of their projections, across the directions; and of the scale."""
    to_scale = (to_q * direction).flatten(0, -2).sum(0)
    scaled = to_q * scale
    along = (scaled * direction).sum(-1, keepdim=True)
    of_q = scaled.addcmul_(direction, along, value=-1).mul_(inverse[0])
    of_k = torch.addcmul(to_k, k, (to_k * k).sum(-1, keepdim=True), value=-1).mul_(inverse[1])
    return of_q, of_k, to_scale


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention, additive bias, logits unscaled. q, k, v (G, H, ., E), bias (H, Q, K) -> (G, H, Q, E).

    On a CPU not its fused kernel, which has no gradient for the bias and did not use the matrix unit in bf16.
    """
    bias = bias.to(v.dtype)
    if v.device.type == "cpu":
        made: Tensor = _Attention.apply(q, k, v, bias)
        return made
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)


class _Attention(torch.autograd.Function):
    """Logits become shares, and gradients of shares become gradients of logits, where they are."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        share = (q @ k.mT).add_(bias)
        torch.softmax(share, -1, out=share)
        ctx.save_for_backward(q, k, v, share)
        return share @ v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, share = ctx.saved_tensors
        to_v = share.mT @ grad
        to_logits = grad @ v.mT
        aten._softmax_backward_data(to_logits, share, -1, share.dtype, grad_input=to_logits)
        to_bias = to_logits.sum(0) if ctx.needs_input_grad[3] else None
        return to_logits @ k, to_logits.mT @ q, to_v, to_bias


def gated_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """GEGLU: (value * gelu(gate)) @ down.T of value, gate = x @ up.T. x (..., D), up (2I, D), down (D, I) -> (..., D).

    In the type of x. Only x, value and gate are kept for the backward pass: at paper size that is a seventh less of all
    that a step keeps than autograd's, and computing the rest again takes 2 % longer.
    """
    made: Tensor = _GatedFeedForward.apply(x, up, down)
    return made


class _GatedFeedForward(torch.autograd.Function):
    """Value and gate are products of their own: on the strided halves of one, a CPU's gelu is 10 times slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        inner, dtype = down.shape[1], down.dtype
        rows = x.flatten(0, -2)
        up, down = _filled(up.unflatten(0, (2, inner)), x.dtype), _filled(down, x.dtype)
        value, gate = (rows @ weight.T for weight in up)
        ctx.save_for_backward(rows, value, gate, up, down)
        ctx.inner, ctx.dtype = inner, dtype
        return F.linear(F.gelu(gate).mul_(value), down).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, value, gate, up, down = ctx.saved_tensors
        to_rows = grad.flatten(0, -2)
        to_product = to_rows @ down
        product, to_value, to_gate = _gate_backward(to_product, value, gate)
        to_down = (to_rows.T @ product)[:, : ctx.inner]
        # Products of a transposed matrix are slow on a CPU; this one serves two of them.
        columns = rows.T.contiguous() if rows.device.type == "cpu" else rows.T
        to_up = rows.new_empty(2, ctx.inner, rows.shape[1], dtype=ctx.dtype)
        for made, part in zip(to_up, (to_value, to_gate), strict=True):
            made.copy_((columns @ part).T[: ctx.inner])
        to_x = (to_value @ up[0]).addmm_(to_gate, up[1])
        return to_x.view(grad.shape), to_up.flatten(0, 1), to_down


@Compilable
def _gate_backward(to_product: Tensor, value: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> (value * gelu(gate), gradient of the value, of the gate)."""
    active = F.gelu(gate)
    product = value * active
    return product, active.mul_(to_product), aten.gelu_backward(to_product * value, gate)


_kept: ContextVar[dict[tuple[int, torch.dtype], Tensor] | None] = ContextVar("kept", default=None)


@contextmanager
def cached_weights() -> Iterator[None]:
    """While entered, what `gated_feed_forward` makes of its weights is kept: for many passes with the same weights.

    Sampling makes 25 passes over a few frames, and casting the weights for each takes a seventh of them.
    """
    outer = _kept.get()
    token = _kept.set({} if outer is None else outer)
    try:
        yield
    finally:
        _kept.reset(token)


def _filled(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight (., I, ...) in the type of the products; in half precision with zeros up to a multiple of `LANES`."""
    if dtype.itemsize > 2:
        return weight.to(dtype)
    kept, key = _kept.get(), (weight.data_ptr(), dtype)
    if kept is not None and key in kept:
        return kept[key]
    size = weight.shape[1]
    filled = weight.new_empty(len(weight), -(-size // LANES) * LANES, *weight.shape[2:], dtype=dtype)
    filled[:, :size] = weight
    filled[:, size:] = 0
    if kept is not None:
        kept[key] = filled
    return filled


class _TemporalConv(torch.autograd.Function):
    """Sum of 2-D depthwise convolutions of a frame and of the frames that `temporal_taps` names for each tap in time.

    Written by hand because slices, pads and sums of single frames cost more than the convolutions themselves, and
    because a CPU convolves twice as fast with the kernel turned round as it finds the gradient of what was convolved.
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
                    grad, x, weight[:, :, tap], None, (1, 1), (1, 1), (1, 1), False, (0, 0), len(weight),
                    (False, True, False),
                )[1]  # fmt: skip
        back = tuple((target, source) for source, target in ctx.temporal_taps)
        return _temporal_conv(grad_BShwD, weight.flip(3, 4), back), to_weight, None


def _temporal_conv(x_BShwD: Tensor, weight: Tensor, temporal_taps: TemporalTaps) -> Tensor:
    """What each frame becomes by itself and by the frames that it reads."""
    made = _depthwise_conv(x_BShwD, weight[:, :, PEG_FRAMES]).contiguous()
    for tap, (source, target) in enumerate(temporal_taps):
        read = _frames(x_BShwD, source)
        if not read.shape[1]:
            continue
        part = _depthwise_conv(read, weight[:, :, tap])
        if isinstance(target, slice):
            made[:, target] += part
        else:
            made.index_add_(1, target, part)
    return made


def _depthwise_conv(x_BFhwD: Tensor, weight: Tensor) -> Tensor:
    images = F.conv2d(_images(x_BFhwD), weight, padding=1, groups=len(weight))
    return images.permute(0, 2, 3, 1).unflatten(0, x_BFhwD.shape[:2])


def _frames(x_BShwD: Tensor, places: FrameIndex) -> Tensor:
    return x_BShwD[:, places] if isinstance(places, slice) else x_BShwD.index_select(1, places)


def _images(x_BFhwD: Tensor) -> Tensor:
    return x_BFhwD.flatten(0, 1).permute(0, 3, 1, 2)
