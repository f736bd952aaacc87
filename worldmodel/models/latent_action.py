"""Latent action model: one of a few actions between each frame and the next (Table 9).

It needs no recorded actions. An encoder sees frames 0..t+1 and chooses one of K codes; a decoder
has to predict frame t+1 from frames 0..t and that code. So the code comes to stand for what earlier
frames do not decide: the player's action, and whatever else moves. Recorded actions of a few clips
(`TrainConfig.label_fraction`) tell the two apart.

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, D width, K latent actions.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.utils.errors import InputError
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
class LatentActionOutput:
    """Result of a training pass."""

    frames: Tensor
    """Predicted frames 1..T-1, not clamped."""
    actions: Tensor
    """Latent actions, int64 (B, T-1)."""
    losses: dict[str, Tensor]
    """Named losses; `loss` is the one to minimise."""


class LatentActionModel(nn.Module):
    """VQ-VAE whose codes are latent actions: the action at frame t leads to frame t+1, and sees no
    later frame.

    All features of a frame are flattened and projected to the width D, then to a code of the cosine
    codebook. The decoder adds the code of action t to every patch of frame t, and predicts frame
    t+1 in its place.
    """

    component = "lam"

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c = cfg.lam
        pixels, grid = 3 * c.patch**2, cfg.size // c.patch
        self.embed_first, self.embed_later, self.given_first, self.given_later = (
            embedding(pixels, c.dim, c.patch_norm) for _ in range(4)
        )
        self.bias = PositionBias(grid, c.dim, c.heads)
        shape = (c.dim, c.heads, c.head_dim)
        self.encoder = STTransformer(*shape, c.encoder_blocks, temporal=c.temporal)
        # Without biases: one that all frames share would pull all of them to the same code.
        self.to_action = nn.Linear(grid**2 * c.dim, c.dim, bias=False)
        self.to_code = nn.Linear(c.dim, c.code_dim, bias=False)
        self.quantizer = VectorQuantizer(c)
        self.from_code = nn.Linear(c.code_dim, c.dim)
        self.decoder = STTransformer(
            *shape, c.decoder_blocks, temporal=c.temporal, temporal_first=True
        )
        self.head = nn.Linear(c.dim, pixels)
        # Starts with the previous frame, or with grey: the network learns differences from it.
        nn.init.constant_(self.head.bias, 0.0 if c.residual else 0.5)
        if c.residual:
            nn.init.zeros_(self.head.weight)

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
        """Return the parameters that no latent action depends on: all after the code, but the
        shared position bias.
        """
        parts = (self.from_code, self.given_first, self.given_later, self.decoder, self.head)
        return list(chain.from_iterable(part.parameters() for part in parts))

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Infer the latent action between each frame in [0, 1] and the next, int64 (B, T-1) in [0,
        K).

        Clips longer than cfg.frames pass through a sliding window. Raises InputError for another
        shape, type or range, and for a single frame.
        """
        self._check(frames_BTCHW)
        num_frames = frames_BTCHW.shape[1]
        length = num_frames if num_frames <= self.cfg.frames else self.cfg.frames // 2
        features = []
        cache: KVCache | None = None
        for frames in frames_BTCHW.split(length, 1):
            encoded, cache = self.encode_features(frames, cache)
            features.append(encoded)
            cache = cache.last_frames(self.cfg.frames - length)
        return self.quantizer.ids(self.to_code(self.actions(torch.cat(features, 1))))

    def predict(self, frames_BTCHW: Tensor, actions_BT: Tensor) -> Tensor:
        """Predict frames 1..T, in [0, 1], from frames 0..T-1 and their T latent actions.

        T is at most cfg.frames. Raises InputError for another shape, type or range.
        """
        self.cfg.check_frames(frames_BTCHW)
        if tuple(actions_BT.shape) != tuple(frames_BTCHW.shape[:2]):
            expected, got = tuple(frames_BTCHW.shape[:2]), tuple(actions_BT.shape)
            raise InputError(
                f"latent actions: expected shape {expected}, one for each frame, got {got}"
            )
        return (
            self.decode_features(frames_BTCHW, F.embedding(actions_BT, self.codebook))
            .float()
            .clamp(0, 1)
        )

    def forward(self, frames_BTCHW: Tensor, labels_BT: Tensor | None = None) -> LatentActionOutput:
        """Run a training pass over clips -> predicted frames 1..T-1, latent actions, named losses.

        loss = reconstruction MSE + codebook MSE + 0.25 commitment MSE, see
        `VectorQuantizer.total_loss`. `labels_BT`: recorded actions, int64 (B, T-1), -1 where not
        known. Action a shall get code a; the loss `labels`, which is not part of `loss`, measures
        it (`VectorQuantizer.forward`). Raises InputError for other actions.
        """
        self._check(frames_BTCHW)
        if labels_BT is not None and int(labels_BT.max()) >= self.cfg.lam.codes:
            raise InputError(
                f"labels: action {int(labels_BT.max())} has no code, "
                f"lam.codes = {self.cfg.lam.codes}"
            )

        # Infer the actions, then predict each next frame from them.
        features, _ = self.encode_features(frames_BTCHW)
        codes, actions, losses = self.quantizer(self.to_code(self.actions(features)), labels_BT)
        predicted = self.decode_features(frames_BTCHW[:, :-1], codes).float()

        weight = self.cfg.lam.changed_pixel_weight
        changed = changed_pixels(frames_BTCHW)
        losses["reconstruction"] = reconstruction_loss(
            predicted, frames_BTCHW[:, 1:], changed, weight
        )
        losses = {"loss": self.quantizer.total_loss(losses), **losses}
        return LatentActionOutput(predicted, actions, losses)

    def encode_features(
        self, frames_BTCHW: Tensor, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """Encode frames that follow the cached ones -> (features (B, T, h*w*D), the cache with
        them).
        """
        patches = to_patches(frames_BTCHW, self.cfg.lam.patch)
        x = first_and_later(patches, self.embed_first, self.embed_later, first=cache is None)
        x, new_cache = self.encoder(x, self.bias(), cache=cache)
        return x.flatten(2), new_cache

    def actions(self, features_BTX: Tensor) -> Tensor:
        """Project features to the actions between frames, before quantisation, (B, T-1, D)."""
        later = features_BTX[:, 1:]
        return self.to_action(later - features_BTX[:, :-1] if self.cfg.lam.difference else later)

    def decode_features(self, frames_BTCHW: Tensor, codes_BTD: Tensor) -> Tensor:
        """Predict the frame after each frame from it, those before and the codes: BTCHW, not
        clamped.
        """
        patches = to_patches(frames_BTCHW, self.cfg.lam.patch)
        x = first_and_later(patches, self.given_first, self.given_later, first=True)
        x, _ = self.decoder(x + self.from_code(codes_BTD)[:, :, None, None], self.bias())
        predicted = self.head(x)
        if self.cfg.lam.residual:
            predicted = predicted + patches
        return to_frames(predicted, self.cfg.lam.patch)

    def _check(self, frames_BTCHW: Tensor) -> None:
        self.cfg.check_frames(frames_BTCHW)
        if frames_BTCHW.shape[1] < 2:
            raise InputError(
                "latent actions: expected clips of 2 frames or more, got 1: "
                "there is no action in it"
            )
