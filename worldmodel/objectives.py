"""What is optimised for each component: from a batch to named losses, through one interface for one training loop."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldmodel.checkpoint import encoder_sha256
from worldmodel.clips import ClipBatch, model_frames
from worldmodel.dynamics import Dynamics
from worldmodel.latent_action import LatentActionModel
from worldmodel.metrics import frame_psnr
from worldmodel.token_cache import TokenBatch
from worldmodel.tokenizer import Tokenizer


class Objective(Protocol):
    """A module around the trained `model`. Calling it gives named scalars, "loss" among them, which is minimised."""

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, batch: ClipBatch | TokenBatch, progress: float) -> dict[str, Tensor]: ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names in `model`."""

    def figures(self) -> dict[str, float]:
        """What else to log about the model as it is."""

    def fingerprint(self) -> dict[str, str]:
        """What must be the same when a run is resumed, and is neither in its settings nor among the trained weights."""

    def train(self, mode: bool = True) -> Any: ...


class FrameObjective(nn.Module):
    """An autoencoder's own losses on frames, and the PSNR of what it makes: tokenizer, or latent action model."""

    def __init__(self, model: Tokenizer | LatentActionModel) -> None:
        super().__init__()
        self.model = model

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def forward(self, batch: ClipBatch | TokenBatch, progress: float) -> dict[str, Tensor]:
        """`progress`: share of the run that is done, in [0, 1]."""
        assert isinstance(batch, ClipBatch)
        frames_BTCHW = model_frames(batch.frames_BTHWC)
        self.model.set_progress(progress)
        output = self.model(frames_BTCHW)
        with torch.no_grad():
            made = output.frames.clamp(0, 1)
            quality = frame_psnr(made, frames_BTCHW[:, -made.shape[1] :]).mean()  # a LAM makes no first frame
        return {**output.losses, "psnr": quality}

    def figures(self) -> dict[str, float]:
        return self.model.quantizer.usage()

    def fingerprint(self) -> dict[str, str]:
        return {}


class TokenizerObjective(FrameObjective):
    """A tokenizer's. With `decoder_only` token ids stay as they are."""

    def __init__(self, tokenizer: Tokenizer, *, decoder_only: bool = False) -> None:
        super().__init__(tokenizer)
        if decoder_only:
            tokenizer.freeze_encoder()


class DynamicsObjective(nn.Module):
    """The dynamics model's losses on tokens: stored ones, or those of frames that the frozen tokenizer encodes here."""

    def __init__(self, dynamics: Dynamics, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = dynamics
        # In a tuple, so that the tokenizer's weights are not taken for the dynamics model's.
        self._tokenizer = (tokenizer.eval().requires_grad_(False),)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def forward(self, batch: ClipBatch | TokenBatch, progress: float) -> dict[str, Tensor]:
        """`progress`: share of the run that is done, in [0, 1]."""
        return self.model.loss(self.tokens(batch), batch.actions_BT, generator=None, progress=progress)

    def figures(self) -> dict[str, float]:
        return {}

    def fingerprint(self) -> dict[str, str]:
        return {"tokenizer_sha256": encoder_sha256(self.tokenizer)}

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self._tokenizer[0]

    def tokens(self, batch: ClipBatch | TokenBatch) -> Tensor:
        """tokens_BThw of a batch. Encoding runs without autocast, as in `cache_tokens`, so that both give the same."""
        if isinstance(batch, TokenBatch):
            return batch.tokens_BThw
        with torch.no_grad(), torch.autocast(batch.frames_BTHWC.device.type, enabled=False):
            return self.tokenizer.encode(model_frames(batch.frames_BTHWC))


class LatentDynamicsObjective(DynamicsObjective):
    """The same on the actions that a frozen latent action model reads from the frames; recorded ones are not used."""

    def __init__(self, dynamics: Dynamics, tokenizer: Tokenizer, lam: LatentActionModel) -> None:
        super().__init__(dynamics, tokenizer)
        self._lam = (lam.eval().requires_grad_(False),)  # in a tuple, as the tokenizer

    def forward(self, batch: ClipBatch | TokenBatch, progress: float) -> dict[str, Tensor]:
        """`progress`: share of the run that is done, in [0, 1]."""
        assert isinstance(batch, ClipBatch)
        with torch.no_grad(), torch.autocast(batch.frames_BTHWC.device.type, enabled=False):
            actions_BT = self._lam[0].encode(model_frames(batch.frames_BTHWC))
        return self.model.loss(self.tokens(batch), actions_BT, generator=None, progress=progress)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "lam_sha256": encoder_sha256(self._lam[0])}


class DynamicsWithLam(nn.Module):
    """What a joint run trains and saves: weights are called `dynamics.*` and `lam.*`."""

    def __init__(self, dynamics: Dynamics, lam: LatentActionModel) -> None:
        super().__init__()
        self.dynamics, self.lam = dynamics, lam


class JointObjective(nn.Module):
    """Genie's: in each step the loss of the dynamics, on the actions that the model reads now, plus that model's own.

    The dynamics is conditioned on the one-hot of an action's id, through which no gradient flows (Genie stops it there
    too): a person will choose ids, so what is trained is what is played; and the code learns from making pixels of the
    next frame out of nothing but the past and the code. A gradient from masked tokens would reward codes for telling
    which tokens were masked, and moves while those tokens are given.
    """

    def __init__(self, dynamics: Dynamics, tokenizer: Tokenizer, lam: LatentActionModel) -> None:
        super().__init__()
        self.model = DynamicsWithLam(dynamics, lam)
        self._frozen = (DynamicsObjective(dynamics, tokenizer),)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def forward(self, batch: ClipBatch | TokenBatch, progress: float) -> dict[str, Tensor]:
        """`loss` is the sum; the parts are called `dynamics_loss` and `lam_loss`. `progress`: in [0, 1]."""
        assert isinstance(batch, ClipBatch)
        self.model.lam.set_progress(progress)
        output = self.model.lam(model_frames(batch.frames_BTHWC))
        losses = self.model.dynamics.loss(self._frozen[0].tokens(batch), output.actions, progress=progress)
        own = {f"lam_{name}": value for name, value in output.losses.items()}
        return {**losses, **own, "dynamics_loss": losses["loss"], "loss": losses["loss"] + output.losses["loss"]}

    def figures(self) -> dict[str, float]:
        return {f"lam_{name}": value for name, value in self.model.lam.quantizer.usage().items()}

    def fingerprint(self) -> dict[str, str]:
        return self._frozen[0].fingerprint()
