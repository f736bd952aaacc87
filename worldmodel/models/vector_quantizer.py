"""Cosine vector quantiser: features and codes on the unit sphere, dead codes re-seeded, usage
measured.

The published code normalises its codebook once, at the start, and lets codes die; with a codebook
learnt by gradient six of 1,024 were left at small size. Here every unused code is moved to a
feature that is badly represented.

Shapes: M features, K codes, D width of a code; `...` any leading dimensions.
"""

import math

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from worldmodel.config import MASKED_ACTION, AutoencoderConfig
from worldmodel.sharded_tensors import full_tensor, shard_like

LABEL_TEMPERATURE = 0.1
"""Temperature of the cosines as logits of labelled codes."""


class VectorQuantizer(nn.Module):
    """Nearest code by cosine, with straight-through gradients. All of its state is in its
    `state_dict`.

    codebook = "gradient": rows are a parameter, learnt by the codebook MSE (the paper). "ema": rows
    are the normalised moving average of the features they stand for, and the codebook MSE is not
    needed.
    """

    rows: Tensor
    use_K: Tensor
    sums_KD: Tensor
    progress: Tensor

    def __init__(self, cfg: AutoencoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        rows = F.normalize(torch.randn(cfg.codes, cfg.code_dim), dim=-1)
        if cfg.codebook == "gradient":
            self.rows = nn.Parameter(rows)
        else:
            self.register_buffer("rows", rows)
            self.register_buffer("sums_KD", rows / cfg.codes)
        # Share of the features that each code stands for, as a moving average: sums to 1.
        self.register_buffer("use_K", torch.full((cfg.codes,), 1 / cfg.codes))
        self.register_buffer("progress", torch.zeros(()))
        self.learns = True
        """True while training moves the codes; off while the decoder alone is trained."""
        self._moves: list[tuple[Tensor, Tensor]] = []
        """Re-seedings of a learnt codebook that wait for `reseed_dead_codes`: (codes, their new
        rows)."""

    @property
    def codebook(self) -> Tensor:
        """Codes, (K, D), rows of length 1."""
        return F.normalize(self.rows.float(), dim=-1)

    @property
    def active(self) -> bool:
        """True where features are quantised at this point of the run."""
        return (
            not (self.training and self.learns) or float(self.progress) >= self.cfg.quantizer_start
        )

    def ids(self, features: Tensor) -> Tensor:
        """Find the nearest code. (..., D) -> int64 (...)."""
        return nearest_code(
            F.normalize(features.float(), dim=-1).flatten(0, -2), self.codebook
        ).view(features.shape[:-1])

    def forward(
        self, features: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Quantise (..., D) -> (unit vectors of the same shape, ids (...), losses `codebook`,
        `commitment`).

        In training it also learns: moving averages are updated, and dead codes re-seeded with the
        global random state, those of a learnt codebook by `reseed_dead_codes`.

        `labels` (...): the code that each feature is to have, -1 where that is not known. Then
        there is the loss `labels` too, the cross-entropy of the codes by cosine over
        `LABEL_TEMPERATURE`, 0 where there is no label and averaged over all. Then no code is
        re-seeded or follows a moving average: features move to codes, not codes to features.
        """
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=-1)
            flat = unit.detach().flatten(0, -2)
            ids = nearest_code(flat, self.codebook.detach())
            losses: dict[str, Tensor] = {}
            if labels is not None:
                losses["labels"] = self._label_loss(unit, labels)
            if self.training and self.learns:
                self._learn(flat, ids, labelled=labels is not None)
            codes = F.embedding(ids, self.codebook).view_as(unit)
            losses["commitment"] = F.mse_loss(unit, codes.detach())
            if isinstance(self.rows, nn.Parameter):
                losses["codebook"] = F.mse_loss(codes, unit.detach())
            quantised = unit + (codes - unit).detach() if self.active else unit
        return quantised, ids.view(features.shape[:-1]), losses

    def total_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """Add up reconstruction, codebook (where codes are learnt by it) and commitment (once
        features are quantised).
        """
        loss = losses["reconstruction"]
        if self.active:
            loss = loss + self.cfg.commitment * losses["commitment"]
        return loss + losses["codebook"] if "codebook" in losses else loss

    def usage(self) -> dict[str, float]:
        """Measure `perplexity` of the code use, `codes_used` and `share_used`: codes above 1/100 of
        the share 1/K.
        """
        shares = (self.use_K / self.use_K.sum()).double()
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum().item()
        used = int((shares > 0.01 / len(shares)).sum().item())
        return {
            "perplexity": math.exp(entropy),
            "codes_used": used,
            "share_used": used / len(shares),
        }

    @torch.no_grad()
    def reseed_dead_codes(self) -> None:
        """Move the codes of a learnt codebook that were re-seeded since the last call. Call it
        after optimizer steps.

        Not in the forward pass: there a rank that holds a shard of the codebook sees only a copy of
        the whole. All ranks must call. What the optimizer made of these rows is overwritten.
        """
        for codes, seeds in self._moves:
            rows = full_tensor(self.rows.detach()).clone()
            rows[codes] = seeds
            self.rows.copy_(shard_like(rows, self.rows))
        self._moves.clear()

    def _label_loss(self, unit: Tensor, labels: Tensor) -> Tensor:
        logits = unit.flatten(0, -2) @ self.codebook.T / LABEL_TEMPERATURE
        total = F.cross_entropy(
            logits, labels.flatten(), ignore_index=MASKED_ACTION, reduction="sum"
        )
        return total / labels.numel()

    @torch.no_grad()
    def _learn(self, flat_MD: Tensor, ids_M: Tensor, *, labelled: bool) -> None:
        counts, sums = self._batch_sums(flat_MD, ids_M)
        weight = 1 - self.cfg.ema_decay
        total = counts.sum()
        self.use_K.lerp_(counts / total, weight)
        if labelled:
            # Features are all alike at first: codes that followed them would be too, and no loss
            # could separate them.
            return
        if self.cfg.codebook == "ema":
            self.sums_KD.lerp_(sums / total, weight)
            self.rows.copy_(F.normalize(self.sums_KD, dim=-1))
        if self.cfg.reseed_below and float(self.progress) < self.cfg.reseed_until:
            self._reseed(flat_MD, ids_M)

    def _batch_sums(self, flat_MD: Tensor, ids_M: Tensor) -> tuple[Tensor, Tensor]:
        """Count the features of each code in this batch, (K,), and sum them, (K, D), over all
        workers.
        """
        packed = flat_MD.new_zeros(len(self.use_K), flat_MD.shape[1] + 1)
        packed.index_add_(0, ids_M, F.pad(flat_MD, (0, 1), value=1.0))
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(packed)
        return packed[:, -1], packed[:, :-1]

    def _reseed(self, flat_MD: Tensor, ids_M: Tensor) -> None:
        """Move dead codes to features of the batch, drawn by how badly they are represented (as
        k-means++ does).
        """
        dead = (self.use_K < self.cfg.reseed_below / len(self.use_K)).nonzero().flatten()
        if not len(dead):
            return
        distance_M = (1 - (flat_MD * self.codebook[ids_M]).sum(-1)).clamp_min(0)
        distance_M = distance_M.masked_fill(distance_M < self.cfg.reseed_error, 0)
        count = min(len(dead), int((distance_M > 0).sum()))
        seeds = flat_MD.new_zeros(len(dead), flat_MD.shape[1] + 1)
        if count:
            drawn = torch.multinomial(distance_M, count)
            seeds[:count] = F.pad(flat_MD[drawn], (0, 1), value=1.0)
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(seeds, 0)
        dead, seeds = dead[seeds[:, -1] > 0], seeds[seeds[:, -1] > 0, :-1]
        # A new code starts with the mean use, so that it has time to find its features before it is
        # judged again.
        start = 1 / len(self.use_K)
        self.use_K[dead] = start
        if self.cfg.codebook == "ema":
            self.rows[dead], self.sums_KD[dead] = seeds, seeds * start
        else:
            self._moves.append((dead, seeds))


def nearest_code(unit_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Find the code with the largest dot product for each feature, in chunks: M x K products need
    not fit at once.
    """
    # max is twice as fast as argmax on a CPU.
    return torch.cat([(part @ codebook_KD.T).max(-1).indices for part in unit_MD.split(16_384)])
