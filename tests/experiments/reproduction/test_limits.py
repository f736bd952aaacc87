"""Figure 24: new patches, the choice of windows, and a search with a small model."""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from envs.utils.atomic_io import write_json_atomic
from experiments.reproduction.limits import (
    GIVEN,
    PREDICTED,
    SearchedWindows,
    draw_window,
    new_share,
    rank_windows,
    search_windows,
)
from experiments.studies.arguments import ModelArgs
from tests.fixtures.datasets import record
from tests.fixtures.worlds import save_untrained_world

LENGTH = GIVEN + PREDICTED


def test_only_what_the_given_frame_shows_nowhere_is_new() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(1, 3, 64, 64, generator=generator)
    assert new_share(given, given).item() == 0
    # Moved by five pixels, the frame has a column and a half of patches from beyond its edge.
    assert new_share(given, given.roll(5, -1)).item() == 8 / 64
    other = torch.rand(1, 3, 64, 64, generator=generator)
    assert new_share(given, other).item() == 1
    faint = (given + 10 / 255).clamp(0, 1)
    assert new_share(given, faint).item() == 0
    both = new_share(torch.cat([given, given]), torch.cat([given, other]))
    assert both.tolist() == [0, 1]


def made_windows(psnr_B: list[float], new_B: list[float], sessions: str) -> SearchedWindows:
    """Return windows with these measures, uncertain by their error."""
    count = len(psnr_B)
    quality_BF = torch.tensor(psnr_B)[:, None].repeat(1, PREDICTED)
    return SearchedWindows(
        list(sessions),
        list(range(count)),
        torch.zeros(count, LENGTH, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(count, PREDICTED, 64, 64, 3, dtype=torch.uint8),
        (1 / quality_BF)[..., None].repeat(1, 1, 64),
        quality_BF,
        torch.tensor(new_B),
    )


def test_windows_are_drawn_by_error_among_the_newest_one_of_each_episode() -> None:
    psnr = [10.0, 40, 30, 20, 35, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16]
    new = [0.9, 0.8, 0.7, 0.6] + [0.1] * 12
    found = made_windows(psnr, new, "abaacccccccccccc")
    assert found.worst() == [0, 1]
    result = rank_windows(found)
    assert [row["psnr"] for row in result["ranking"]] == sorted(psnr)
    assert {row["start"]: row["drawn"] for row in result["ranking"] if row["drawn"]} == {0: 1, 1: 2}
    assert sum(row["newest"] for row in result["ranking"]) == 4
    assert result["spearman"]["error_uncertainty"] == 1
    expected = spearmanr(-np.array(psnr), np.array(new)).statistic
    assert abs(result["spearman"]["error_new"] - expected) < 1e-6


def test_measures_that_do_not_vary_have_no_correlation() -> None:
    result = rank_windows(made_windows([10.0, 20], [0.0, 0], "ab"))
    assert result["spearman"]["error_new"] is None
    assert "new patches: -;" in result["text"]


def test_a_small_model_is_searched_and_drawn(tmp_path: Path) -> None:
    model = save_untrained_world(tmp_path / "model")
    data = Path(record(tmp_path / "data", episodes=3, steps=30))
    args = ModelArgs(model=model, data=(data,), out=tmp_path, limit=5, threads=1)
    sampling = {"seed": 0, "steps": 1, "mode": "autoregressive"}
    found = search_windows(args, sampling)
    assert len(found.starts) == len(found.sessions) == len(found.new_B) == 5
    assert found.frames_BTHWC.shape[1:] == (LENGTH, 64, 64, 3)
    assert found.predicted_BFHWC.shape == (5, PREDICTED, 64, 64, 3)
    assert found.entropy_BFN.shape[:2] == found.psnr_BF.shape == (5, PREDICTED)
    assert 0 < found.uncertainty_B.min() <= found.uncertainty_B.max() <= 1
    assert torch.equal(search_windows(args, sampling).predicted_BFHWC, found.predicted_BFHWC)
    result = rank_windows(found)
    write_json_atomic(tmp_path / "ranking.json", result)
    line = draw_window(tmp_path / "window", found, found.worst()[0])
    assert "from above real, GenieRedux-G-TA, uncertainty" in line
    assert (tmp_path / "window.png").exists()
    assert (tmp_path / "window.gif").exists()
