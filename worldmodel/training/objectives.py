"""What is optimised for each component: from a batch to named losses, through one interface for one training loop."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldmodel.data.batch import ClipBatch, LatentBatch, PairBatch, TokenBatch, TokenFrameBatch, to_float_frames
from worldmodel.metrics import frame_psnr
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel, LatentActionOutput
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, bicubic
from worldmodel.models.weights import encoder_sha256

Batch = ClipBatch | TokenBatch | PairBatch


class Objective(Protocol):
    """A module around the trained `model`. Calling it gives named scalars, "loss" among them, which is minimised."""

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]: ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names in `model`."""

    def metrics(self) -> dict[str, float]:
        """What else to log about the model as it is."""

    def fingerprint(self) -> dict[str, str]:
        """What must be the same when a run is resumed, and is neither in its settings nor among the trained weights."""

    def train(self, mode: bool = True) -> Any: ...


class FrameObjective(nn.Module):
    """An autoencoder's own losses on frames, and the PSNR of what it makes: tokenizer, or latent action model.

    `labels`: share of the training clips whose recorded actions a latent action model is shown, see `lam_loss`.
    """

    def __init__(self, model: Tokenizer | LatentActionModel, *, labels: float = 0.0) -> None:
        super().__init__()
        self.model, self.labels = model, labels

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """`progress`: share of the run that is done, in [0, 1]."""
        assert isinstance(batch, ClipBatch)
        frames_BTCHW = to_float_frames(batch.frames_BTHWC)
        self.model.set_progress(progress)
        if isinstance(self.model, LatentActionModel):
            output = lam_loss(self.model, frames_BTCHW, batch.actions_BT, self.labels)
        else:
            output = self.model(frames_BTCHW)
        with torch.no_grad():
            made = output.frames.clamp(0, 1)
            quality = frame_psnr(made, frames_BTCHW[:, -made.shape[1] :]).mean()  # a LAM makes no first frame
        return {**output.losses, "psnr": quality}

    def metrics(self) -> dict[str, float]:
        return self.model.quantizer.usage()

    def fingerprint(self) -> dict[str, str]:
        return {}


def lam_loss(lam: LatentActionModel, frames_BTCHW: Tensor, actions_BT: Tensor, labels: float) -> LatentActionOutput:
    """What a latent action model makes of clips. With `labels` > 0 the recorded actions that are not hidden count too.

    In training the label loss is its sum over the share of the draws that is labelled (`LabelledSampler`): on average
    its mean over these, whatever a batch or a worker draws, and it is part of `loss`. In validation all clips are
    labelled and it is only told: `loss` is of the frames alone, as it is without labels.
    """
    if not labels:
        return lam(frames_BTCHW)
    output = lam(frames_BTCHW, actions_BT)
    if lam.training:
        output.losses["labels"] = output.losses["labels"] * 2 / (1 + labels)
        output.losses["loss"] = output.losses["loss"] + output.losses["labels"]
    return output


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

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """`progress`: share of the run that is done, in [0, 1]."""
        assert not isinstance(batch, PairBatch)
        return self.model.loss(self.tokens(batch), batch.actions_BT, generator=None, progress=progress)

    def metrics(self) -> dict[str, float]:
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
            return self.tokenizer.encode(to_float_frames(batch.frames_BTHWC))


class UpscalerObjective(nn.Module):
    """The mean squared error of enlarged frames, and their PSNR beside that of bicubic interpolation."""

    def __init__(self, upscaler: Upscaler) -> None:
        super().__init__()
        self.model = upscaler

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """`progress` changes nothing here."""
        assert isinstance(batch, PairBatch)
        small_BCHW, large_BCHW = to_float_frames(batch.small_BhwC), to_float_frames(batch.large_BHWC)
        made_BCHW = self.model(small_BCHW).float()
        with torch.no_grad():
            quality = frame_psnr(made_BCHW.clamp(0, 1), large_BCHW).mean()
            plain = frame_psnr(bicubic(small_BCHW, self.model.cfg.factor), large_BCHW).mean()
        return {"loss": nn.functional.mse_loss(made_BCHW, large_BCHW), "psnr": quality, "psnr_bicubic": plain}

    def metrics(self) -> dict[str, float]:
        return {}

    def fingerprint(self) -> dict[str, str]:
        return {}


class LatentDynamicsObjective(DynamicsObjective):
    """The same on the actions that a frozen latent action model reads from the frames, here or stored as tokens are;
    recorded ones are not used."""

    def __init__(self, dynamics: Dynamics, tokenizer: Tokenizer, lam: LatentActionModel) -> None:
        super().__init__(dynamics, tokenizer)
        self._lam = (lam.eval().requires_grad_(False),)  # in a tuple, as the tokenizer

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """`progress`: share of the run that is done, in [0, 1]."""
        assert isinstance(batch, ClipBatch | LatentBatch)
        return self.model.loss(self.tokens(batch), self.latents(batch), generator=None, progress=progress)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "lam_sha256": encoder_sha256(self.lam)}

    @property
    def lam(self) -> LatentActionModel:
        """The frozen latent action model."""
        return self._lam[0]

    def latents(self, batch: ClipBatch | LatentBatch) -> Tensor:
        """latents_BT of a batch, int64 (B, T - 1), read without autocast, as in `cache_tokens`."""
        if isinstance(batch, LatentBatch):
            return batch.latents_BT
        with torch.no_grad(), torch.autocast(batch.frames_BTHWC.device.type, enabled=False):
            return self.lam.encode(to_float_frames(batch.frames_BTHWC))


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

    def __init__(
        self, dynamics: Dynamics, tokenizer: Tokenizer, lam: LatentActionModel, *, labels: float = 0.0
    ) -> None:
        super().__init__()
        self.labels = labels
        self.model = DynamicsWithLam(dynamics, lam)
        self._frozen = (DynamicsObjective(dynamics, tokenizer),)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """`loss` is the sum; the parts are called `dynamics_loss` and `lam_loss`. `progress`: in [0, 1]."""
        assert isinstance(batch, ClipBatch | TokenFrameBatch)
        self.model.lam.set_progress(progress)
        output = lam_loss(self.model.lam, to_float_frames(batch.frames_BTHWC), batch.actions_BT, self.labels)
        losses = self.model.dynamics.loss(self._frozen[0].tokens(batch), output.actions, progress=progress)
        own = {f"lam_{name}": value for name, value in output.losses.items()}
        return {**losses, **own, "dynamics_loss": losses["loss"], "loss": losses["loss"] + output.losses["loss"]}

    def metrics(self) -> dict[str, float]:
        return {f"lam_{name}": value for name, value in self.model.lam.quantizer.usage().items()}

    def fingerprint(self) -> dict[str, str]:
        return self._frozen[0].fingerprint()

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self._frozen[0].tokenizer
