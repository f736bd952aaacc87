"""Metrics against plain loops, closed forms and scipy; delta-PSNR with a model that records
its calls."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from envs.utils.errors import InputError
from worldmodel import metrics
from worldmodel.evaluation.feature_networks import (
    bytes_for_inception,
    efficientnet_weights,
    feature_network,
)


def test_psnr_is_the_mean_of_the_frames_values_not_of_their_errors() -> None:
    x = torch.zeros(1, 2, 3, 8, 8)
    y = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.01)])[None]
    assert metrics.psnr(x, y) == pytest.approx((20 + 40) / 2, abs=1e-4)


def test_identical_frames_have_the_capped_psnr() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert metrics.psnr(x, x) == pytest.approx(metrics.PSNR_CAP, abs=1e-4)
    assert metrics.psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.5 / 255)) == pytest.approx(
        54.15, abs=0.01
    )


def test_frames_of_different_shape_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        metrics.psnr(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def ssim_loop(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one frame (C, H, W), pixel by pixel, from the formula."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(x.shape[0]):
        for row in range(x.shape[1] - 10):
            for column in range(x.shape[2] - 10):
                a = x[channel, row : row + 11, column : column + 11]
                b = y[channel, row : row + 11, column : column + 11]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (
                    (window * (a - mean_a) ** 2).sum(),
                    (window * (b - mean_b) ** 2).sum(),
                )
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
                values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_ssim_equals_a_plain_loop() -> None:
    noise = np.random.default_rng(0)
    x = noise.random((2, 3, 18, 20))
    y = np.clip(x + 0.2 * noise.standard_normal(x.shape), 0, 1)
    expected = np.mean([ssim_loop(a, b) for a, b in zip(x, y, strict=True)])
    assert metrics.ssim(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(
        expected, abs=1e-4
    )
    assert metrics.ssim(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(1, abs=1e-5)


def test_ssim_of_nearly_flat_frames_is_exact_at_any_precision() -> None:
    """Variances are small differences of squares, which bf16 and TF32 lose."""
    noise = np.random.default_rng(1)
    x = 0.9 + 0.01 * noise.standard_normal((3, 18, 20))
    y = x + 0.01 * noise.standard_normal(x.shape)
    expected = ssim_loop(x, y)
    frames = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    assert metrics.ssim(*frames) == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert metrics.ssim(*frames) == pytest.approx(expected, abs=1e-5)


def test_moving_pixels_are_those_that_changed_and_a_still_frame_says_nothing() -> None:
    last = torch.zeros(1, 1, 3, 8, 8)
    truth = last.repeat(1, 2, 1, 1, 1)
    truth[0, 0, 1, 2, 3] = 1.0  # one channel of one pixel of the first frame
    moving = metrics.moving_pixels(truth, last)
    assert moving.sum() == 1
    assert moving[0, 0, 2, 3]
    predicted = truth.clone()
    predicted[0, 0, :, 2, 3] += 0.1  # wrong by 0.1 in each channel where it moved
    predicted[0, :, :, 5, 5] = 0.7  # and elsewhere, which does not count
    values = metrics.moving_psnr(truth, predicted, moving)
    assert values[0, 0].item() == pytest.approx(20, abs=1e-3)
    assert math.isnan(values[0, 1].item())


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Diagonal covariances: sum of (m_x - m_y)^2 + (s_x - s_y)^2 over dimensions."""
    mean_x, mean_y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    scale_x, scale_y = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 2.0, 0.25])
    distance = metrics.gaussian_distance(
        mean_x, scale_x.square().diag(), mean_y, scale_y.square().diag()
    )
    assert distance == pytest.approx(1 + 4 + 4 + 0.0625, rel=1e-9)


@pytest.mark.parametrize("count", [200, 12])
def test_frechet_distance_equals_scipys_matrix_root(count: int) -> None:
    """Also with fewer vectors than dimensions, where the covariances are singular."""
    torch.manual_seed(0)
    x = torch.randn(count, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    y = torch.randn(count + 5, 24, dtype=torch.float64) * 2 + 0.3
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y + (1e-12 if count < 24 else 0) * np.eye(24))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(
        cov_x + cov_y - 2 * np.real(root)
    )
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("cut", [1, 5, 13, 39])
@pytest.mark.parametrize("dimensions", [6, 64])
def test_fits_of_parts_merge_into_the_fit_of_the_whole(cut: int, dimensions: int) -> None:
    features, others = torch.randn(40, dimensions), torch.randn(30, dimensions)
    whole, first, second, real = (metrics.GaussianFit(dimensions) for _ in range(4))
    whole.add(features)
    first.add(features[:cut])
    second.add(features[cut:])
    first.merge(second)
    real.add(others)
    assert first.count == 40
    assert first.distance(real) == pytest.approx(whole.distance(real), rel=1e-9)
    assert first.distance(real) == pytest.approx(
        metrics.gaussian_distance(*first.moments(), *real.moments()), rel=1e-6
    )
    for merged, expected in zip(first.moments(), whole.moments(), strict=True):
        torch.testing.assert_close(merged, expected)


def test_a_fit_goes_on_after_its_moments_were_read() -> None:
    features, others = torch.randn(20, 64), torch.randn(30, 64)
    whole, parts, real = (metrics.GaussianFit(64) for _ in range(3))
    whole.add(features)
    real.add(others)
    parts.add(features[:12])
    parts.moments()
    parts.add(features[12:])
    assert parts.distance(real) == pytest.approx(whole.distance(real), rel=1e-6)
    for found, expected in zip(parts.moments(), whole.moments(), strict=True):
        torch.testing.assert_close(found, expected)


def test_estimate_has_the_textbook_interval_and_counts_episodes_not_windows() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 7.0])
    low, high = scipy.stats.t.interval(0.95, 3, loc=3.5, scale=scipy.stats.sem(values.numpy()))
    plain = metrics.estimate(values)
    assert (plain.mean, plain.low, plain.high) == pytest.approx((3.5, low, high), rel=1e-4)
    # Each value seen 50 times in its episode is no more evidence than once.
    repeated = metrics.estimate(values.repeat_interleave(50), torch.arange(4).repeat_interleave(50))
    assert (repeated.low, repeated.high) == pytest.approx((low, high), rel=1e-4)
    assert math.isnan(metrics.estimate(torch.ones(9), torch.zeros(9)).low)


class ActionPainter:
    """Model whose predicted frames show their actions; it records its calls and their noise."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def generate(
        self, frames, actions, *, steps=25, temperature=1.0, mode="one_pass", generator=None
    ):
        noise = torch.rand(4, generator=generator)
        self.calls.append(
            {"steps": steps, "mode": mode, "noise": noise, "actions": actions, "frames": frames}
        )
        new = actions[:, frames.shape[1] - 1 :].float() / 10
        return new[:, :, None, None, None].expand(-1, -1, 3, 16, 16)


def test_delta_psnr_gives_both_branches_equal_steps_and_equal_noise() -> None:
    model = ActionPainter()
    actions = torch.randint(5, (6, 11), generator=torch.Generator().manual_seed(1))
    frames = torch.zeros(6, 12, 3, 16, 16)
    frames[:, 1:] = actions[:, :, None, None, None] / 10  # frame t + 1 shows action t
    result = metrics.delta_psnr(model, frames, actions, t=4, context=2, steps=7, seed=3)
    true_branch, random_branch = model.calls
    assert true_branch["steps"] == random_branch["steps"] == 7
    assert true_branch["mode"] == random_branch["mode"] == "one_pass"
    assert torch.equal(true_branch["noise"], random_branch["noise"])
    assert torch.equal(true_branch["frames"], random_branch["frames"])
    assert torch.equal(true_branch["actions"], actions[:, :5])
    # Actions between the given frames stay, those into the predicted ones are random.
    assert torch.equal(random_branch["actions"][:, :1], actions[:, :1])
    random_BT = random_branch["actions"][:, 1:]
    assert not torch.equal(random_BT, actions[:, 1:5])
    # By hand: the true branch is perfect at frame 5 (made by action 4), the random one is off by |a
    # - a'| / 10.
    error = ((random_BT[:, 3] - actions[:, 4]) / 10.0).square().clamp_min(metrics.ERROR_FLOOR)
    expected = metrics.PSNR_CAP + 10 * error.log10()
    torch.testing.assert_close(result.values_B, expected, atol=1e-3, rtol=0)
    assert result.mean == pytest.approx(expected.mean().item(), abs=1e-3)


def test_delta_psnr_can_replace_the_last_action_alone_and_always_by_another() -> None:
    model = ActionPainter()
    actions = torch.randint(3, (400, 7), generator=torch.Generator().manual_seed(1))
    result = metrics.delta_psnr(
        model,
        torch.rand(400, 8, 3, 16, 16),
        actions,
        t=4,
        replaced="last",
        seed=3,
        predicted_BFCHW=torch.rand(400, 6, 3, 16, 16),
        action_count=3,
    )
    (branch,) = model.calls
    changed = branch["actions"] != actions
    assert changed[:, 4].all()  # the action into the fourth frame after two given ones
    assert not changed[:, [0, 1, 2, 3, 5, 6]].any()
    for action in range(3):  # each of the other two is drawn about equally often
        others = branch["actions"][actions[:, 4] == action, 4].bincount(minlength=3)
        assert others[action] == 0
        assert others.max() < 2 * others.sort().values[1]
    assert len(result.values_B) == 400
    with pytest.raises(InputError, match="one action"):
        metrics.replace_last_action(actions, 2, 4, 0, 1)


def test_frames_for_inception_are_repeated_and_cut_or_rounded() -> None:
    frames = torch.rand(2, 3, 64, 64)
    near = bytes_for_inception(frames, "nearest")
    assert near.shape == (2, 3, 299, 299)
    row = torch.arange(299) * 64 // 299
    assert torch.equal(near, (frames * 255).floor().byte()[:, :, row][..., row])
    assert torch.equal(bytes_for_inception(frames, "bilinear"), (frames * 255).round().byte())
    stored = torch.arange(256).view(1, 1, 16, 16)
    both = [bytes_for_inception(stored / 255, name) for name in ("nearest", "bilinear")]
    assert torch.equal(both[1], stored.byte())  # stored frames lose nothing either way
    assert set(both[0].flatten().tolist()) == set(range(256))


def test_delta_psnr_of_a_model_that_ignores_actions_is_zero() -> None:
    class Ignorant(ActionPainter):
        def generate(self, frames, actions, **options):
            return super().generate(frames, torch.zeros_like(actions), **options)

    result = metrics.delta_psnr(
        Ignorant(), torch.rand(3, 6, 3, 16, 16), torch.randint(5, (3, 5)), t=4, steps=2
    )
    assert result.mean == 0


def test_delta_psnr_refuses_windows_that_are_too_short() -> None:
    with pytest.raises(InputError, match="needs 6 frames"):
        metrics.delta_psnr(
            ActionPainter(), torch.rand(1, 5, 3, 16, 16), torch.zeros(1, 4, dtype=torch.long), t=4
        )


def test_features_are_named_after_their_network_and_tell_images_apart(tmp_path) -> None:
    assert efficientnet_weights() is not None
    network = feature_network()
    assert network is not None
    assert network.name == "FID-EfficientNetLite0"
    flat = torch.full((10, 3, 64, 64), 0.5) + 0.05 * torch.rand(10, 1, 1, 1)
    noise = torch.rand(10, 3, 64, 64)
    flat_features, noise_features = network.extract(flat), network.extract(noise)
    assert flat_features.shape == (10, 1280)
    near = metrics.frechet_distance(noise_features[:5], noise_features[5:])
    assert metrics.frechet_distance(flat_features, noise_features) > 2 * near


class TinyInception(torch.nn.Module):
    """The calling convention of the Inception TorchScript files: uint8 images, return_features."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3)).repeat(1, 683)[:, :2048]


@pytest.mark.parametrize(("resize", "grey"), [("nearest", 127), ("bilinear", 128)])
def test_only_a_local_inception_file_may_be_called_fid(tmp_path, resize: Any, grey: int) -> None:
    torch.jit.script(TinyInception()).save(tmp_path / "inception.pt")
    network = feature_network(tmp_path / "inception.pt", resize=resize)
    assert network is not None
    assert network.name == f"FID-{resize}"
    assert network.extract(torch.full((1, 3, 64, 64), 0.5))[0, 0] == grey
    (tmp_path / "other.pt").write_bytes(b"not a network")
    with pytest.raises(InputError, match=r"other\.pt: not a TorchScript file"):
        feature_network(tmp_path / "other.pt")
