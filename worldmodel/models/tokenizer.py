"""Tokenizer: frames to a grid of tokens and back (ST-ViViT VQ-VAE, Table 7).

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, D width, K codes.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.config import WorldModelConfig
from worldmodel.models.patchify import (
    changed_pixels,
    embedding,
    first_and_later,
    reconstruction_loss,
    to_frames,
    to_patches,
)
from worldmodel.models.position_encoding import PositionBias
from worldmodel.models.transformer import KVCache, STTransformer
from worldmodel.models.vector_quantizer import VectorQuantizer


@dataclass(frozen=True)
class TokenizerOutput:
    """Result of a training pass."""

    frames: Tensor
    """Reconstructed frames BTCHW, not clamped."""
    tokens: Tensor
    """Tokens, int64 BThw."""
    losses: dict[str, Tensor]
    """Named losses; `loss` is the one to minimise."""


class Tokenizer(nn.Module):
    """VQ-VAE that is causal in time: each patch of each frame becomes one of K codes, which sees no
    later frame.

    The first frame of a clip and later frames have separate patch embeddings and output heads, so
    that a later patch in which nothing happens can always become the same token.
    """

    component = "tokenizer"

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c = cfg.tokenizer
        pixels = 3 * c.patch**2
        self.embed_first, self.embed_later = (
            embedding(pixels, c.dim, c.patch_norm) for _ in range(2)
        )
        self.bias = PositionBias(cfg.grid, c.dim, c.heads)
        shape = (c.dim, c.heads, c.head_dim)
        self.encoder = STTransformer(*shape, c.encoder_blocks, temporal=c.temporal)
        self.to_code = nn.Linear(c.dim, c.code_dim)
        self.quantizer = VectorQuantizer(c)
        self.from_code = nn.Linear(c.code_dim, c.dim)
        self.decoder = STTransformer(
            *shape, c.decoder_blocks, temporal=c.temporal, temporal_first=True
        )
        self.head_first, self.head_later = nn.Linear(c.dim, pixels), nn.Linear(c.dim, pixels)
        # Grey at the start: the network learns differences from it.
        for head in (self.head_first, self.head_later):
            nn.init.constant_(head.bias, 0.5)

    @property
    def codebook(self) -> Tensor:
        """Codes, (K, code_dim), rows of length 1."""
        return self.quantizer.codebook

    def set_progress(self, fraction_of_run: float) -> None:
        """Set the fraction of the training run that is done, in [0, 1]: it decides when features
        are quantised.
        """
        self.quantizer.progress.fill_(fraction_of_run)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of decoder-only fine-tuning: everything after the token ids.

        The position bias is shared with the encoder and stays out. Call `freeze_encoder` too: it
        stops the moving averages of the codebook.
        """
        parts = (self.from_code, self.decoder, self.head_first, self.head_later)
        return list(chain.from_iterable(part.parameters() for part in parts))

    def freeze_encoder(self) -> None:
        """Freeze everything that decides a token id, in training too: for decoder-only
        fine-tuning.
        """
        self.requires_grad_(False)
        for parameter in self.decoder_parameters():
            parameter.requires_grad_(True)
        self.quantizer.learns = False

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Encode frames in [0, 1] as tokens, int64 BThw. Clips longer than cfg.frames pass through
        a sliding window.

        Raises InputError for another shape, type or range.
        """
        self.cfg.check_frames(frames_BTCHW)
        return self._encode(frames_BTCHW)

    def _encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Encode frames that were checked: a check waits for the device."""
        tokens = []
        cache: KVCache | None = None
        length = self._pass_length(frames_BTCHW.shape[1])
        for frames in frames_BTCHW.split(length, 1):
            features, cache = self.encode_features(frames, cache)
            tokens.append(self.quantizer.ids(features))
            cache = cache.last_frames(self.cfg.frames - length)
        return torch.cat(tokens, 1)

    def decode(self, tokens_BThw: Tensor) -> Tensor:
        """Decode the tokens of a clip, from its first frame on, to frames in [0, 1]. Raises
        InputError for others.
        """
        self.cfg.check_tokens(tokens_BThw)
        return self.decode_after(tokens_BThw)[0]

    def decode_after(
        self, tokens_BThw: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """Decode tokens that follow the cached frames -> (frames in [0, 1], the cache with them).
        Not checked.
        """
        frames = []
        codebook = self.codebook
        length = self._pass_length(tokens_BThw.shape[1])
        for tokens in tokens_BThw.split(length, 1):
            seen = cache.last_frames(self.cfg.frames - length) if cache else None
            decoded, cache = self.decode_features(F.embedding(tokens, codebook), seen)
            frames.append(decoded.float().clamp(0, 1))
        assert cache is not None
        return torch.cat(frames, 1), cache

    def forward(self, frames_BTCHW: Tensor) -> TokenizerOutput:
        """Run a training pass over clips -> reconstruction, tokens, losses `reconstruction`,
        `commitment`, `codebook`.

        loss = reconstruction MSE + codebook MSE + 0.25 commitment MSE, without the codebook term
        where codes are moving averages, and without both before the quantiser is switched on.
        """
        self.cfg.check_frames(frames_BTCHW)

        # Encode, quantise, decode.
        features, _ = self.encode_features(frames_BTCHW)
        codes, tokens, losses = self.quantizer(features)
        decoded, _ = self.decode_features(codes)
        reconstructed = decoded.float()

        # No pixel of frame 0 counts as changed: nothing comes before it.
        changed = F.pad(changed_pixels(frames_BTCHW), (0, 0, 0, 0, 0, 0, 1, 0))
        weight = self.cfg.tokenizer.changed_pixel_weight
        losses["reconstruction"] = reconstruction_loss(reconstructed, frames_BTCHW, changed, weight)
        losses = {"loss": self.quantizer.total_loss(losses), **losses}
        return TokenizerOutput(reconstructed, tokens, losses)

    def _pass_length(self, frames: int) -> int:
        """Return the number of frames in a pass: all where they fit into the window, else half a
        window.
        """
        return frames if frames <= self.cfg.frames else self.cfg.frames // 2

    def encode_features(
        self, frames_BTCHW: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """Encode frames -> (features before quantisation (B, T, h, w, code_dim), the cache with
        them).
        """
        patches = to_patches(frames_BTCHW, self.cfg.tokenizer.patch)
        x = first_and_later(patches, self.embed_first, self.embed_later, first=cache is None)
        x, new_cache = self.encoder(x, self.bias(), cache=cache)
        return self.to_code(x), new_cache

    def decode_features(
        self, codes_BThwD: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """Decode codes -> (frames BTCHW, not clamped, the cache with them)."""
        x, new_cache = self.decoder(self.from_code(codes_BThwD), self.bias(), cache=cache)
        patches = first_and_later(x, self.head_first, self.head_later, first=cache is None)
        return to_frames(patches, self.cfg.tokenizer.patch), new_cache
