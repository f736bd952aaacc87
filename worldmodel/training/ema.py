"""A moving average of the weights (EMA): steadier than the weights of any single step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """average <- decay * average + (1 - decay) * weight after each step, in the weights' own type and sharding.

    In the first steps the decay is (1 + steps) / (10 + steps), so that the first, random weights are soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.values = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after step `steps`, counted from 1."""
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter.detach(), weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While entered the model computes with the average; afterwards with its own weights, bit for bit."""
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
