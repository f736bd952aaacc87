"""An exponential moving average (EMA) of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worldmodel.sharded_tensors import shard_like


class EMA:
    """average <- decay * average + (1 - decay) * weight, in the weights' own type and sharding.

    In the first steps the decay is (1 + steps) / (10 + steps), which soon forgets the random first
    weights; torch's `AveragedModel` has no such warm-up, and averages frozen weights too.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.values = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Update the average with the weights after step `steps`, counted from 1."""
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter.detach(), weight)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Restore the average from whole tensors; each rank takes its shard."""
        for name, value in values.items():
            self.values[name].copy_(shard_like(value, self.values[name]))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the average; afterwards the model has its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            own: Tensor = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name] = own
