"""Losses on tokens.

Shapes: N tokens, K codes, D width of a code.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError


def token_distances(codebook_KD: Tensor) -> Tensor:
    """Compute d(i, j) = 1 - cos(e_i, e_j) of all codes, (K, K) in [0, 2], zero on the diagonal (Eq.
    1).
    """
    unit = F.normalize(codebook_KD.float(), dim=-1)
    return (1 - unit @ unit.T).clamp(0, 2).fill_diagonal_(0)


def token_distance_cross_entropy(
    logits_NK: Tensor, targets_N: Tensor, distances_KK: Tensor, weight: float
) -> Tensor:
    """Compute TDCE (Eq. 1): the mean over tokens of CE(z, y) + weight * sum_k softmax(z)_k * d(y,
    k), in fp32.

    `distances_KK` from `token_distances`. weight = 0 is plain cross-entropy. Raises InputError
    where shapes disagree.
    """
    if (
        logits_NK.ndim != 2
        or distances_KK.shape != (logits_NK.shape[1],) * 2
        or targets_N.shape != logits_NK.shape[:1]
    ):
        shapes = [tuple(x.shape) for x in (logits_NK, targets_N, distances_KK)]
        raise InputError(
            f"token distance cross-entropy: expected (N, K), (N,) and (K, K), got {shapes}"
        )
    log_p = F.log_softmax(logits_NK.float(), -1)
    loss = F.nll_loss(log_p, targets_N)
    if weight:
        expected = torch.linalg.vecdot(log_p.exp(), distances_KK.float().index_select(0, targets_N))
        loss = loss + weight * expected.mean()
    return loss
