"""Latent action model: which of a few actions turned each frame into the next (spec: section 3, table 9 of the paper).

It need be told no action. An encoder sees frames 0..t+1 and may say one of K codes; a decoder has to make frame t+1
from frames 0..t and that code. So the code comes to stand for what the past does not decide: what the player did, and
whatever else moves. Recorded actions of a few clips (`TrainConfig.label_fraction`) say which of it is the player's.

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
    """A training pass: frames 1..T-1 as made, not clamped; actions int64 (B, T-1); losses, among them `loss`."""

    frames: Tensor
    actions: Tensor
    losses: dict[str, Tensor]


class LatentActionModel(nn.Module):
    """The latent action beside frame t is the one that makes frame t+1; it is read from frames 0..t+1 and no later one.

    All features of a frame are flattened and projected to the width D, then to a code of the cosine codebook. The
    decoder adds the code of action t to every patch of frame t, and makes frame t+1 in its place.
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
        # Without biases: what all frames have in common would make one code of them all.
        self.to_action = nn.Linear(grid**2 * c.dim, c.dim, bias=False)
        self.to_code = nn.Linear(c.dim, c.code_dim, bias=False)
        self.quantizer = VectorQuantizer(c)
        self.from_code = nn.Linear(c.code_dim, c.dim)
        self.decoder = STTransformer(*shape, c.decoder_blocks, temporal=c.temporal, temporal_first=True)
        self.head = nn.Linear(c.dim, pixels)
        # Starts at the frame before, or grey: the network learns differences from it.
        nn.init.constant_(self.head.bias, 0.0 if c.residual else 0.5)
        if c.residual:
            nn.init.zeros_(self.head.weight)

    @property
    def codebook(self) -> Tensor:
        """(K, code_dim), rows of length 1."""
        return self.quantizer.codebook

    def set_progress(self, fraction_of_run: float) -> None:
        """Tell how much of the training run is done, in [0, 1], before a step: it decides when codes are quantised."""
        self.quantizer.progress.fill_(fraction_of_run)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """What no latent action depends on: all that comes after the code, the shared position bias left out."""
        parts = (self.from_code, self.given_first, self.given_later, self.decoder, self.head)
        return list(chain.from_iterable(part.parameters() for part in parts))

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] -> the latent action between each frame and the next, int64 (B, T-1) in [0, K).

        Clips longer than cfg.frames are read with a sliding window. Raises InputError for another shape, type or range,
        and for a single frame.
        """
        self._check(frames_BTCHW)
        frames = frames_BTCHW.shape[1]
        stretch = frames if frames <= self.cfg.frames else self.cfg.frames // 2
        features = []
        past: KVCache | None = None
        for part in frames_BTCHW.split(stretch, 1):
            made, past = self.encode_features(part, past)
            features.append(made)
            past = past.last_frames(self.cfg.frames - stretch)
        return self.quantizer.ids(self.to_code(self.actions(torch.cat(features, 1))))

    def predict(self, frames_BTCHW: Tensor, actions_BT: Tensor) -> Tensor:
        """What the decoder takes for frames 1..T, in [0, 1], given frames 0..T-1 and the T latent actions beside them.

        T is at most cfg.frames. Raises InputError for another shape, type or range.
        """
        self.cfg.check_frames(frames_BTCHW)
        if tuple(actions_BT.shape) != tuple(frames_BTCHW.shape[:2]):
            expected, got = tuple(frames_BTCHW.shape[:2]), tuple(actions_BT.shape)
            raise InputError(f"latent actions: expected shape {expected}, one beside each frame, got {got}")
        return self.decode_features(frames_BTCHW, F.embedding(actions_BT, self.codebook)).float().clamp(0, 1)

    def forward(self, frames_BTCHW: Tensor, labels_BT: Tensor | None = None) -> LatentActionOutput:
        """A training pass over clips: frames 1..T-1 reconstructed, latent actions, named losses.

        loss = reconstruction MSE + codebook MSE + 0.25 commitment MSE, as of the tokenizer (`VectorQuantizer.total_loss`).
        `labels_BT`: recorded actions, int64 (B, T-1), -1 where not known; action a is to have code a, and the loss
        `labels`, in no sum, says how far it has (`VectorQuantizer.forward`). Raises InputError for other actions.
        """
        self._check(frames_BTCHW)
        if labels_BT is not None and int(labels_BT.max()) >= self.cfg.lam.codes:
            raise InputError(f"labels: action {int(labels_BT.max())} has no code, lam.codes = {self.cfg.lam.codes}")
        features, _ = self.encode_features(frames_BTCHW, None)
        codes, actions, losses = self.quantizer(self.to_code(self.actions(features)), labels_BT)
        made = self.decode_features(frames_BTCHW[:, :-1], codes).float()
        weight = self.cfg.lam.changed_pixel_weight
        changed = changed_pixels(frames_BTCHW)
        losses["reconstruction"] = reconstruction_loss(made, frames_BTCHW[:, 1:], changed, weight)
        return LatentActionOutput(made, actions, {"loss": self.quantizer.total_loss(losses), **losses})

    def encode_features(self, frames_BTCHW: Tensor, past: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """What the encoder makes of frames that follow `past`, (B, T, h*w*D), and the past with them."""
        patches = to_patches(frames_BTCHW, self.cfg.lam.patch)
        x = first_and_later(patches, self.embed_first, self.embed_later, first=past is None)
        x, past = self.encoder(x, self.bias(), past=past)
        return x.flatten(2), past

    def actions(self, features_BTX: Tensor) -> Tensor:
        """What is between each frame and the next, unquantised, (B, T-1, D)."""
        later = features_BTX[:, 1:]
        return self.to_action(later - features_BTX[:, :-1] if self.cfg.lam.difference else later)

    def decode_features(self, frames_BTCHW: Tensor, codes_BTD: Tensor) -> Tensor:
        """What the decoder makes of frames and the codes beside them: the frames that follow, BTCHW and not clamped."""
        patches = to_patches(frames_BTCHW, self.cfg.lam.patch)
        x = first_and_later(patches, self.given_first, self.given_later, first=True)
        x, _ = self.decoder(x + self.from_code(codes_BTD)[:, :, None, None], self.bias())
        made = self.head(x)
        return to_frames(made + patches if self.cfg.lam.residual else made, self.cfg.lam.patch)

    def _check(self, frames_BTCHW: Tensor) -> None:
        self.cfg.check_frames(frames_BTCHW)
        if frames_BTCHW.shape[1] < 2:
            raise InputError("latent actions: expected clips of 2 frames or more, got 1: nothing acts in it")
