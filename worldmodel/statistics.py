"""Means with confidence intervals over grouped samples."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over windows with its 95 % confidence interval [low, high]; NaN bounds where one window says nothing."""

    mean: float
    low: float
    high: float
    values_B: Tensor
    """The values of the single windows, on the CPU."""


def estimate(values_B: Tensor, groups_B: Tensor | None = None) -> Estimate:
    """Mean and 95 % interval of values that are independent between groups (episodes), not within one.

    Windows of an episode resemble each other, so that counting them as independent makes the interval too narrow: the
    standard error is the cluster-robust one, with Student's t at groups - 1 degrees of freedom. Without `groups_B`
    each value is its own group, which gives the textbook interval. Computed on the CPU in float64, wherever the values
    are: not every device has that type.
    """
    values_B = values_B.cpu()
    values = values_B.double().flatten()
    groups_B = torch.arange(len(values)) if groups_B is None else groups_B.cpu()
    mean = values.mean()
    _, group = groups_B.flatten().unique(return_inverse=True)
    groups = int(group.max()) + 1 if len(values) else 0
    if groups < 2:
        return Estimate(mean.item(), float("nan"), float("nan"), values_B)
    sums = torch.zeros(groups, dtype=torch.float64).index_add(0, group, values - mean)
    error = (sums.square().sum() * groups / (groups - 1)).sqrt() / len(values)
    half = (student_t_975(groups - 1) * error).item()
    return Estimate(mean.item(), mean.item() - half, mean.item() + half, values_B)


@functools.cache
def student_t_975(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution with `freedom` >= 1 degrees of freedom, to four digits.

    With t = sqrt(n) tan(a) its density becomes proportional to cos(a)^(n-1) on a finite range, which is summed up.
    """
    angles = torch.linspace(0, torch.pi / 2, 200_001, dtype=torch.float64)
    area = torch.cumulative_trapezoid(torch.cos(angles) ** (freedom - 1), angles)
    place = int(torch.searchsorted(area, 0.95 * area[-1])) + 1
    return freedom**0.5 * torch.tan(angles[place]).item()
