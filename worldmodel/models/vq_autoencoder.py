"""Common base of tokenizer and latent action model: an ST-ViViT VQ-VAE on patches of frames.

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, p=q pixels of a patch's side, D width,
K codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.config import AutoencoderConfig, WorldModelConfig
from worldmodel.models.position_encoding import PositionBias
from worldmodel.models.transformer import KVCache, STTransformer
from worldmodel.models.vector_quantizer import VectorQuantizer


@dataclass(frozen=True)
class AutoencoderOutput:
    """Result of a training pass."""

    frames: Tensor
    """Reconstructed or predicted frames BTCHW, not clamped."""
    ids: Tensor
    """Codes, int64: tokens BThw, or latent actions (B, T-1)."""
    losses: dict[str, Tensor]
    """Named losses; `loss` is the one to minimise."""


class VQAutoencoder(nn.Module):
    """ST-ViViT encoder, cosine codebook and ST-ViViT decoder, causal in time.

    The first frame of a clip has separate patch embeddings. Subclasses add the layers between
    encoder and codebook and the heads, in the order in which they are initialised.
    """

    component: ClassVar[str]
    """Name of the component, and of its part of the configuration."""
    decoder_parts: ClassVar[tuple[str, ...]]
    """Modules that no code depends on."""
    embed_first: nn.Module
    embed_later: nn.Module

    def __init__(self, cfg: WorldModelConfig, embeddings: Sequence[str]) -> None:
        super().__init__()
        self.cfg = cfg
        c = self.part_cfg
        for name in embeddings:
            # Without the norm of its pixels, plain patches of different brightness differ.
            pixel_norm = nn.LayerNorm(self.patch_pixels) if c.patch_norm else nn.Identity()
            linear = nn.Linear(self.patch_pixels, c.dim)
            self.add_module(name, nn.Sequential(pixel_norm, linear, nn.LayerNorm(c.dim)))
        self.bias = PositionBias(cfg.size // c.patch, c.dim, c.heads)
        self.encoder = STTransformer(
            c.dim, c.heads, c.head_dim, c.encoder_blocks, temporal=c.temporal
        )

    def _build_decoder(self) -> None:
        c = self.part_cfg
        self.quantizer = VectorQuantizer(c)
        self.from_code = nn.Linear(c.code_dim, c.dim)
        self.decoder = STTransformer(
            c.dim, c.heads, c.head_dim, c.decoder_blocks, temporal=c.temporal, temporal_first=True
        )

    @property
    def part_cfg(self) -> AutoencoderConfig:
        """Configuration of this component."""
        return getattr(self.cfg, self.component)

    @property
    def patch_pixels(self) -> int:
        """Number of values in a patch: C*p*q."""
        return 3 * self.part_cfg.patch**2

    @property
    def codebook(self) -> Tensor:
        """Codes, (K, code_dim), rows of length 1."""
        return self.quantizer.codebook

    def set_progress(self, fraction_of_run: float) -> None:
        """Set the finished fraction of the training run, in [0, 1], which the quantiser follows."""
        self.quantizer.set_progress(fraction_of_run)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that no code depends on.

        The position bias is shared with the encoder and is not among them.
        """
        return [p for name in self.decoder_parts for p in getattr(self, name).parameters()]

    def pass_length(self, frames: int) -> int:
        """Return the number of frames in a pass: all that fit into the window, else half of it."""
        return frames if frames <= self.cfg.frames else self.cfg.frames // 2

    def to_patches(self, frames_BTCHW: Tensor) -> Tensor:
        """Cut frames into patches, (B, T, h, w, C*p*q), of the weights' dtype."""
        side, frames_BTCHW = self.part_cfg.patch, frames_BTCHW.to(self.from_code.weight.dtype)
        return rearrange(frames_BTCHW, "b t c (h p) (w q) -> b t h w (c p q)", p=side, q=side)

    def to_frames(self, patches_BThwP: Tensor) -> Tensor:
        """Assemble frames BTCHW from patches."""
        side = self.part_cfg.patch
        return rearrange(patches_BThwP, "b t h w (c p q) -> b t c (h p) (w q)", p=side, q=side)

    def embed_and_encode(
        self, frames_BTCHW: Tensor, cache: KVCache | None, keep_cache: bool
    ) -> tuple[Tensor, KVCache]:
        """Run frames that follow the cached ones through the encoder -> (BThwD, new cache)."""
        patches = self.to_patches(frames_BTCHW)
        x = first_and_later(patches, self.embed_first, self.embed_later, first=cache is None)
        return self.encoder(x, self.bias(), cache=cache, keep_cache=keep_cache)

    def add_losses(
        self,
        losses: dict[str, Tensor],
        predicted_BTCHW: Tensor,
        frames_BTCHW: Tensor,
        changed_BT1HW: Tensor,
    ) -> dict[str, Tensor]:
        """Add `reconstruction`, in which changed pixels weigh more, and the total `loss`."""
        weight = self.part_cfg.changed_pixel_weight
        if weight == 1:
            reconstruction = F.mse_loss(predicted_BTCHW, frames_BTCHW)
        else:
            weights = changed_BT1HW * (weight - 1.0) + 1.0
            squares = (predicted_BTCHW - frames_BTCHW).square()
            reconstruction = (squares * weights).mean() / weights.mean()
        losses = {**losses, "reconstruction": reconstruction}
        return {"loss": self.quantizer.total_loss(losses), **losses}


def first_and_later(x: Tensor, on_first: nn.Module, on_later: nn.Module, *, first: bool) -> Tensor:
    """Apply one layer to frame 0 of a clip and another to the rest.

    `first` is false for frames that follow a cache, none of which is frame 0.
    """
    if not first:
        return on_later(x)
    if x.shape[1] == 1:
        return on_first(x)
    return torch.cat([on_first(x[:, :1]), on_later(x[:, 1:])], dim=1)


def changed_pixels(frames_BTCHW: Tensor) -> Tensor:
    """Mark the pixels of frames 1..T-1 that differ from the previous frame, (B, T-1, 1, H, W)."""
    return (frames_BTCHW[:, 1:] != frames_BTCHW[:, :-1]).any(2, keepdim=True)
