"""Token distance cross-entropy (Eq. 1) against a plain loop."""

import math

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from worldmodel.losses import token_distance_cross_entropy, token_distances


def plain_tdce(
    logits: np.ndarray, targets: np.ndarray, distances: np.ndarray, weight: float
) -> float:
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        powers = [math.exp(z - max(row)) for z in row]
        p = [power / sum(powers) for power in powers]
        total += -math.log(p[target]) + weight * sum(
            p[k] * distances[target][k] for k in range(len(p))
        )
    return total / len(logits)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_equals_a_plain_loop(weight: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 11, generator=generator) * 3
    targets = torch.randint(11, (20,), generator=generator)
    distances = token_distances(torch.randn(11, 6, generator=generator))
    made = token_distance_cross_entropy(logits, targets, distances, weight).item()
    wanted = plain_tdce(
        logits.double().numpy(), targets.numpy(), distances.double().numpy(), weight
    )
    assert made == pytest.approx(wanted, rel=1e-5)


def test_autocast_does_not_change_it() -> None:
    """In bf16 the distances of 7,168 near pairs of codes took seven values."""
    codes, logits = torch.nn.functional.normalize(torch.randn(64, 32), dim=-1), torch.randn(50, 64)
    targets = torch.randint(64, (50,))
    exact = token_distances(codes)
    loss = token_distance_cross_entropy(logits, targets, exact, 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_distances(codes), exact)
        assert torch.equal(token_distance_cross_entropy(logits, targets, exact, 3.0), loss)


def test_weight_zero_is_cross_entropy() -> None:
    logits, targets = torch.randn(8, 5), torch.randint(5, (8,))
    plain = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(
        token_distance_cross_entropy(logits, targets, torch.rand(5, 5), 0.0), plain
    )


def test_a_far_code_costs_more_than_a_near_one() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    distances = token_distances(codes)
    target = torch.tensor([0])
    near = torch.tensor([[0.6, 0.4, 0.0]]).clamp_min(1e-9).log()
    far = torch.tensor([[0.6, 0.0, 0.4]]).clamp_min(1e-9).log()
    losses = [
        token_distance_cross_entropy(logits, target, distances, 3.0).item()
        for logits in (near, far)
    ]
    assert losses[1] - losses[0] == pytest.approx(
        3 * 0.4 * (distances[0, 2] - distances[0, 1]).item(), rel=1e-5
    )


def test_distances_are_one_minus_cosine() -> None:
    codes = torch.randn(9, 4)
    distances = token_distances(codes)
    for i in range(9):
        for j in range(9):
            cosine = torch.cosine_similarity(codes[i], codes[j], dim=0).item()
            assert distances[i, j].item() == pytest.approx(1 - cosine, abs=1e-6)
    assert torch.equal(distances.diagonal(), torch.zeros(9))


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected \(N, K\), \(N,\) and \(K, K\)"):
        token_distance_cross_entropy(
            torch.zeros(4, 5), torch.zeros(4, dtype=torch.long), torch.zeros(4, 4), 1.0
        )
