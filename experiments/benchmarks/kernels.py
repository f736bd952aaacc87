"""Operations of a computation: the FLOPs and bytes of each, recorded on tensors without data.

The computation runs on torch's fake tensors, which have shapes, types and autocast but no memory,
so that a model of any size is recorded on any machine. Attention is recorded as the fused kernel
that a GPU chooses for a bias, and the norm of queries and keys in fp32, as CUDA's autocast has it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from worldmodel.models.transformer import TransformerSubBlock

aten = torch.ops.aten
MASKED = 2 / torch.pi
"""Mean share of masked tokens in training, the mean of cos(pi/2 u): the number of tokens that a
mask selects, which is data."""
_KINDS = {
    "matrix products": "mm addmm bmm baddbmm",
    "attention": "_scaled_dot_product_efficient_attention",
    "convolutions": "convolution",
    "optimizer": "_fused_adamw _foreach_norm _foreach_mul",
    "LayerNorm": "native_layer_norm",
    "casts and copies": "_to_copy clone copy cat constant_pad_nd slice_backward select_backward",
    "sums and norms": "sum mean linalg_vector_norm logsumexp amax any all argmax max",
    "indexing": "embedding embedding_dense index index_select gather index_put index_add sort "
    "nonzero scatter",
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_APART = {"matrix products", "attention", "convolutions", "optimizer"}
"""Kinds that a compiler leaves as kernels of their own."""
_SEQUENTIAL = {"sort", "nonzero", "embedding_dense", "index_put", "index_add", "scatter"}
"""Operations of another kind that it leaves too."""
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}

Key = tuple[int, int, int]
"""Part of a tensor's memory: number of its storage, offset and elements."""


@dataclass(frozen=True)
class Kernel:
    """One kernel: its kind, work and traffic."""

    kind: str
    flops: float
    bytes: float
    half: bool = True
    """True for products of 16-bit numbers, false for TF32."""


@dataclass(frozen=True)
class Operation:
    """One ATen operation, with the bytes of every part of memory that it reads or writes."""

    name: str
    kind: str
    flops: float
    half: bool
    reads: dict[Key, int]
    writes: dict[Key, int]
    call: int | None
    """Number of the call of a sub-block that it belongs to."""
    backward: bool

    @property
    def fusible(self) -> bool:
        """True if a compiler can compute it together with its neighbours in a sub-block."""
        inside = self.call is not None and self.kind not in _APART
        return inside and self.name not in _SEQUENTIAL

    def kernel(self) -> Kernel:
        """Return its own kernel."""
        moved = sum(self.reads.values()) + sum(self.writes.values())
        return Kernel(self.kind, self.flops, moved, self.half)


class _LikeCuda(TorchFunctionMode):
    """Functions that CUDA computes in another way than a CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.normalize:
            return _normalize(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    bias = attn_mask.expand(*q.shape[:3], k.shape[2])
    keep = torch.is_grad_enabled()
    attend = aten._scaled_dot_product_efficient_attention
    return attend(q, k, v, bias, keep, 0.0, False, scale=scale)[0]


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: Any) -> Tensor:
    return x / x.float().norm(p, dim=dim, keepdim=True).clamp_min(eps)


class KernelRecorder(TorchDispatchMode):
    """Mode that records the operations on fake tensors while `recording`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.recording = False
        self._backward = False
        self._call: int | None = None
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._storages: dict[int, tuple[int, Any]] = {}

    def watch(self, model: nn.Module) -> None:
        """Tell the calls of sub-blocks apart, which are compiled each on its own."""
        for module in model.modules():
            if isinstance(module, TransformerSubBlock):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._call = len(self._starts)
        self._starts.append(torch.autograd._get_sequence_nr())

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._call = None
        self._ends.append(torch.autograd._get_sequence_nr())

    def record(self, call: Callable[[], Any]) -> list[Operation]:
        """Return the operations of a call."""
        self.operations, self.recording = [], True
        call()
        self.recording = False
        return self.operations

    def run_backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss."""
        self._backward = True
        loss.backward()
        self._backward, self._call = False, None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, func._overloadpacket.__name__
        if func.namespace == "prim":
            return func(*args, **kwargs)  # a question about a tensor
        # Values do not exist. These pass all checks: a range of 0.5 to 0.5 or 1 to 1, and true;
        # while models are built nothing is true, so that they have no codebook yet.
        if name == "_local_scalar_dense":
            dtype = args[0].dtype
            return self.recording if dtype == torch.bool else 0.5 if dtype.is_floating_point else 1
        if name == "nonzero":
            count = round(MASKED * args[0].numel())
            output = args[0].new_empty((count, args[0].dim()), dtype=torch.int64)
        else:
            output = func(*args, **kwargs)
        if self.recording and name not in _ALLOCATIONS:
            self._record(func, name, args, kwargs, output)
        return output

    def _record(self, func: Any, name: str, args: Any, kwargs: Any, output: Any) -> None:
        inputs = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
        schema = func._schema.arguments
        values = [*args, *(kwargs.get(argument.name) for argument in schema[len(args) :])]
        changed = [
            value
            for argument, value in zip(schema, values, strict=True)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        made = [item for item in tree_iter((output, changed)) if isinstance(item, Tensor)]
        reads, writes = self._parts(inputs), self._parts(made)
        stored = {key[0] for key in reads}
        if not made or (not changed and all(key[0] in stored for key in writes)):
            return  # a view
        if name in ("copy_", "fill_", "zero_"):
            reads = self._parts(inputs[1:])
        half = any(item.dtype in (torch.bfloat16, torch.float16) for item in inputs)
        base = name.removesuffix("_backward").rstrip("_")  # in place or not is the same kind
        kind = _KIND.get(base, _KIND.get(name, "elementwise"))
        flops = _flops(func, args, kwargs, output)
        call = self._current_call()
        self.operations.append(
            Operation(base, kind, flops, half, reads, writes, call, self._backward)
        )

    def _current_call(self) -> int | None:
        if not self._backward:
            return self._call
        node = torch._C._current_autograd_node()
        # Gradients of two branches are added between nodes: with those of the last node.
        if node is not None:
            number = node._sequence_nr()
            call = bisect_right(self._starts, number) - 1
            self._call = call if call >= 0 and number < self._ends[call] else None
        return self._call

    def _parts(self, tensors: list[Tensor]) -> dict[Key, int]:
        parts = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # The storage is kept, so that no other can get its address.
            number, _ = self._storages.setdefault(storage._cdata, (len(self._storages), storage))
            elements = 1
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                elements *= size if stride or not size else 1  # an expanded dimension is read once
            key = number, int(tensor.storage_offset()), elements
            parts[key] = elements * tensor.element_size()
        return parts


def _flops(func: Any, args: Any, kwargs: Any, output: Any) -> float:
    packet = func._overloadpacket
    if packet is aten.convolution_backward:
        # Twice the forward pass; torch's formula for weights is wrong for groups.
        grad, x, weight, *_ = args
        forward = flop_registry[aten.convolution](
            x, weight, None, *args[4:7], args[7], args[8], args[9], out_val=grad
        )
        return float(forward * sum(args[10][:2]))
    count = flop_registry.get(packet)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=output))


@contextmanager
def fake_tensors() -> Iterator[KernelRecorder]:
    """Open a recorder in whose context all new tensors are fake."""
    recorder = KernelRecorder()
    with FakeTensorMode(allow_non_fake_inputs=True), _LikeCuda(), recorder:
        yield recorder
