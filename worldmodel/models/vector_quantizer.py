"""Cosine vector quantiser: features and codes on the unit sphere, with dead codes re-seeded.

The published code normalises its codebook only at the start and lets codes die: at small size, six
of 1,024 codes learnt by gradient were left. Here unused codes move to badly represented features.

Shapes: M features, K codes, D width of a code; `...` any leading dimensions.
"""

import math

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from worldmodel.config import MASKED_ACTION, AutoencoderConfig
from worldmodel.devices import float64, full_precision
from worldmodel.sharded_tensors import full_tensor, shard_like

LABEL_TEMPERATURE = 0.1
"""Temperature of the cosines as logits of labelled codes."""


class VectorQuantizer(nn.Module):
    """Nearest code by cosine, with straight-through gradients.

    codebook = "gradient": rows are a parameter, learnt by the codebook MSE (the paper). "ema": rows
    are normalised moving averages of the features assigned to them.
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
        # Share of the features assigned to each code, as a moving average; sums to 1.
        self.register_buffer("use_K", torch.full((cfg.codes,), 1 / cfg.codes))
        self.register_buffer("progress", torch.zeros(()))
        self.learns = True
        """True while training moves the codes; false in decoder-only fine-tuning."""
        self._finished: float | None = None
        """Value of `progress` that was set last. Reading the buffer would wait for the device."""
        self._moves: list[tuple[Tensor, Tensor]] = []
        """Codes of a learnt codebook, and their new rows, for the next `reseed_dead_codes`."""

    @property
    def codebook(self) -> Tensor:
        """Codes, (K, D), rows of length 1."""
        return F.normalize(self.rows.float(), dim=-1)

    def set_progress(self, fraction_of_run: float) -> None:
        """Set the finished fraction of the training run, in [0, 1]."""
        self.progress.fill_(fraction_of_run)
        self._finished = fraction_of_run

    @property
    def _fraction_of_run(self) -> float:
        return float(self.progress) if self._finished is None else self._finished

    @property
    def active(self) -> bool:
        """True if features are quantised at this point of the run."""
        learning = self.training and self.learns
        return not learning or self._fraction_of_run >= self.cfg.quantizer_start

    def ids(self, features: Tensor) -> Tensor:
        """Return the id of the nearest code, (..., D) -> int64 (...)."""
        with full_precision(features):
            unit_MD = F.normalize(features.float(), dim=-1).flatten(0, -2)
            return nearest_code(unit_MD, self.codebook).view(features.shape[:-1])

    def forward(
        self, features: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Quantise (..., D) -> (unit vectors of the same shape, ids (...), named losses).

        The losses are `commitment` and, for a codebook learnt by gradient, `codebook`. In training,
        also updates the moving averages and re-seeds dead codes with the global random state; those
        of a codebook learnt by gradient move in `reseed_dead_codes`.

        `labels` (...) are the known codes of features, -1 if unknown. They add the loss `labels`:
        the cross-entropy over the codes, with cosine / `LABEL_TEMPERATURE` as logits, 0 for unknown
        labels and averaged over all features. With labels no code moves: features move to codes.
        """
        with full_precision(features):
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
        """Add up the losses: reconstruction, commitment once features are quantised, codebook."""
        loss = losses["reconstruction"]
        if self.active:
            loss = loss + self.cfg.commitment * losses["commitment"]
        return loss + losses["codebook"] if "codebook" in losses else loss

    def usage(self) -> dict[str, float]:
        """Return `perplexity` of the code use, `codes_used` and `share_used`.

        A code counts as used if its share is above 1/100 of the mean share 1/K.
        """
        shares = float64(self.use_K / self.use_K.sum())
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum().item()
        used = int((shares > 0.01 / len(shares)).sum().item())
        share_used = used / len(shares)
        return {"perplexity": math.exp(entropy), "codes_used": used, "share_used": share_used}

    @torch.no_grad()
    def reseed_dead_codes(self) -> None:
        """Move the dead codes of a codebook learnt by gradient; call it after optimizer steps.

        All ranks must call it. The forward pass cannot move them: under FSDP it sees a copy of the
        codebook. The optimizer's update of these rows is overwritten.
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
            # At first all features are alike. Codes that followed them would be too, and no loss
            # could separate them.
            return
        if self.cfg.codebook == "ema":
            self.sums_KD.lerp_(sums / total, weight)
            self.rows.copy_(F.normalize(self.sums_KD, dim=-1))
        if self.cfg.reseed_below and self._fraction_of_run < self.cfg.reseed_until:
            self._reseed(flat_MD, ids_M)

    def _batch_sums(self, flat_MD: Tensor, ids_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number (K,) and the sum (K, D) of each code's features over all workers."""
        packed = flat_MD.new_zeros(len(self.use_K), flat_MD.shape[1] + 1)
        packed.index_add_(0, ids_M, F.pad(flat_MD, (0, 1), value=1.0))
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(packed)
        return packed[:, -1], packed[:, :-1]

    def _reseed(self, flat_MD: Tensor, ids_M: Tensor) -> None:
        """Move dead codes to features of the batch, drawn by their distance as in k-means++."""
        dead = (self.use_K < self.cfg.reseed_below / len(self.use_K)).nonzero().flatten()
        if not len(dead):
            return
        distance_M = (1 - (flat_MD * self.codebook[ids_M]).sum(-1)).clamp_min(0)
        distance_M = distance_M.masked_fill(distance_M < self.cfg.reseed_error, 0)
        count = min(len(dead), int((distance_M > 0).sum()))
        seeds = flat_MD.new_zeros(len(dead), flat_MD.shape[1] + 1)
        if count:
            chosen = torch.multinomial(distance_M, count)
            seeds[:count] = F.pad(flat_MD[chosen], (0, 1), value=1.0)
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(seeds, 0)
        dead, seeds = dead[seeds[:, -1] > 0], seeds[seeds[:, -1] > 0, :-1]
        # A new code starts with the mean use, so that it has time to attract features before it can
        # count as dead again.
        start = 1 / len(self.use_K)
        self.use_K[dead] = start
        if self.cfg.codebook == "ema":
            self.rows[dead], self.sums_KD[dead] = seeds, seeds * start
        else:
            self._moves.append((dead, seeds))


def nearest_code(unit_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Return the code with the largest dot product for each feature, in chunks to save memory."""
    # max is twice as fast as argmax on a CPU.
    return torch.cat([(part @ codebook_KD.T).max(-1).indices for part in unit_MD.split(16_384)])
