"""What is optimised for a dynamics model on latent actions, which a frozen model reads or one that is trained too."""

import torch
from torch import Tensor, nn

from worldmodel.checkpoint import encoder_sha256
from worldmodel.clips import ClipBatch, model_frames
from worldmodel.dynamics import Dynamics
from worldmodel.latent_action import LatentActionModel
from worldmodel.objectives import Batch, DynamicsObjective, lam_pass
from worldmodel.token_cache import LatentBatch, TokenFrameBatch
from worldmodel.tokenizer import Tokenizer


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
            return self.lam.encode(model_frames(batch.frames_BTHWC))


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
        output = lam_pass(self.model.lam, model_frames(batch.frames_BTHWC), batch.actions_BT, self.labels)
        losses = self.model.dynamics.loss(self._frozen[0].tokens(batch), output.actions, progress=progress)
        own = {f"lam_{name}": value for name, value in output.losses.items()}
        return {**losses, **own, "dynamics_loss": losses["loss"], "loss": losses["loss"] + output.losses["loss"]}

    def figures(self) -> dict[str, float]:
        return {f"lam_{name}": value for name, value in self.model.lam.quantizer.usage().items()}

    def fingerprint(self) -> dict[str, str]:
        return self._frozen[0].fingerprint()

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self._frozen[0].tokenizer
