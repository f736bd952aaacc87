"""Whether the reward query's doubt is honest: its distribution against what came, and idle scenes against moving ones.

Shapes: M anything that is judged one by one.
"""

from typing import Any

import torch
from torch import Tensor


def reliability(confidence_M: Tensor, correct_M: Tensor, bins: int = 15) -> dict[str, Any]:
    """Reliability curve and expected calibration error (Guo et al. 2017) of the likeliest code's probability.

    `bins` hold equally many tokens each: most tokens of a game are sure, and equal widths would leave most bins empty.
    -> {"ece": mean over tokens of |mean confidence - accuracy| of their bin, "bins": [{"confidence", "accuracy",
    "tokens"}]}, confidence ascending.
    """
    order = confidence_M.argsort()
    parts = []
    for place in torch.arange(len(order)).chunk(bins):
        chosen = order[place]
        confidence, accuracy = confidence_M[chosen].double().mean().item(), correct_M[chosen].double().mean().item()
        parts.append({"confidence": confidence, "accuracy": accuracy, "tokens": len(chosen)})
    gaps = sum(abs(part["confidence"] - part["accuracy"]) * part["tokens"] for part in parts)
    return {"ece": gaps / max(len(order), 1), "bins": parts}


def auc(scores_M: Tensor, positive_M: Tensor) -> float | None:
    """The chance that a positive has a higher score than a negative, ties counting half; None without either kind."""
    above, below = int(positive_M.sum()), int((~positive_M).sum())
    if not above or not below:
        return None
    _, place, count = scores_M.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = last - (count.double() - 1) / 2  # ties share the mean of their ranks
    return ((rank[place][positive_M].sum() - above * (above + 1) / 2) / (above * below)).item()
