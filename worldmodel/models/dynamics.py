"""Dynamics: predicts masked tokens from earlier frames and the actions between them (spec: section 4, table 8).

Shapes: B clips, T frames, h=w patches, N=h*w, D width, K codes (id K is the mask), A actions. The action a_t beside
frame t turned frame t into frame t+1: it conditions frame t+1 and those after it, never frame t.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig
from worldmodel.losses import token_distance_cross_entropy, token_distances
from worldmodel.models.frame_order import CleanNoisyLayout, FrameOrder
from worldmodel.models.maskgit import mask_ratios, random_mask
from worldmodel.models.position_encoding import PositionBias
from worldmodel.models.transformer import KVCache, STTransformer


class Dynamics(nn.Module):
    """Embedding (+ token input skip), blocks that take the action at each, head over the K codes."""

    codebook: Tensor
    lam_hash: Tensor
    """With cfg.dynamics.latent_actions: sha256 of the latent action model whose actions it knows; zeros for none."""

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c, codes = cfg.dynamics, cfg.tokenizer.codes
        self.embedding = nn.Embedding(codes + 1, c.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.register_buffer("codebook", torch.zeros(codes, cfg.tokenizer.code_dim))
        if c.latent_actions:
            self.register_buffer("lam_hash", torch.zeros(32, dtype=torch.uint8))
        self.code_proj = nn.Linear(cfg.tokenizer.code_dim, c.dim, bias=False) if c.token_input else None
        self.bias = PositionBias(cfg.grid, c.dim, c.heads)
        self.stack = STTransformer(c.dim, c.heads, c.head_dim, c.blocks, condition=cfg.actions)
        self.head = nn.Linear(c.dim, codes, bias=False)

    def set_codebook(self, codebook_KD: Tensor) -> None:
        """Take over the tokenizer's codes: for the token input skip and for the distances of TDCE."""
        if codebook_KD.shape != self.codebook.shape:
            expected, got = tuple(self.codebook.shape), tuple(codebook_KD.shape)
            raise InputError(
                f"codebook: expected shape {expected}, got {got}: the tokenizer is of another configuration"
            )
        # Detached: a codebook learnt by gradient would tie every loss to the tokenizer's graph.
        self.codebook.copy_(codebook_KD.detach())

    @property
    def has_codebook(self) -> bool:
        """Whether `set_codebook` was called, here or before the weights were saved."""
        return bool(self.codebook.any())

    def set_lam(self, sha256: str) -> None:
        """Note whose codes its actions are: `worldmodel.models.weights.encoder_sha256` of the latent action model."""
        self.lam_hash.copy_(torch.frombuffer(bytearray.fromhex(sha256), dtype=torch.uint8))

    @property
    def lam_sha256(self) -> str | None:
        """What `set_lam` noted, here or before the weights were saved; None for nothing."""
        return bytes(self.lam_hash.tolist()).hex() if self.lam_hash.any() else None

    def forward(self, tokens_BThw: Tensor, actions_BT: Tensor) -> Tensor:
        """Logits of each token of each frame, from that frame and those before it. No masking is added.

        tokens BThw in [0, K] (K is the mask), actions (B, T-1) -> logits BThwK. Raises InputError for other input.
        """
        self.cfg.check_tokens(tokens_BThw, masked=True)
        self.cfg.check_actions(actions_BT, len(tokens_BThw), tokens_BThw.shape[1] - 1)
        hidden, _ = self.forward_with_cache(tokens_BThw, self.encode_actions(actions_BT), None)
        return self.head(hidden)

    def encode_actions(self, actions_BT: Tensor, first: bool = True) -> Tensor:
        """One-hot of the action into each frame, (B, T, A). With `first` zeros come first, for a clip's frame 0."""
        one_hot = F.one_hot(actions_BT, self.cfg.actions).to(self.head.weight.dtype)
        return F.pad(one_hot, (0, 0, int(first), 0))

    def forward_with_cache(
        self,
        tokens_BFhw: Tensor,
        condition_BFA: Tensor,
        past: KVCache | None,
        timeline: FrameOrder | None = None,
        bias_HNN: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Frames after those of `past` -> (hidden BFhwD before the head, the past with these frames).

        `bias_HNN`: what `bias()` gives, from who calls many times with the same weights.
        """
        bias = self.bias() if bias_HNN is None else bias_HNN
        return self.stack(self.embed(tokens_BFhw), bias, condition_BFA=condition_BFA, timeline=timeline, past=past)

    def loss(
        self,
        tokens_BThw: Tensor,
        actions_BT: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The training objective of cfg.dynamics on whole clips, tokens BThw in [0, K), actions (B, T-1).

        -> `loss` (TDCE on masked tokens), `accuracy` on them, `masked` (their share of the tokens of predicted frames).
        `progress` in [0, 1] is the share of the run that is done. Raises InputError for other input or without codes.
        """
        self.cfg.check_tokens(tokens_BThw)
        self.cfg.check_actions(actions_BT, len(tokens_BThw), tokens_BThw.shape[1] - 1)
        if tokens_BThw.shape[1] < 2:
            raise InputError("dynamics loss: expected clips of 2 frames or more, got 1: nothing can be predicted")
        if not self.has_codebook:
            raise InputError("dynamics has no codebook: call set_codebook(tokenizer.codebook) before training")
        run = self._clean_past_pass if self.cfg.dynamics.objective == "clean_past" else self._masked_pass
        hidden, targets, mask = run(tokens_BThw, actions_BT, generator)
        # All tokens through the head, then the masked ones: their number differs from step to step, and for each new
        # shape a CPU's matrix kernels are compiled and kept (5 MB a step).
        logits = self.head(hidden)[mask]
        wanted = targets[mask]
        distances = token_distances(self.codebook)
        return {
            "loss": token_distance_cross_entropy(logits, wanted, distances, self.cfg.dynamics.tdce_weight),
            "accuracy": (logits.detach().argmax(-1) == wanted).float().mean(),
            "masked": mask.float().mean(),
        }

    def _masked_pass(
        self, tokens_BThw: Tensor, actions_BT: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The paper's objective: one mask ratio a clip, tokens of frames 1..T-1 masked -> (hidden, targets, mask).

        With `masked_frames` each frame has a ratio of its own.
        """
        later = tokens_BThw[:, 1:]
        per_frame = self.cfg.dynamics.objective == "masked_frames"
        shape, patches = (later.shape[:2], later[0, 0].numel()) if per_frame else (later.shape[:1], later[0].numel())
        mask = random_mask(mask_ratios(shape, generator, later.device), patches, generator).view_as(later)
        given = torch.cat([tokens_BThw[:, :1], later.masked_fill(mask, self.cfg.mask_id)], 1)
        hidden, _ = self.forward_with_cache(given, self.encode_actions(actions_BT), None)
        return hidden[:, 1:], later, mask

    def _clean_past_pass(
        self, tokens_BThw: Tensor, actions_BT: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Own chunk partly masked, frames before it clean -> (hidden, targets, mask), each of frames 1..T-1."""
        frames = tokens_BThw.shape[1]
        later = tokens_BThw[:, 1:]
        mask, starts = self.sample_chunks(later, generator)
        streams = CleanNoisyLayout.of(starts, frames, later.device)
        both = torch.cat([tokens_BThw[:, :-1], later.masked_fill(mask, self.cfg.mask_id)], 1)
        condition = self.encode_actions(actions_BT).index_select(1, streams.frames_F)
        hidden, _ = self.forward_with_cache(both, condition, None, streams.timeline)
        return hidden[:, frames - 1 :], later, mask

    def sample_chunks(self, later_BThw: Tensor, generator: torch.Generator | None) -> tuple[Tensor, list[int]]:
        """Random chunks of frames 1..T-1 and a mask for each -> (mask like later_BThw, first frame of each chunk)."""
        batch, count = later_BThw.shape[:2]
        device, lengths = later_BThw.device, self.cfg.dynamics.chunk_lengths
        pick, cut = torch.rand(2, generator=generator, device=device).tolist()
        length = min(lengths[int(pick * len(lengths))] or count, count)
        starts = list(range(1 + int(cut * length) - length, count + 1, length))
        starts = [1, *(start for start in starts if start > 1)]
        ratios = mask_ratios((batch, len(starts)), generator, device)
        full = torch.rand(ratios.shape, generator=generator, device=device) < self.cfg.dynamics.all_masked
        ratios = ratios.masked_fill(full, 1.0)
        ends = [*starts[1:], count + 1]
        patches = later_BThw[0, 0].numel()
        parts = [
            random_mask(ratios[:, i], (end - start) * patches, generator).view(
                batch, end - start, *later_BThw.shape[2:]
            )
            for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        return torch.cat(parts, 1), starts

    def embed(self, tokens_BFhw: Tensor) -> Tensor:
        """Learnt embedding of each id, and the projected code vector where the id is not the mask. -> BFhwD."""
        x = self.embedding(tokens_BFhw)
        if self.code_proj is None:
            return x
        table = self.code_proj(F.pad(self.codebook, (0, 0, 0, 1)))  # the mask has no code: zeros
        return x + F.embedding(tokens_BFhw, table.to(x.dtype))
