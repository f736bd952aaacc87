"""CPU kernels: equal to the plain passes, compiled or not, and unused on other devices."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel import Dynamics, LatentActionModel, Tokenizer, preset
from worldmodel.models import cpu_kernels
from worldmodel.models.cpu_kernels import (
    COMPILABLE,
    add_normed,
    attention,
    cached_weights,
    compiled,
    gated_feed_forward,
    set_compile,
    split_heads,
    use_cpu_kernels,
)
from worldmodel.models.frame_order import CleanNoisyLayout
from worldmodel.models.transformer import STTransformer

CPU = torch.device("cpu")


def alike(
    one: Callable[..., Tensor], other: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    """Compare outputs, and the gradients of a random projection of them."""
    output, expected = one(*inputs), other(*inputs)
    torch.testing.assert_close(output, expected)
    pull = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(output, inputs, pull),
        torch.autograd.grad(expected, inputs, pull),
        strict=True,
    )
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient)


def leaves(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return random tensors that require gradients."""
    torch.manual_seed(0)
    return tuple(torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)


def heads_of(
    qkv: Tensor, scale: Tensor, split: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
) -> Tensor:
    """Return the split of a projection (B, F, N, 3, H, E), with frames as tokens, in one tensor."""
    return torch.stack(split(qkv.permute(3, 0, 2, 4, 1, 5), scale))


def plain_split(qkv: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return F.normalize(qkv[0], dim=-1) * scale, F.normalize(qkv[1], dim=-1), qkv[2]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)


def plain_feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    value, gate = F.linear(x, up).chunk(2, -1)
    return F.linear(value * F.gelu(gate), down)


def normed(x: Tensor, part: Tensor, weight: Tensor) -> Tensor:
    return torch.stack(compiled(add_normed)(x, part, weight, x.dtype))


def plain_normed(x: Tensor, part: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([x + part, F.layer_norm(x + part, weight.shape, weight)])


def every_kernel() -> None:
    """Compare each kernel with its plain form."""
    alike(
        lambda *x: heads_of(*x, split_heads),
        lambda *x: heads_of(*x, plain_split),
        leaves((2, 3, 4, 3, 2, 8), (8,)),
    )
    alike(attention, plain_attention, leaves((3, 2, 5, 8), (3, 2, 6, 8), (3, 2, 6, 8), (2, 5, 6)))
    alike(gated_feed_forward, plain_feed_forward, leaves((2, 3, 8), (42, 8), (8, 21)))
    alike(normed, plain_normed, leaves((2, 3, 8), (2, 3, 8), (8,)))


def test_kernels_have_the_gradients_of_plain_ones() -> None:
    every_kernel()


@pytest.mark.slow
def test_compiled_kernels_have_the_gradients_of_plain_ones() -> None:
    set_compile(True)
    try:
        every_kernel()
        assert all(compiled(kernel) is not kernel for kernel in COMPILABLE)
    finally:
        set_compile(False)
    assert all(compiled(kernel) is kernel for kernel in COMPILABLE)


def test_a_missing_compiler_is_named_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        InputError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"
    ):
        set_compile(True)
    assert all(compiled(kernel) is kernel for kernel in COMPILABLE)


def test_hidden_tokens_have_no_weight() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    bias = torch.randn(4, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(attention(q, k, v, bias), plain_attention(q, k, v, bias))
    torch.testing.assert_close(attention(q, k, v, bias)[:, :, 0], v[:, :, 0])


@pytest.mark.parametrize("inner", [21, 32, 64])
def test_padding_of_the_inner_width_changes_nothing(
    inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, up, down = (
        value.detach().bfloat16() for value in leaves((5, 8), (2 * inner, 8), (8, inner))
    )
    inputs = [value.requires_grad_() for value in (x, up.float(), down.float())]
    results = []
    for lanes in (1, 32):
        monkeypatch.setattr(cpu_kernels, "LANES", lanes)
        output = gated_feed_forward(*inputs)
        gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
        results.append((output, *gradients))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
    assert results[1][2].shape == up.shape


def test_weights_are_cached_only_inside_the_context() -> None:
    x, up, down = (value.detach().bfloat16() for value in leaves((5, 8), (42, 8), (8, 21)))
    up, down = up.float(), down.float()
    plain = gated_feed_forward(x, up, down)
    with cached_weights():
        with cached_weights():
            assert torch.equal(gated_feed_forward(x, up, down), plain)
        down.mul_(2)
        assert torch.equal(gated_feed_forward(x, up, down), plain)
    assert torch.equal(gated_feed_forward(x, up, down), 2 * plain)


# Whole models


def randomise(module: torch.nn.Module) -> None:
    """Make the output depend on all weights; a new model is close to the identity."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def plain_and_fast(model: Any) -> tuple[Any, Any]:
    """Return a randomised model and its copy with CPU kernels."""
    randomise(model)
    fast = copy.deepcopy(model)
    use_cpu_kernels(fast)
    return model, fast


def compare_gradients(plain: torch.nn.Module, fast: torch.nn.Module) -> None:
    """Check that both have the same gradients and that none is missing."""
    expected = dict(plain.named_parameters())
    assert sum(parameter.grad is not None for parameter in expected.values()) > 10
    for name, parameter in fast.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
            continue
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("temporal_first", [False, True])
@pytest.mark.parametrize("layout", ["consecutive", "clean and noisy"])
def test_the_transformer_with_kernels_equals_the_plain_one(
    temporal_first: bool, layout: str
) -> None:
    stack = STTransformer(24, 3, 8, 2, temporal_first=temporal_first, action_width=5)
    plain, fast = plain_and_fast(stack.double())
    order = None if layout == "consecutive" else CleanNoisyLayout.of([1, 2, 4], 6, CPU).order
    frames = 6 if order is None else 10
    x, bias, actions = leaves((2, frames, 4, 3, 24), (3, 12, 12), (2, frames, 5))
    outputs = [stack(x, bias, actions_BFA=actions, order=order)[0] for stack in (plain, fast)]
    torch.testing.assert_close(outputs[1], outputs[0])
    pull = torch.randn_like(outputs[0])
    gradients = [
        torch.autograd.grad(output, (x, bias, actions), pull, retain_graph=True)
        for output in outputs
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    for output in outputs:
        output.backward(pull)
    compare_gradients(plain, fast)


def test_kernels_use_the_cache_as_the_plain_transformer_does() -> None:
    plain, fast = plain_and_fast(STTransformer(24, 3, 8, 2, action_width=5).double())
    x, bias, actions = (
        value.detach() for value in leaves((2, 7, 4, 3, 24), (3, 12, 12), (2, 7, 5))
    )
    caches = [None, None]
    for start, end in pairwise((0, 1, 3, 7)):
        outputs = []
        for index, stack in enumerate((plain, fast)):
            seen = caches[index].last_frames(2) if caches[index] else None
            output, caches[index] = stack(
                x[:, start:end], bias, actions_BFA=actions[:, start:end], cache=seen
            )
            outputs.append(output)
        torch.testing.assert_close(*outputs)


def test_the_newest_frames_alone_are_those_of_all_frames_with_and_without_kernels() -> None:
    stack = STTransformer(24, 3, 8, 2, action_width=5).double()
    x, bias, actions = (
        value.detach() for value in leaves((2, 7, 4, 3, 24), (3, 12, 12), (2, 7, 5))
    )
    for model in plain_and_fast(stack):
        _, start = model(x[:, :2], bias, actions_BFA=actions[:, :2])
        later: dict = {"actions_BFA": actions[:, 2:], "cache": start}
        whole, cache = model(x[:, 2:], bias, **later)
        for newest in (0, 1, 3, 5):
            part, same = model(x[:, 2:], bias, **later, newest=newest)
            assert part.shape[1] == newest
            torch.testing.assert_close(part, whole[:, 5 - newest :])
            for one, other in zip(same.layers, cache.layers, strict=True):
                for name, value in vars(one).items():
                    torch.testing.assert_close(value, getattr(other, name))
    none = STTransformer(24, 3, 8, 0).double()
    assert torch.equal(none(x, bias)[0], none.norm(x)), "a stack may have no block"


@pytest.mark.parametrize("component", [Tokenizer, LatentActionModel, Dynamics])
def test_training_with_kernels_has_the_losses_and_gradients_of_training_without(
    component: type,
) -> None:
    plain, fast = plain_and_fast(component(preset("debug")))
    codebook = F.normalize(torch.randn(64, 8), dim=-1)
    for model in (plain, fast):
        if component is Dynamics:
            model.set_codebook(codebook)
        else:
            model.quantizer.learns = False
    frames, tokens = torch.rand(2, 5, 3, 64, 64), torch.randint(64, (2, 5, 8, 8))
    actions = torch.randint(5, (2, 4))
    losses = []
    for model in (plain, fast):
        if component is Dynamics:
            loss = model.loss(tokens, actions, generator=torch.Generator().manual_seed(1))["loss"]
        else:
            loss = model(frames).losses["reconstruction"]
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
        else:
            tolerance = 1e-5 + 1e-4 * float(one.grad.abs().max())
            torch.testing.assert_close(other.grad, one.grad, atol=tolerance, rtol=1e-3)


def test_kernels_leave_names_and_weights_as_they_are() -> None:
    plain, fast = plain_and_fast(Dynamics(preset("debug")))
    one, other = plain.state_dict(), fast.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_on_another_device_runs_its_plain_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SplitHeads", "_Attention", "_GatedFeedForward", "_TemporalConv"):
        monkeypatch.setattr(cpu_kernels, name, None)
    stack = STTransformer(24, 3, 8, 1)
    use_cpu_kernels(stack)
    x, bias = torch.randn(1, 2, 4, 3, 24), torch.randn(3, 12, 12)
    with pytest.raises(AttributeError):  # on the CPU the kernels run
        stack(x, bias)
    output, cache = stack.to("meta")(x.to("meta"), bias.to("meta"))
    assert (output.device.type, output.shape) == ("meta", x.shape)
    assert cache.layers[0].keys_BHPE is None
    assert cache.layers[1].keys_BHPE is not None
    assert cache.layers[1].keys_BHPE.shape == (12, 3, 2, 8)
