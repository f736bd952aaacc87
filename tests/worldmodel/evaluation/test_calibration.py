"""Rank correlation against its definition."""

import numpy as np
import pytest
import torch

from worldmodel.evaluation.calibration import spearman


def test_spearmans_rho_is_the_correlation_of_ranks() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, generator=generator)
    y = x + torch.rand(40, generator=generator)
    ranks = x.argsort().argsort(), y.argsort().argsort()
    assert spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert spearman(x, x**3) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)


def test_what_does_not_vary_has_no_rank_correlation() -> None:
    x = torch.arange(4.0)
    assert spearman(x, torch.ones(4)) is None
    assert spearman(torch.ones(4), x) is None
    assert spearman(x[:1], x[:1]) is None
