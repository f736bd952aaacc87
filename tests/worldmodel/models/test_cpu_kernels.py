"""Hand-written forward and backward passes: equal to plain ones, in all orders of memory, compiled or not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.models import cpu_kernels
from worldmodel.models.cpu_kernels import (
    add_normed,
    attention,
    cached_weights,
    gated_feed_forward,
    set_compile,
    split_heads,
)

CPU = torch.device("cpu")


def alike(one: Callable[..., Tensor], other: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Both give the same, and the same gradients of a random projection of it."""
    made, wanted = one(*inputs), other(*inputs)
    torch.testing.assert_close(made, wanted)
    pull = torch.randn_like(wanted)
    pairs = zip(torch.autograd.grad(made, inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain)


def leaves(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Random numbers that want gradients."""
    torch.manual_seed(0)
    return tuple(torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)


def heads_of(qkv: Tensor, scale: Tensor, split: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Tensor:
    """Everything that a split of (B, F, N, 3, H, E) in the order of time gives, in one tensor."""
    return torch.stack(split(qkv.permute(3, 0, 2, 4, 1, 5), scale))


def plain_split(qkv: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return F.normalize(qkv[0], dim=-1) * scale, F.normalize(qkv[1], dim=-1), qkv[2]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)


def plain_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    value, gate = F.linear(x, up).chunk(2, -1)
    return F.linear(value * F.gelu(gate), down)


def normed(x: Tensor, part: Tensor, weight: Tensor) -> Tensor:
    return torch.stack(add_normed(x, part, weight, x.dtype))


def plain_normed(x: Tensor, part: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([x + part, F.layer_norm(x + part, weight.shape, weight)])


def every_kernel() -> None:
    """Compare each with its plain form."""
    alike(lambda *x: heads_of(*x, split_heads), lambda *x: heads_of(*x, plain_split), leaves((2, 3, 4, 3, 2, 8), (8,)))
    alike(attention, plain_attention, leaves((3, 2, 5, 8), (3, 2, 6, 8), (3, 2, 6, 8), (2, 5, 6)))
    alike(gated_feed_forward, plain_feed_forward, leaves((2, 3, 8), (42, 8), (8, 21)))
    alike(normed, plain_normed, leaves((2, 3, 8), (2, 3, 8), (8,)))


def test_kernels_have_the_gradients_of_plain_ones() -> None:
    every_kernel()


def test_compiled_kernels_have_the_gradients_of_plain_ones() -> None:
    set_compile(True, CPU)
    try:
        every_kernel()
        assert all(kernel.now is not kernel.plain for kernel in cpu_kernels.Compilable.every)
    finally:
        set_compile(False, CPU)
    assert all(kernel.now is kernel.plain for kernel in cpu_kernels.Compilable.every)


def test_a_missing_compiler_is_named_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        set_compile(True, CPU)
    assert all(kernel.now is kernel.plain for kernel in cpu_kernels.Compilable.every)


def test_what_a_query_does_not_see_is_left_out() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    bias = torch.randn(4, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(attention(q, k, v, bias), plain_attention(q, k, v, bias))
    torch.testing.assert_close(attention(q, k, v, bias)[:, :, 0], v[:, :, 0])


@pytest.mark.parametrize("inner", [21, 32, 64])
def test_filling_up_the_inner_width_changes_nothing(inner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, up, down = (value.detach().bfloat16() for value in leaves((5, 8), (2 * inner, 8), (8, inner)))
    given = [value.requires_grad_() for value in (x, up.float(), down.float())]
    results = []
    for lanes in (1, 32):
        monkeypatch.setattr(cpu_kernels, "LANES", lanes)
        made = gated_feed_forward(*given)
        results.append((made, *torch.autograd.grad(made, given, torch.ones_like(made))))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
    assert results[1][2].shape == up.shape


def test_weights_are_kept_while_that_is_wished_and_no_longer() -> None:
    x, up, down = (value.detach().bfloat16() for value in leaves((5, 8), (42, 8), (8, 21)))
    up, down = up.float(), down.float()
    plain = gated_feed_forward(x, up, down)
    with cached_weights():
        with cached_weights():
            assert torch.equal(gated_feed_forward(x, up, down), plain)
        down.mul_(2)
        assert torch.equal(gated_feed_forward(x, up, down), plain)
    assert torch.equal(gated_feed_forward(x, up, down), 2 * plain)
