"""Tokenizer: frames to a grid of tokens and back (ST-ViViT VQ-VAE; spec: section 2, table 7 of the paper).

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
    """A training pass: reconstructed frames BTCHW, not clamped; tokens int64 BThw; named losses, among them `loss`."""

    frames: Tensor
    tokens: Tensor
    losses: dict[str, Tensor]


class Tokenizer(nn.Module):
    """Each patch of each frame becomes one of K codes, which knows the frames before it and none after it.

    The first frame of a clip and later frames have patch embeddings and output heads of their own, so that a later
    patch in which nothing happens can become one and the same token.
    """

    component = "tokenizer"

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c = cfg.tokenizer
        pixels = 3 * c.patch**2
        self.embed_first, self.embed_later = (embedding(pixels, c.dim, c.patch_norm) for _ in range(2))
        self.bias = PositionBias(cfg.grid, c.dim, c.heads)
        shape = (c.dim, c.heads, c.head_dim)
        self.encoder = STTransformer(*shape, c.encoder_blocks, temporal=c.temporal)
        self.to_code = nn.Linear(c.dim, c.code_dim)
        self.quantizer = VectorQuantizer(c)
        self.from_code = nn.Linear(c.code_dim, c.dim)
        self.decoder = STTransformer(*shape, c.decoder_blocks, temporal=c.temporal, temporal_first=True)
        self.head_first, self.head_later = nn.Linear(c.dim, pixels), nn.Linear(c.dim, pixels)
        # Grey at the start: the network learns differences from it.
        for head in (self.head_first, self.head_later):
            nn.init.constant_(head.bias, 0.5)

    @property
    def codebook(self) -> Tensor:
        """(K, code_dim), rows of length 1."""
        return self.quantizer.codebook

    def set_progress(self, fraction_of_run: float) -> None:
        """Tell how much of the training run is done, in [0, 1], before a step: it decides when codes are quantised."""
        self.quantizer.progress.fill_(fraction_of_run)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """What decoder-only fine-tuning trains: all that comes after the token ids.

        The position bias is shared with the encoder and stays out. Call `freeze_encoder` too: it stops the moving
        averages of the codebook.
        """
        parts = (self.from_code, self.decoder, self.head_first, self.head_later)
        return list(chain.from_iterable(part.parameters() for part in parts))

    def freeze_encoder(self) -> None:
        """For decoder-only fine-tuning: from now on nothing that decides a token id changes, in training neither."""
        self.requires_grad_(False)
        for parameter in self.decoder_parameters():
            parameter.requires_grad_(True)
        self.quantizer.learns = False

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] -> tokens int64 BThw. Clips longer than cfg.frames are read with a sliding window.

        Raises InputError for another shape, type or range.
        """
        self.cfg.check_frames(frames_BTCHW)
        tokens = []
        past: KVCache | None = None
        stretch = self._stretch(frames_BTCHW.shape[1])
        for part in frames_BTCHW.split(stretch, 1):
            features, past = self.encode_features(part, past)
            tokens.append(self.quantizer.ids(features))
            past = past.last_frames(self.cfg.frames - stretch)
        return torch.cat(tokens, 1)

    def decode(self, tokens_BThw: Tensor) -> Tensor:
        """Tokens of a clip, from its first frame on -> frames in [0, 1]. Raises InputError for other shapes or ids."""
        self.cfg.check_tokens(tokens_BThw)
        return self.show(tokens_BThw)[0]

    def show(self, tokens_BThw: Tensor, past: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """`decode` of tokens that follow those of `past` -> (frames in [0, 1], the past with them). Not checked."""
        frames = []
        codebook = self.codebook
        stretch = self._stretch(tokens_BThw.shape[1])
        for part in tokens_BThw.split(stretch, 1):
            kept = past.last_frames(self.cfg.frames - stretch) if past else None
            made, past = self.decode_features(F.embedding(part, codebook), kept)
            frames.append(made.float().clamp(0, 1))
        assert past is not None
        return torch.cat(frames, 1), past

    def forward(self, frames_BTCHW: Tensor) -> TokenizerOutput:
        """A training pass over clips: reconstruction, tokens and losses (`reconstruction`, `commitment`, `codebook`).

        loss = reconstruction MSE + codebook MSE + 0.25 commitment MSE, without the codebook term where codes are moving
        averages, and without both before the quantiser is switched on.
        """
        self.cfg.check_frames(frames_BTCHW)
        features, _ = self.encode_features(frames_BTCHW, None)
        codes, tokens, losses = self.quantizer(features)
        made, _ = self.decode_features(codes, None)
        made = made.float()
        changed = F.pad(changed_pixels(frames_BTCHW), (0, 0, 0, 0, 0, 0, 1, 0))  # nothing is before frame 0
        losses["reconstruction"] = reconstruction_loss(
            made, frames_BTCHW, changed, self.cfg.tokenizer.changed_pixel_weight
        )
        return TokenizerOutput(made, tokens, {"loss": self.quantizer.total_loss(losses), **losses})

    def _stretch(self, frames: int) -> int:
        """Frames in a pass: all where they fit into the window, else half a window after half a window."""
        return frames if frames <= self.cfg.frames else self.cfg.frames // 2

    def encode_features(self, frames_BTCHW: Tensor, past: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """What the encoder makes of frames, unquantised, (B, T, h, w, code_dim), and the past with them."""
        patches = to_patches(frames_BTCHW, self.cfg.tokenizer.patch)
        x = first_and_later(patches, self.embed_first, self.embed_later, first=past is None)
        x, past = self.encoder(x, self.bias(), past=past)
        return self.to_code(x), past

    def decode_features(self, codes_BThwD: Tensor, past: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """What the decoder makes of codes, BTCHW and not clamped, and the past with them."""
        first = past is None
        x, past = self.decoder(self.from_code(codes_BThwD), self.bias(), past=past)
        patches = first_and_later(x, self.head_first, self.head_later, first=first)
        return to_frames(patches, self.cfg.tokenizer.patch), past
