"""Tokenizer: frames to a grid of tokens and back (ST-ViViT VQ-VAE, Table 7).

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, D width, K codes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.config import WorldModelConfig
from worldmodel.models.frame_order import FrameOrder
from worldmodel.models.transformer import KVCache
from worldmodel.models.vq_autoencoder import (
    AutoencoderOutput,
    VQAutoencoder,
    changed_pixels,
    first_and_later,
)


class Tokenizer(VQAutoencoder):
    """VQ-VAE that encodes each patch of each frame as one of K codes, without later frames.

    Frame 0 and later frames have separate patch embeddings and output heads, so that a later patch
    in which nothing happens can always become the same token.
    """

    component = "tokenizer"
    decoder_parts = ("from_code", "decoder", "head_first", "head_later")

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__(cfg, ("embed_first", "embed_later"))
        c = cfg.tokenizer
        self.to_code = nn.Linear(c.dim, c.code_dim)
        self._build_decoder()
        self.head_first, self.head_later = (nn.Linear(c.dim, self.patch_pixels) for _ in range(2))
        # Grey at the start: the network learns differences from it.
        for head in (self.head_first, self.head_later):
            nn.init.constant_(head.bias, 0.5)

    def freeze_encoder(self) -> None:
        """Freeze everything that decides a token id, for decoder-only fine-tuning."""
        self.requires_grad_(False)
        for parameter in self.decoder_parameters():
            parameter.requires_grad_(True)
        self.quantizer.learns = False

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Encode frames in [0, 1] as tokens, int64 BThw.

        Clips longer than cfg.frames pass through a sliding window. Raises InputError for another
        shape, type or range.
        """
        self.cfg.check_frames(frames_BTCHW)
        return self.encode_checked(frames_BTCHW)

    def encode_checked(self, frames_BTCHW: Tensor) -> Tensor:
        """Encode frames without `encode`'s check, which waits for the device."""
        tokens = []
        cache: KVCache | None = None
        length = self.pass_length(frames_BTCHW.shape[1])
        for frames in frames_BTCHW.split(length, 1):
            features, cache = self.encode_features(frames, cache)
            tokens.append(self.quantizer.ids(features))
            cache = cache.last_frames(self.cfg.frames - length)
        return torch.cat(tokens, 1)

    def decode(self, tokens_BThw: Tensor) -> Tensor:
        """Decode the tokens of a clip, from frame 0 on, to frames in [0, 1].

        Raises InputError for other tokens.
        """
        self.cfg.check_tokens(tokens_BThw)
        return self.decode_after(tokens_BThw)[0]

    def decode_after(
        self, tokens_BThw: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """Decode unchecked tokens after the cached frames -> (frames in [0, 1], new cache).

        Each frame attends to the cfg.frames up to itself, however many are decoded together.
        """
        frames = []
        codebook, window = self.codebook, self.cfg.frames
        for tokens in tokens_BThw.split(self.pass_length(tokens_BThw.shape[1]), 1):
            seen = cache.last_frames(window - 1) if cache else None
            order = FrameOrder.consecutive(
                tokens.shape[1], seen.frames if seen else 0, tokens.device, window
            )
            codes = F.embedding(tokens.long(), codebook)
            decoded, cache = self.decode_features(codes, seen, order)
            frames.append(decoded.float().clamp(0, 1))
        assert cache is not None
        return torch.cat(frames, 1), cache

    def forward(self, frames_BTCHW: Tensor, *, checked: bool = False) -> AutoencoderOutput:
        """Run a training pass over clips. With `checked` frames are known to be in [0, 1].

        loss = reconstruction MSE + codebook MSE + 0.25 commitment MSE. There is no codebook MSE if
        codes are moving averages, and neither of the two before the quantiser is switched on.
        """
        self.cfg.check_frames(frames_BTCHW, values=not checked)
        features, _ = self.encode_features(frames_BTCHW, keep_cache=False)
        codes, tokens, losses = self.quantizer(features)
        decoded, _ = self.decode_features(codes, keep_cache=False)
        reconstructed = decoded.float()
        # No pixel of frame 0 counts as changed: no frame comes before it.
        changed = F.pad(changed_pixels(frames_BTCHW), (0, 0, 0, 0, 0, 0, 1, 0))
        losses = self.add_losses(losses, reconstructed, frames_BTCHW, changed)
        return AutoencoderOutput(reconstructed, tokens, losses)

    def encode_features(
        self, frames_BTCHW: Tensor, cache: KVCache | None = None, keep_cache: bool = True
    ) -> tuple[Tensor, KVCache]:
        """Encode frames -> (unquantised features (B, T, h, w, code_dim), new cache)."""
        x, new_cache = self.embed_and_encode(frames_BTCHW, cache, keep_cache)
        return self.to_code(x), new_cache

    def decode_features(
        self,
        codes_BThwD: Tensor,
        cache: KVCache | None = None,
        order: FrameOrder | None = None,
        keep_cache: bool = True,
    ) -> tuple[Tensor, KVCache]:
        """Decode codes -> (frames BTCHW, not clamped, new cache)."""
        x_BThwD = self.from_code(codes_BThwD.to(self.from_code.weight.dtype))
        x, new_cache = self.decoder(
            x_BThwD, self.bias(), order=order, cache=cache, keep_cache=keep_cache
        )
        patches = first_and_later(x, self.head_first, self.head_later, first=cache is None)
        return self.to_frames(patches), new_cache
