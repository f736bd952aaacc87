"""Passes of a model that are captured as CUDA graphs and replayed.

A pass of a film starts about a thousand kernels, which takes longer than the kernels themselves. A
graph starts them at once, on tensors at fixed addresses: inputs are copied there before, and
results are copied from there after a replay. There is a graph for each pass and each set of shapes.
Nothing random and nothing that waits for the device may be part of a pass.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from envs.utils.errors import InputError

MAX_CAPTURED = 64
"""Most graphs that a model keeps; the one that was not used for longest is dropped."""
MAX_INPUT_BYTES = 256 << 20
"""Largest inputs of a captured pass. Of larger ones the kernels take longer than their start."""

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Any]], tuple[Replay, Any]]
"""Function that captures a pass -> (replay, outputs that each replay overwrites)."""


class CapturedPasses:
    """Captured passes of one model, off until `start` is called."""

    def __init__(self) -> None:
        self._capture: Capture | None = None
        self._captured: OrderedDict[Any, _CapturedPass] = OrderedDict()

    def start(self, capture: Capture) -> None:
        """Capture passes from now on: with a `CudaCapture`, or a stand-in for it in tests."""
        self._capture = capture

    def stop(self) -> None:
        """Drop all graphs and capture no more: they know the addresses of the weights."""
        self._captured.clear()
        self._capture = None

    def __len__(self) -> int:
        return sum(captured.replay is not None for captured in self._captured.values())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle no graphs: those of a copy are off."""
        return CapturedPasses, ()

    def bind(self, function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
        """Return a call of a pass whose last inputs are the same tensors in every call.

        Inputs and outputs are tensors, and lists, tuples and data classes of them. All other inputs
        are constants.
        """
        if self._capture is None or torch.is_grad_enabled():
            return lambda *inputs: function(*inputs, *fixed)
        return _BoundPass(self, function, fixed)

    def find(self, function: Callable[..., Any], inputs: Any) -> "_CapturedPass | None":
        """Return the captured pass for inputs of these shapes; None if they are too large."""
        tensors = list(tensors_of(inputs))
        if sum(tensor.nbytes for tensor in tensors) > MAX_INPUT_BYTES:
            return None
        device_type = tensors[0].device.type
        dtype = (
            torch.get_autocast_dtype(device_type)
            if torch.is_autocast_enabled(device_type)
            else None
        )
        key = function, _description(inputs), device_type, dtype, torch.is_inference_mode_enabled()
        found = self._captured.pop(key, None)
        if found is None:
            found = _CapturedPass(function, map_tensors(inputs, _static_buffer), device_type, dtype)
        self._captured[key] = found
        if len(self._captured) > MAX_CAPTURED:
            self._captured.popitem(last=False)
        return found

    def capture(self, run: Callable[[], Any]) -> tuple[Replay, Any]:
        """Capture a pass."""
        assert self._capture is not None
        return self._capture(run)


class _BoundPass:
    """Call of a pass with fixed inputs, which are copied once."""

    def __init__(
        self, passes: CapturedPasses, function: Callable[..., Any], fixed: tuple[Any, ...]
    ) -> None:
        self._passes, self._function, self._fixed = passes, function, fixed

    def __call__(self, *inputs: Any) -> Any:
        captured = self._passes.find(self._function, (*inputs, *self._fixed))
        if captured is None:
            return self._function(*inputs, *self._fixed)
        changed = (*inputs, *self._fixed)
        if captured.holds is self:
            changed = inputs
        for static, tensor in zip(  # noqa: B905  # the fixed ones are last
            tensors_of(captured.inputs), tensors_of(changed)
        ):
            static.copy_(tensor)
        captured.holds = self
        return captured.run(self._passes)


class _CapturedPass:
    """Pass with inputs at fixed addresses: plain at the first call, captured at the second.

    The first call compiles what is compiled, and creates the workspaces of the libraries.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Any, device_type: str, dtype: torch.dtype | None
    ) -> None:
        self.inputs = inputs
        self.holds: _BoundPass | None = None
        """Call whose fixed inputs the inputs hold."""
        self.replay: Replay | None = None
        self._function, self._device_type, self._dtype = function, device_type, dtype
        self._warm, self._outputs = False, None

    def run(self, passes: CapturedPasses) -> Any:
        """Run the pass on what the inputs hold; the outputs are new tensors."""
        if not self._warm:
            self._warm = True
            return map_tensors(self._plain(), Tensor.clone)
        if self.replay is None:
            self.replay, self._outputs = passes.capture(self._plain)
        self.replay()
        return map_tensors(self._outputs, Tensor.clone)

    def _plain(self) -> Any:
        # Autocast would otherwise cast weights once, outside the graph, and free them at its end.
        enabled = self._dtype is not None
        with torch.autocast(self._device_type, self._dtype, enabled=enabled, cache_enabled=False):
            return self._function(*self.inputs)


class CudaCapture:
    """Capture of passes as CUDA graphs, which share the memory of their intermediate results.

    That is safe because only one of them runs at a time, and its outputs are copied at once.
    """

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Any]) -> tuple[Replay, Any]:
        """Capture a pass. Raises InputError for one that cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as one that loads new weights, may go on using the device.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"a pass cannot be captured as a CUDA graph ({reason}): leave --cuda-graphs out"
            ) from error
        return graph.replay, outputs


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and data classes, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from tensors_of(getattr(tree, field.name))


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested lists, tuples and data classes with each tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(part, change) for part in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        parts = {name: map_tensors(getattr(tree, name), change) for name in names}
        return dataclasses.replace(tree, **parts)
    return tree


def _description(tree: Any) -> Any:
    """Return shapes and types of the tensors, and the constants, as a key."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype, tree.device
    if isinstance(tree, list | tuple):
        return tuple(map(_description, tree))
    if dataclasses.is_dataclass(tree):
        names = [field.name for field in dataclasses.fields(tree)]
        return type(tree), *(_description(getattr(tree, name)) for name in names)
    return tree


def _static_buffer(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
