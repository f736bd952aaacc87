"""Training objectives: a model and its named losses on a batch, for every component."""

from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.data.batch import Batch, to_float_frames
from worldmodel.devices import full_precision
from worldmodel.metrics import frame_psnr
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, bicubic
from worldmodel.models.vq_autoencoder import AutoencoderOutput
from worldmodel.models.weights import encoder_sha256


class Objective(nn.Module):
    """Trained `model` and its losses."""

    needs: frozenset[str]
    """Fields of a batch that the losses need. Those in `encoders` may be missing: they are then
    computed from the frames."""

    def __init__(self, model: nn.Module, encoders: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model = model
        # A plain dictionary keeps these weights out of the objective's own parameters.
        self.encoders = encoders or {}
        """Field of a batch -> frozen model that computes it from frames."""
        for encoder in self.encoders.values():
            encoder.eval().requires_grad_(False)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Compute named scalars; "loss" is the one to minimise.

        `progress` is the completed share of the run, in [0, 1].
        """
        raise NotImplementedError

    def check(self, batch: Batch) -> None:
        """Raise InputError if values of a batch, which `forward` does not check, do not fit.

        Give it the batch before it is copied to a device.
        """

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by their names in `model`."""
        return {
            name: weight for name, weight in self.model.named_parameters() if weight.requires_grad
        }

    def metrics(self) -> dict[str, float]:
        """Return metrics of the model, which are logged with the losses."""
        return {}

    def fingerprint(self) -> dict[str, str]:
        """Return hashes of the frozen models, which must be the same when a run resumes."""
        return {
            f"{encoder.component}_sha256": encoder_sha256(encoder)
            for encoder in self.encoders.values()
        }

    def encode(self, name: str, batch: Batch, stored: Tensor | None) -> Tensor:
        """Return a field of a batch as `stored`, or computed by its frozen encoder.

        The encoder runs without autocast, as in `cache_tokens`.
        """
        if stored is not None:
            return stored
        with torch.no_grad(), full_precision(batch.frames_BTHWC):
            return self.encoders[name].encode_checked(to_float_frames(batch.frames_BTHWC))


class TokenizerObjective(Objective):
    """Reconstruction and codebook losses of a tokenizer."""

    needs = frozenset({"frames"})
    model: Tokenizer

    def __init__(self, tokenizer: Tokenizer, *, decoder_only: bool = False) -> None:
        """Freeze all but the decoder if `decoder_only`, so that token ids stay the same."""
        super().__init__(tokenizer)
        if decoder_only:
            tokenizer.freeze_encoder()

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        frames_BTCHW = to_float_frames(batch.frames_BTHWC)
        self.model.set_progress(progress)
        output = self.model(frames_BTCHW, checked=True)
        return {**output.losses, "psnr": mean_psnr(output.frames, frames_BTCHW)}

    def metrics(self) -> dict[str, float]:
        return self.model.quantizer.usage()


class LatentActionObjective(Objective):
    """Prediction and codebook losses of a latent action model."""

    needs = frozenset({"frames", "actions"})
    model: LatentActionModel

    def __init__(self, lam: LatentActionModel, *, label_fraction: float = 0.0) -> None:
        """`label_fraction` is the share of labelled episodes, see `lam_loss`."""
        super().__init__(lam)
        self.label_fraction = label_fraction

    def check(self, batch: Batch) -> None:
        if self.label_fraction:
            self.model.check_labels(batch.actions_BT)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        frames_BTCHW = to_float_frames(batch.frames_BTHWC)
        self.model.set_progress(progress)
        output = lam_loss(self.model, frames_BTCHW, batch.actions_BT, self.label_fraction)
        # The first frame is given, not predicted.
        return {**output.losses, "psnr": mean_psnr(output.frames, frames_BTCHW[:, 1:])}

    def metrics(self) -> dict[str, float]:
        return self.model.quantizer.usage()


@torch.no_grad()
def mean_psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the mean PSNR in dB of frames (..., C, H, W) after clamping them to [0, 1]."""
    return frame_psnr(predicted.clamp(0, 1), target).mean()


def lam_loss(
    lam: LatentActionModel, frames_BTCHW: Tensor, actions_BT: Tensor, label_fraction: float
) -> AutoencoderOutput:
    """Run a latent action model on clips, with a label loss if `label_fraction` > 0.

    In training, `loss` includes the label loss, which is divided by the share of labelled samples
    (1 + label_fraction) / 2 that `LabelledSampler` draws: its expectation is the mean over labelled
    samples, whatever a batch or a worker draws. In validation all clips are labelled and the label
    loss is logged only, so that `loss` compares with that of a run without labels.
    """
    if not label_fraction:
        return lam(frames_BTCHW, checked=True)
    output = lam(frames_BTCHW, actions_BT, checked=True)
    if lam.training:
        output.losses["labels"] = output.losses["labels"] * 2 / (1 + label_fraction)
        output.losses["loss"] = output.losses["loss"] + output.losses["labels"]
    return output


class DynamicsObjective(Objective):
    """Token distance cross-entropy of the dynamics model on the tokens of a frozen tokenizer.

    The dynamics is conditioned on recorded actions, or on those that a frozen latent action model
    infers. Tokens and latent actions are read from the batch, or encoded here.
    """

    model: Dynamics

    def __init__(
        self, dynamics: Dynamics, tokenizer: Tokenizer, lam: LatentActionModel | None = None
    ) -> None:
        encoders: dict[str, Any] = {"tokens": tokenizer}
        if lam is not None:
            encoders["latent_actions"] = lam
        super().__init__(dynamics, encoders)
        self.needs = frozenset({"tokens", "actions" if lam is None else "latent_actions"})

    def check(self, batch: Batch) -> None:
        cfg, tokens_BThw = self.model.cfg, batch.tokens_BThw
        actions_BT = batch.latent_actions_BT if "latent_actions" in self.needs else batch.actions_BT
        if tokens_BThw is not None:
            cfg.check_tokens(tokens_BThw)
        if actions_BT is not None:
            cfg.check_actions(actions_BT, len(actions_BT), actions_BT.shape[1])

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        return self.model.loss(self.tokens(batch), self.actions(batch), checked=True)

    def tokens(self, batch: Batch) -> Tensor:
        """Return tokens_BThw of a batch."""
        return self.encode("tokens", batch, batch.tokens_BThw)

    def actions(self, batch: Batch) -> Tensor:
        """Return the actions that the dynamics is conditioned on, int64 (B, T - 1)."""
        if "latent_actions" not in self.encoders:
            return batch.actions_BT
        return self.encode("latent_actions", batch, batch.latent_actions_BT)


class UpscalerObjective(Objective):
    """Mean squared error of upscaled frames; their PSNR and that of bicubic interpolation."""

    needs = frozenset({"small_frames", "large_frames"})
    model: Upscaler

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        # Convolutions are fastest with the channels last in memory.
        layout = torch.channels_last
        small_BCHW = to_float_frames(batch.small_frames_BhwC).contiguous(memory_format=layout)
        large_BCHW = to_float_frames(batch.large_frames_BHWC).contiguous(memory_format=layout)
        upscaled_BCHW = self.model(small_BCHW).float()
        return {
            "loss": nn.functional.mse_loss(upscaled_BCHW, large_BCHW),
            "psnr": mean_psnr(upscaled_BCHW, large_BCHW),
            "psnr_bicubic": mean_psnr(bicubic(small_BCHW, self.model.cfg.factor), large_BCHW),
        }


class DynamicsWithLam(nn.Module):
    """Model of a joint run, whose weights are named `dynamics.*` and `lam.*`."""

    def __init__(self, dynamics: Dynamics, lam: LatentActionModel) -> None:
        super().__init__()
        self.dynamics, self.lam = dynamics, lam


class JointObjective(Objective):
    """Joint training as in Genie: the loss of the dynamics on the actions that the LAM infers, plus
    the LAM's loss.

    The dynamics is conditioned on the one-hot id of an action, through which no gradient flows, as
    in Genie. Training then agrees with playing, where a player chooses ids, and the codes are
    trained only to predict the pixels of the next frame from the past. A gradient from masked
    tokens would reward codes for telling which tokens were masked.
    """

    needs = frozenset({"frames", "tokens", "actions"})
    model: DynamicsWithLam

    def __init__(
        self,
        dynamics: Dynamics,
        tokenizer: Tokenizer,
        lam: LatentActionModel,
        *,
        label_fraction: float = 0.0,
    ) -> None:
        super().__init__(DynamicsWithLam(dynamics, lam), {"tokens": tokenizer})
        self.label_fraction = label_fraction

    def check(self, batch: Batch) -> None:
        if batch.tokens_BThw is not None:
            self.model.dynamics.cfg.check_tokens(batch.tokens_BThw)
        if self.label_fraction:
            self.model.lam.check_labels(batch.actions_BT)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        self.model.lam.set_progress(progress)
        frames_BTCHW = to_float_frames(batch.frames_BTHWC)
        output = lam_loss(self.model.lam, frames_BTCHW, batch.actions_BT, self.label_fraction)
        tokens_BThw = self.encode("tokens", batch, batch.tokens_BThw)
        losses = self.model.dynamics.loss(tokens_BThw, output.ids, checked=True)
        lam_losses = {f"lam_{name}": value for name, value in output.losses.items()}
        total = losses["loss"] + output.losses["loss"]
        return {**losses, **lam_losses, "dynamics_loss": losses["loss"], "loss": total}

    def metrics(self) -> dict[str, float]:
        return {f"lam_{name}": value for name, value in self.model.lam.quantizer.usage().items()}
