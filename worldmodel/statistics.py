"""Means with confidence intervals over grouped samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean over windows and its 95 % confidence interval [low, high], NaN for a single window."""

    mean: float
    low: float
    high: float
    values_B: Tensor
    """Values of the single windows, on the CPU."""


def estimate(values_B: Tensor, groups_B: Tensor | None = None) -> Estimate:
    """Estimate the mean of values that are independent between groups but not within one.

    The groups are episodes, whose windows are similar: the standard error is cluster-robust, with
    Student's t at groups - 1 degrees of freedom. Without `groups_B` each value is a group, which
    gives the textbook interval. Computed in float64 on the CPU, as some devices lack that type.
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
    half = float(stdtrit(groups - 1, 0.975)) * error.item()
    return Estimate(mean.item(), mean.item() - half, mean.item() + half, values_B)


def paired_estimate(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str
) -> Estimate:
    """Estimate the mean difference of a metric between two models in the same windows.

    A pair holds `Scores.by_window` of the model and of its baseline on one test set; the episodes
    of different pairs are different groups. Windows without a value are left out.
    """
    differences, groups, count = [], [], 0
    for mine, baseline in pairs:
        difference = np.asarray(mine[metric]) - np.asarray(baseline[metric])
        known = np.isfinite(difference)
        names, group = np.unique(mine["session"], return_inverse=True)
        differences.append(difference[known])
        groups.append(group[known] + count)
        count += len(names)
    values_B, groups_B = (torch.from_numpy(np.concatenate(part)) for part in (differences, groups))
    return estimate(values_B, groups_B)
