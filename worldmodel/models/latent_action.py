"""Latent action model: one of a few actions between each frame and the next (Table 9).

It needs no recorded actions. The encoder sees frames 0..t+1 and chooses one of K codes; the decoder
predicts frame t+1 from frames 0..t and that code. So the code represents what earlier frames do not
determine: the player's action, and everything else that moves. The recorded actions of a few clips
(`TrainConfig.label_fraction`) separate the two.

Shapes: B clips, T frames, C=3, H=W pixels, h=w patches, D width, K latent actions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig
from worldmodel.models.transformer import KVCache
from worldmodel.models.vq_autoencoder import (
    AutoencoderOutput,
    VQAutoencoder,
    changed_pixels,
    first_and_later,
)


class LatentActionModel(VQAutoencoder):
    """VQ-VAE whose codes are latent actions: the action at frame t leads to frame t+1.

    All features of a frame are flattened and projected to the width D, then to a code of the cosine
    codebook. The decoder adds the code of action t to every patch of frame t and predicts frame t+1
    in its place.
    """

    component = "lam"
    decoder_parts = ("from_code", "given_first", "given_later", "decoder", "head")
    given_first: nn.Module
    given_later: nn.Module

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__(cfg, ("embed_first", "embed_later", "given_first", "given_later"))
        c, grid = cfg.lam, cfg.size // cfg.lam.patch
        # Without biases: a bias shared by all frames would draw all of them to the same code.
        self.to_action = nn.Linear(grid**2 * c.dim, c.dim, bias=False)
        self.to_code = nn.Linear(c.dim, c.code_dim, bias=False)
        self._build_decoder()
        self.head = nn.Linear(c.dim, self.patch_pixels)
        # The first prediction is the previous frame, or grey; the network learns differences.
        nn.init.constant_(self.head.bias, 0.0 if c.residual else 0.5)
        if c.residual:
            nn.init.zeros_(self.head.weight)

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Infer the latent action between each frame in [0, 1] and the next, int64 (B, T-1).

        Clips longer than cfg.frames pass through a sliding window. Raises InputError for another
        shape, type or range, and for a single frame.
        """
        self._check(frames_BTCHW)
        return self.encode_checked(frames_BTCHW)

    def encode_checked(self, frames_BTCHW: Tensor) -> Tensor:
        """Encode frames without `encode`'s check, which waits for the device."""
        length = self.pass_length(frames_BTCHW.shape[1])
        features = []
        cache: KVCache | None = None
        for frames in frames_BTCHW.split(length, 1):
            encoded, cache = self.encode_features(frames, cache)
            features.append(encoded)
            cache = cache.last_frames(self.cfg.frames - length)
        return self.quantizer.ids(self.to_code(self.actions(torch.cat(features, 1))))

    def forward(
        self, frames_BTCHW: Tensor, labels_BT: Tensor | None = None, *, checked: bool = False
    ) -> AutoencoderOutput:
        """Run a training pass over clips; see `Tokenizer.forward` for the loss and for `checked`.

        `labels_BT` are recorded actions, int64 (B, T-1), -1 if unknown. The loss `labels`, which is
        not part of `loss`, trains code a to stand for action a (`VectorQuantizer.forward`). Raises
        InputError for an action without a code.
        """
        self._check(frames_BTCHW, values=not checked)
        if labels_BT is not None and not checked:
            self.check_labels(labels_BT)
        # Infer the actions, then predict each next frame from them.
        features, _ = self.encode_features(frames_BTCHW, keep_cache=False)
        codes, actions, losses = self.quantizer(self.to_code(self.actions(features)), labels_BT)
        predicted = self.decode_features(frames_BTCHW[:, :-1], codes).float()
        changed = changed_pixels(frames_BTCHW)
        losses = self.add_losses(losses, predicted, frames_BTCHW[:, 1:], changed)
        return AutoencoderOutput(predicted, actions, losses)

    @torch.no_grad()
    def predict_next(self, frames_BTCHW: Tensor) -> Tensor:
        """Predict each frame from those before it and the inferred action, (B, T-1, 3, H, W).

        Values are clamped to [0, 1]. Each frame is predicted from at most cfg.frames others. Raises
        InputError as `encode`.
        """
        codes = F.embedding(self.encode(frames_BTCHW), self.codebook)
        last, window = codes.shape[1], self.cfg.frames
        done, end, predicted = 0, min(window, codes.shape[1]), []
        while done < last:
            begin = max(0, end - window)
            decoded = self.decode_features(frames_BTCHW[:, begin:end], codes[:, begin:end])
            predicted.append(decoded[:, done - begin :].float().clamp(0, 1))
            done, end = end, min(end + window // 2, last)
        return torch.cat(predicted, 1)

    def encode_features(
        self, frames_BTCHW: Tensor, cache: KVCache | None = None, keep_cache: bool = True
    ) -> tuple[Tensor, KVCache]:
        """Encode frames that follow the cached ones -> (features (B, T, h*w*D), new cache)."""
        x, new_cache = self.embed_and_encode(frames_BTCHW, cache, keep_cache)
        return x.flatten(2), new_cache

    def actions(self, features_BTX: Tensor) -> Tensor:
        """Project features to the actions between frames, before quantisation, (B, T-1, D)."""
        later = features_BTX[:, 1:]
        return self.to_action(later - features_BTX[:, :-1] if self.cfg.lam.difference else later)

    def decode_features(self, frames_BTCHW: Tensor, codes_BTD: Tensor) -> Tensor:
        """Predict the frame after each frame from the frames up to it and the codes, BTCHW."""
        patches = self.to_patches(frames_BTCHW)
        x = first_and_later(patches, self.given_first, self.given_later, first=True)
        encoded_BTD = self.from_code(codes_BTD.to(patches.dtype))
        x, _ = self.decoder(x + encoded_BTD[:, :, None, None], self.bias(), keep_cache=False)
        predicted = self.head(x)
        return self.to_frames(predicted + patches if self.cfg.lam.residual else predicted)

    def check_labels(self, labels_BT: Tensor) -> None:
        """Raise InputError for a recorded action without a code."""
        largest, codes = int(labels_BT.max()), self.cfg.lam.codes
        if largest >= codes:
            raise InputError(f"labels: action {largest} has no code, lam.codes = {codes}")

    def _check(self, frames_BTCHW: Tensor, *, values: bool = True) -> None:
        self.cfg.check_frames(frames_BTCHW, values=values)
        if frames_BTCHW.shape[1] < 2:
            raise InputError(
                "latent actions: expected clips of 2 frames or more, got 1: it holds no action"
            )
