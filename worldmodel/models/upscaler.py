"""Super-resolution (App. B): a U-Net that enlarges frames of the world model four times.

Shapes: B frames, C=3, H=W=size pixels of the small frame; the large one has size * factor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.utils.errors import InputError

_BATCH = 16
"""Frames in a pass, which bounds the memory of `upscale`."""


@dataclass(frozen=True)
class UpscalerConfig:
    """Shape of the U-Net. The defaults are the paper's configurations (1) and (2)."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels at each depth; the bottom level below them is twice as wide."""
    size: int = 64
    """Side of a small frame in pixels."""
    factor: int = 4
    """Ratio of the sides of large and small frame."""
    fold: int = 1
    """Side of the pixel squares that are folded into channels before the U-Net: 1 works at the
    large size (the paper), `factor` at the small one, in a sixteenth of the time."""
    residual: bool = False
    """Predict a residual on the bicubic picture instead of the picture itself (the paper)."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise InputError(
                f"upscaler widths = {self.widths}: give one or more channel numbers of 1 or more"
            )
        deepest = self.fold * 2 ** len(self.widths)
        if min(self.size, self.factor, self.fold) < 1 or self.large % deepest:
            raise InputError(
                f"upscaler: {self.large} pixels cannot be halved {len(self.widths)} times and "
                f"folded by {self.fold}"
            )

    @property
    def large(self) -> int:
        """Side of a large frame in pixels."""
        return self.size * self.factor


SHAPES: dict[str, UpscalerConfig] = {
    "debug": UpscalerConfig(widths=(8, 16), fold=4, residual=True),
    "cpu": UpscalerConfig(widths=(32, 64), fold=4, residual=True),
    "small": UpscalerConfig(),
    "large": UpscalerConfig(widths=(128, 256, 512, 1024)),
}
"""small: configurations (1) and (2) of App. B, 31 M parameters. large: (3), 124 M. The others are
for two cores."""


def _two_convolutions(channels: int, width: int) -> nn.Sequential:
    first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class Upscaler(nn.Module):
    """U-Net from the bicubic picture of a small frame to the large frame."""

    def __init__(self, cfg: UpscalerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        channels, widths = 3 * cfg.fold**2, cfg.widths
        above = (channels, *widths[:-1])
        self.down = nn.ModuleList(
            _two_convolutions(a, b) for a, b in zip(above, widths, strict=True)
        )
        self.bottom = _two_convolutions(widths[-1], 2 * widths[-1])
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths)
        )
        self.up = nn.ModuleList(_two_convolutions(2 * width, width) for width in reversed(widths))
        self.out = nn.Conv2d(widths[0], channels, 1)
        if cfg.residual:  # starts as bicubic
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, frames_BCHW: Tensor) -> Tensor:
        """Enlarge float frames in [0, 1] -> (B, 3, large, large), roughly in [0, 1].

        Raises InputError for another size.
        """
        size, got = self.cfg.size, tuple(frames_BCHW.shape)
        if got[1:] != (3, size, size):
            raise InputError(
                f"upscaler: expected frames of shape (B, 3, {size}, {size}), got {got}"
            )
        start = bicubic(frames_BCHW, self.cfg.factor)
        x = F.pixel_unshuffle(start, self.cfg.fold)
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for rise, level in zip(self.rise, self.up, strict=True):
            x = level(torch.cat([skips.pop(), rise(x)], dim=1))
        predicted = F.pixel_shuffle(self.out(x), self.cfg.fold)
        return start + predicted if self.cfg.residual else predicted

    @torch.no_grad()
    def upscale(self, frames: Tensor) -> Tensor:
        """Enlarge float frames (..., 3, size, size) in [0, 1] in small batches, to [0, 1].

        Raises InputError for another size, type or range.
        """
        size = self.cfg.size
        if frames.ndim < 4 or not frames.is_floating_point():
            raise InputError(
                f"upscaler: expected float frames (..., 3, {size}, {size}), "
                f"got {tuple(frames.shape)} of {frames.dtype}"
            )
        low, high = (bound.item() for bound in frames.aminmax()) if frames.numel() else (0.0, 0.0)
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise InputError(
                f"upscaler: expected values in [0, 1], got {low:.4g} to {high:.4g}: "
                "divide uint8 by 255"
            )
        device = next(self.parameters()).device
        parts = [
            self(part.to(device)).clamp(0, 1).to(frames.device)
            for part in frames.flatten(0, -4).split(_BATCH)
        ]
        return torch.cat(parts).unflatten(0, frames.shape[:-3])


def bicubic(frames_BCHW: Tensor, factor: int) -> Tensor:
    """Enlarge frames by bicubic interpolation, in [0, 1]: the baseline of an upscaler."""
    large = F.interpolate(frames_BCHW, scale_factor=factor, mode="bicubic", align_corners=False)
    return large.clamp(0, 1)


def upscaler_config(name: str) -> UpscalerConfig:
    """Return a configuration of `SHAPES`. Raises InputError for other names."""
    if name not in SHAPES:
        raise InputError(f"upscaler {name!r}: choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
