"""Image and prediction metrics (App. A.2).

Frames are float in [0, 1]. Shapes: B windows, T frames, C=3, H, W; `...` any leading dimensions.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.config import GenerationMode, ReplacedActions
from worldmodel.devices import float64
from worldmodel.statistics import Estimate, estimate

ERROR_FLOOR = (0.5 / 255) ** 2
"""Lower bound of the mean squared error: half a grey level, the resolution of 8-bit frames. It caps
the PSNR of identical frames, low enough that a few still frames do not decide a mean."""
PSNR_CAP = 54.1514
"""PSNR of identical frames, in dB: that of ERROR_FLOOR."""


class Generator(Protocol):
    """The part of `worldmodel.models.genie.WorldModel` that `delta_psnr` calls."""

    @property
    def generate(self) -> Callable[..., Tensor]:
        """See `WorldModel.generate`."""


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim < 3:
        raise InputError(
            f"frames of shape {tuple(x.shape)} and {tuple(y.shape)} cannot be compared: "
            "make them equal"
        )


def decibels(mse: Tensor) -> Tensor:
    """Convert mean squared errors of frames in [0, 1] to PSNR in dB, at most `PSNR_CAP`."""
    return -10 * torch.log10(mse.clamp_min(ERROR_FLOOR))


def frame_psnr(x: Tensor, y: Tensor) -> Tensor:
    """Compute the PSNR in dB of each frame over its C, H, W. x, y (..., C, H, W) -> (...)."""
    _check_pair(x, y)
    return decibels((x.float() - y.float()).square().mean((-3, -2, -1)))


def psnr(x: Tensor, y: Tensor) -> float:
    """Compute the mean PSNR of frames in dB (App. A.2); identical frames count `PSNR_CAP`."""
    return frame_psnr(x, y).mean().item()


def moving_pixels(frames: Tensor, reference: Tensor) -> Tensor:
    """Mark pixels that differ from the reference in any channel by more than half a grey level.

    frames (..., C, H, W), reference broadcastable to it -> bool (..., H, W).
    """
    return ((frames.float() - reference.float()).abs() > 0.5 / 255).any(-3)


def moving_psnr(x: Tensor, y: Tensor, moving: Tensor) -> Tensor:
    """Compute the PSNR in dB of each frame over its moving pixels, NaN if it has none.

    x, y (..., C, H, W), moving bool (..., H, W) -> (...). Average with `nanmean`.
    """
    _check_pair(x, y)
    error = (x.float() - y.float()).square().mean(-3) * moving
    count = moving.sum((-2, -1))
    return torch.where(count > 0, decibels(error.sum((-2, -1)) / count.clamp_min(1)), torch.nan)


def frame_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Compute the structural similarity of each frame (Wang et al. 2004).

    x, y (..., C, H, W) in [0, 1] -> (...), at most 1. Gaussian window of 11 with sigma 1.5, no
    padding, K1 = 0.01, K2 = 0.03; the mean over channels and pixels. Computed in float64: variances
    are small differences of squares.
    """
    _check_pair(x, y)
    if min(x.shape[-2:]) < 11:
        raise InputError(
            f"frames of {tuple(x.shape[-2:])} pixels are smaller than the SSIM window of 11x11"
        )
    x, y = float64(x), float64(y)
    down = _gaussian_rows(x.shape[-2], x)
    across = _gaussian_rows(x.shape[-1], x)
    # The window is separable, and a product with a band matrix is faster than a convolution of one
    # channel.
    planes = down @ torch.stack([x, y, x * x, y * y, x * y]) @ across.T
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = planes
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean((-3, -2, -1)).float()


def _gaussian_rows(size: int, like: Tensor) -> Tensor:
    """Return the matrix (size - 10, size) that slides the window of SSIM along an axis."""
    offsets = (torch.arange(size) - torch.arange(size - 10)[:, None] - 5).to(like)
    rows = torch.exp(-offsets.square() / (2 * 1.5**2)) * (offsets.abs() <= 5)
    return rows / rows.sum(1, keepdim=True)


def ssim(x: Tensor, y: Tensor) -> float:
    """Compute the mean over frames of `frame_ssim`."""
    return frame_ssim(x, y).mean().item()


class GaussianFit:
    """Gaussian fit of feature vectors (N, D) for a Frechet distance, accumulated batch by batch.

    Up to D vectors are stored, more are summed in float64. Either way, fits merge exactly.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.dimensions = dimensions
        self._vectors: list[Tensor] = []
        self._sum_D = torch.zeros(0, dtype=torch.float64)
        self._outer_DD = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def vectors_ND(self) -> Tensor | None:
        """All vectors in float64 while they are stored, otherwise None."""
        return torch.cat(self._vectors).double() if self._vectors else None

    def add(self, features_ND: Tensor) -> None:
        """Add vectors."""
        features = features_ND.detach().cpu()
        if not len(self._sum_D) and self.count + len(features) <= self.dimensions:
            self._vectors.append(features)
        else:
            self._add_sums(features.double().sum(0), features.double().T @ features.double())
        self.count += len(features)

    def merge(self, other: "GaussianFit") -> None:
        """Add the vectors of another fit."""
        vectors = other.vectors_ND
        if vectors is not None:
            self.add(vectors)
        elif other.count:
            self._add_sums(other._sum_D, other._outer_DD)
            self.count += other.count

    def _add_sums(self, sum_D: Tensor | float = 0.0, outer_DD: Tensor | float = 0.0) -> None:
        """Replace the stored vectors by their sums, and add further sums."""
        if not len(self._sum_D):
            self._sum_D = torch.zeros(self.dimensions, dtype=torch.float64)
            self._outer_DD = torch.zeros(self.dimensions, self.dimensions, dtype=torch.float64)
        vectors = self.vectors_ND
        if vectors is not None:
            self._sum_D += vectors.sum(0)
            self._outer_DD += vectors.T @ vectors
            self._vectors = []
        self._sum_D += sum_D
        self._outer_DD += outer_DD

    def moments(self) -> tuple[Tensor, Tensor]:
        """Compute mean (D,) and covariance (D, D) with the unbiased divisor."""
        self._add_sums()
        mean = self._sum_D / self.count
        return mean, (self._outer_DD - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def distance(self, other: "GaussianFit") -> float:
        """Compute the squared Frechet distance to another fit; both need two vectors or more."""
        fewest = min(self.count, other.count)
        if fewest < 2:
            raise InputError(
                f"a Frechet distance needs at least 2 frames on each side, here are {fewest}"
            )
        x, y = self.vectors_ND, other.vectors_ND
        if x is None or y is None:
            return gaussian_distance(*self.moments(), *other.moments())
        # With few vectors, S_x = A^T A and S_y = B^T B, and tr (S_x S_y)^(1/2) is the sum of the
        # singular values of A B^T.
        a, b = ((v - v.mean(0)) / (len(v) - 1) ** 0.5 for v in (x, y))
        trace = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
        return max(((x.mean(0) - y.mean(0)).square().sum() + trace).item(), 0.0)


def gaussian_distance(
    mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor
) -> float:
    """Compute the squared Frechet distance of two Gaussians in float64.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)). The trace of the root is the sum of the roots
    of the eigenvalues of the symmetric S_x^(1/2) S_y S_x^(1/2), also for singular covariances.
    """
    values, vectors = torch.linalg.eigh(covariance_x.double())
    root_x = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root_x @ covariance_y.double() @ root_x)
    trace = covariance_x.diagonal().double().sum() + covariance_y.diagonal().double().sum()
    distance = (mean_x - mean_y).double().square().sum() + trace
    return max((distance - 2 * product.clamp_min(0).sqrt().sum()).item(), 0.0)


def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Compute the squared Frechet distance of Gaussians fitted to features (N, D) and (M, D).

    See Heusel et al. 2017.
    """
    fits = []
    for features in (features_x, features_y):
        fits.append(GaussianFit(features.shape[1]))
        fits[-1].add(features)
    return fits[0].distance(fits[1])


def delta_psnr(
    model: Generator,
    frames_BTCHW: Tensor,
    actions_BT: Tensor,
    *,
    t: int = 4,
    replaced: ReplacedActions = "all",
    context: int = 2,
    steps: int = 25,
    mode: GenerationMode = "one_pass",
    temperature: float = 1.0,
    seed: int = 0,
    predicted_BFCHW: Tensor | None = None,
    groups_B: Tensor | None = None,
    action_count: int = 5,
) -> Estimate:
    """Compute controllability: the mean of PSNR(x_t, x'_t) - PSNR(x_t, x''_t) over windows, in dB.

    x_t is the t-th predicted frame, x' is predicted with the true actions, x'' with actions of the
    predicted frames `replaced`: all by uniformly random ones, or the last one, which leads to x_t,
    by another one (App. A.2; Genie). Both predictions have as many frames, `steps` and the same
    `seed`. frames_BTCHW has context + t frames or more;
    action k turned frame k into frame k + 1. `predicted_BFCHW`: x', if it was already generated
    with these settings and a generator of this seed. `groups_B`: episode of each window, see
    `estimate`.
    """
    if frames_BTCHW.shape[1] < context + t or actions_BT.shape[1] < context + t - 1:
        raise InputError(
            f"delta-PSNR at t={t} needs {context + t} frames a window, here are "
            f"{frames_BTCHW.shape[1]}"
        )
    given, truth = frames_BTCHW[:, :context], frames_BTCHW[:, context + t - 1]
    count = t if predicted_BFCHW is None else predicted_BFCHW.shape[1]
    actions = actions_BT[:, : context + count - 1]

    def predict(branch: Tensor) -> Tensor:
        generator = torch.Generator(actions.device).manual_seed(seed)
        return model.generate(
            given, branch, steps=steps, mode=mode, temperature=temperature, generator=generator
        )

    true_branch = predict(actions) if predicted_BFCHW is None else predicted_BFCHW
    if replaced == "last":
        other_actions = replace_last_action(actions, context, t, seed, action_count)
    else:
        other_actions = random_actions(actions, context, seed, action_count)
    random_branch = predict(other_actions)
    values_B = frame_psnr(truth, true_branch[:, t - 1]) - frame_psnr(truth, random_branch[:, t - 1])
    return estimate(values_B, groups_B)


def random_actions(actions_BT: Tensor, context: int, seed: int, action_count: int) -> Tensor:
    """Replace the actions into predicted frames by uniformly random ones of this seed, (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    random_BT = torch.randint(action_count, actions_BT.shape, generator=generator).to(actions_BT)
    return torch.cat([actions_BT[:, : context - 1], random_BT[:, context - 1 :]], dim=1)


def replace_last_action(
    actions_BT: Tensor, context: int, t: int, seed: int, action_count: int
) -> Tensor:
    """Replace the action into the t-th predicted frame by another one, uniformly drawn, (B, T)."""
    if action_count < 2:
        raise InputError("a model with one action has no other one to compare it with")
    generator = torch.Generator().manual_seed(seed)
    shift_B = torch.randint(1, action_count, actions_BT.shape[:1], generator=generator)
    other_BT, last = actions_BT.clone(), context + t - 2
    other_BT[:, last] = (other_BT[:, last] + shift_B.to(other_BT)) % action_count
    return other_BT
