"""Calibration of predicted tokens; AUC and rank correlation of the uncertainty.

Shapes: M samples (tokens, patches or scenes).
"""

from typing import Any

from scipy.stats import rankdata, spearmanr
from torch import Tensor


def reliability(confidence_M: Tensor, correct_M: Tensor, bins: int = 15) -> dict[str, Any]:
    """Compute the reliability curve and expected calibration error of the most probable code.

    See Guo et al. 2017. Bins hold equally many tokens, because most tokens of a game are certain.
    Returns {"ece": mean over tokens of |mean confidence - accuracy| of their bin, "bins":
    [{"confidence", "accuracy", "tokens"}]}, ordered by confidence.
    """
    order = confidence_M.argsort()
    parts = []
    for chosen in order.chunk(bins):
        confidence = confidence_M[chosen].double().mean().item()
        accuracy = correct_M[chosen].double().mean().item()
        parts.append({"confidence": confidence, "accuracy": accuracy, "tokens": len(chosen)})
    gaps = sum(abs(part["confidence"] - part["accuracy"]) * part["tokens"] for part in parts)
    return {"ece": gaps / max(len(order), 1), "bins": parts}


def auc(scores_M: Tensor, positive_M: Tensor) -> float | None:
    """Compute the probability that a positive scores higher than a negative; ties count half.

    None without positives or without negatives.
    """
    above, below = int(positive_M.sum()), int((~positive_M).sum())
    if not above or not below:
        return None
    rank_M = rankdata(scores_M.cpu().numpy())  # ties share the mean of their ranks
    rank_sum = float(rank_M[positive_M.cpu().numpy()].sum())
    return (rank_sum - above * (above + 1) / 2) / (above * below)


def spearman(x_M: Tensor, y_M: Tensor) -> float | None:
    """Compute Spearman's rank correlation; None if one of the two does not vary."""
    if len(x_M) < 2 or (x_M == x_M[0]).all() or (y_M == y_M[0]).all():
        return None
    return float(spearmanr(x_M.cpu().numpy(), y_M.cpu().numpy()).statistic)
