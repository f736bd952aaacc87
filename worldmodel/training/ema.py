"""Exponential moving average (EMA) of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worldmodel.sharded_tensors import shard_like


class EMA:
    """Average, updated as decay * average + (1 - decay) * weight. Sharded as the weights are.

    The decay is at most (1 + steps) / (10 + steps), so that the random initial weights are soon
    forgotten. `torch.optim.swa_utils.AveragedModel` has no such warm-up and averages frozen weights
    too.
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
        """Swap the average into the model; restore its weights bit for bit on exit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weights: Tensor = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name] = weights
