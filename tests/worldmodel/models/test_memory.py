"""Memory of a training pass: with activation checkpointing the inputs of sub-blocks alone stay."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldmodel.config import preset
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import KVCache, STTransformer


class LiveMemory(TorchDispatchMode):
    """Storages of the results of all operations, by weak references; weights do not count."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref] = {}
        self.weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = weakref.ref(storage)
        return result

    def bytes(self) -> int:
        """Return the bytes of the storages that are still alive."""
        alive = [storage() for at, storage in self.storages.items() if at not in self.weights]
        return sum(storage.nbytes() for storage in alive if storage is not None)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_training_pass_keeps_no_keys_and_values(kernels: bool) -> None:
    torch.manual_seed(0)
    blocks = 3
    stack = STTransformer(32, 4, 16, blocks)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if kernels:
        use_cpu_kernels(stack)
    x, bias = torch.randn(2, 6, 8, 8, 32), torch.randn(4, 64, 64)
    gradients, kept = [], []
    for checkpointing, keep_cache in ((False, True), (True, True), (True, False)):
        stack.activation_checkpointing = checkpointing
        with LiveMemory(stack) as memory:
            output, cache = stack(x, bias, keep_cache=keep_cache)
        kept.append(memory.bytes() / x.nbytes)
        assert len(cache.layers) == (2 * blocks if keep_cache else 0)
        del cache
        gradients.append(torch.autograd.grad(output.square().sum(), list(stack.parameters())))
    # The output of each sub-block, that of the last norm, and the biases: less than 1.5 of frames.
    assert kept[2] < 2 * blocks + 1 + 1.5
    # Keys and values are twice as wide as the frames here.
    assert kept[1] > kept[2] + 4 * blocks
    assert kept[0] > kept[1]
    for other in gradients[1:]:
        assert all(map(torch.equal, gradients[0], other))


@pytest.mark.parametrize("component", [Tokenizer, LatentActionModel, Dynamics])
def test_no_training_pass_of_a_component_fills_a_cache(
    component: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[KVCache] = []
    forward = STTransformer.forward

    def recorded(*args: Any, **options: Any) -> Any:
        output, cache = forward(*args, **options)
        caches.append(cache)
        return output, cache

    monkeypatch.setattr(STTransformer, "forward", recorded)
    model = component(preset("debug"))
    if component is Dynamics:
        model.set_codebook(torch.randn(64, 8))
        tokens, actions = torch.randint(64, (2, 4, 8, 8)), torch.randint(5, (2, 3))
        model.loss(tokens, actions)
    else:
        model(torch.rand(2, 4, 3, 64, 64))
    assert len(caches) == (1 if component is Dynamics else 2)
    assert not any(cache.layers for cache in caches)
