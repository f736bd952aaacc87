"""Losses on tokens.

Shapes: N tokens, K codes, D width of a code.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.devices import full_precision


def token_distances(codebook_KD: Tensor) -> Tensor:
    """Compute d(i, j) = 1 - cos(e_i, e_j) of all codes (Eq. 1), (K, K) in [0, 2], fp32."""
    with full_precision(codebook_KD):
        unit = F.normalize(codebook_KD.float(), dim=-1)
        return (1 - unit @ unit.T).clamp(0, 2).fill_diagonal_(0)


def token_distance_cross_entropy(
    logits_NK: Tensor, targets_N: Tensor, distances_KK: Tensor, weight: float
) -> Tensor:
    """Compute TDCE (Eq. 1) in fp32: the mean over tokens of CE(z, y) + weight * E_k[d(y, k)].

    The expectation is over k ~ softmax(z), `distances_KK` is the result of `token_distances`, and
    weight 0 is plain cross-entropy. Raises InputError if shapes disagree.
    """
    shapes = [tuple(tensor.shape) for tensor in (logits_NK, targets_N, distances_KK)]
    count, codes = shapes[0] if logits_NK.ndim == 2 else (-1, -1)
    if shapes[1:] != [(count,), (codes, codes)]:
        raise InputError(
            f"token distance cross-entropy: expected (N, K), (N,) and (K, K), got {shapes}"
        )
    with full_precision(logits_NK):
        log_p = F.log_softmax(logits_NK.float(), -1)
        loss = F.nll_loss(log_p, targets_N)
        if weight:
            distances_NK = distances_KK.float().index_select(0, targets_N)
            loss = loss + weight * torch.linalg.vecdot(log_p.exp(), distances_NK).mean()
    return loss
