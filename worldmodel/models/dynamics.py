"""Dynamics: predicts masked tokens from earlier frames and the actions between them (Table 8).

Shapes: B clips, T frames, h=w patches, N=h*w, D width, K codes (id K is the mask), A actions.
Action a_t led from frame t to frame t+1: it conditions frame t+1 and those after it, never frame t.
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
    """MaskGIT dynamics: token embedding, blocks conditioned on the actions, head over K codes."""

    codebook: Tensor
    lam_hash: Tensor
    """With cfg.dynamics.latent_actions: sha256 of its latent action model; zeros for none."""

    def __init__(self, cfg: WorldModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c, codes = cfg.dynamics, cfg.tokenizer.codes
        self.embedding = nn.Embedding(codes + 1, c.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.register_buffer("codebook", torch.zeros(codes, cfg.tokenizer.code_dim))
        if c.latent_actions:
            self.register_buffer("lam_hash", torch.zeros(32, dtype=torch.uint8))
        self.code_proj = (
            nn.Linear(cfg.tokenizer.code_dim, c.dim, bias=False) if c.token_input else None
        )
        self.bias = PositionBias(cfg.grid, c.dim, c.heads)
        self.stack = STTransformer(c.dim, c.heads, c.head_dim, c.blocks, action_width=cfg.actions)
        self.head = nn.Linear(c.dim, codes, bias=False)

    def set_codebook(self, codebook_KD: Tensor) -> None:
        """Copy the tokenizer's codes for the token input skip and the distances of TDCE."""
        if codebook_KD.shape != self.codebook.shape:
            raise InputError(
                f"codebook: expected shape {tuple(self.codebook.shape)}, "
                f"got {tuple(codebook_KD.shape)}: the tokenizer is of another configuration"
            )
        # Detached: a codebook learnt by gradient would tie every loss to the tokenizer's graph.
        self.codebook.copy_(codebook_KD.detach())

    @property
    def has_codebook(self) -> bool:
        """True once `set_codebook` was called, here or before the weights were saved."""
        return bool(self.codebook.any())

    def set_lam(self, sha256: str) -> None:
        """Record the `encoder_sha256` of the latent action model whose codes are the actions."""
        self.lam_hash.copy_(torch.frombuffer(bytearray.fromhex(sha256), dtype=torch.uint8))

    @property
    def lam_sha256(self) -> str | None:
        """Hash recorded by `set_lam`, here or before the weights were saved, if any."""
        return bytes(self.lam_hash.tolist()).hex() if self.lam_hash.any() else None

    def forward(self, tokens_BThw: Tensor, actions_BT: Tensor) -> Tensor:
        """Compute the logits of each token from its frame and earlier ones.

        tokens BThw in [0, K] (K is the mask), actions (B, T-1) -> logits BThwK. Raises InputError
        for other input.
        """
        self.cfg.check_tokens(tokens_BThw, masked=True)
        self.cfg.check_actions(actions_BT, len(tokens_BThw), tokens_BThw.shape[1] - 1)
        hidden, _ = self.forward_with_cache(
            tokens_BThw, self.encode_actions(actions_BT), keep_cache=False
        )
        return self.head(hidden)

    def encode_actions(self, actions_BT: Tensor, first: bool = True) -> Tensor:
        """Encode the action that leads to each frame as one-hot, (B, T, A).

        With `first`, zeros are put first for frame 0 of a clip, to which no action leads.
        """
        one_hot = F.one_hot(actions_BT.long(), self.cfg.actions).to(self.head.weight.dtype)
        return F.pad(one_hot, (0, 0, int(first), 0))

    def forward_with_cache(
        self,
        tokens_BFhw: Tensor,
        actions_BFA: Tensor,
        cache: KVCache | None = None,
        order: FrameOrder | None = None,
        bias_HNN: Tensor | None = None,
        newest: int | None = None,
        keep_cache: bool = True,
    ) -> tuple[Tensor, KVCache]:
        """Run frames after the cached ones -> (hidden states BFhwD before the head, new cache).

        Pass the result of `bias()` as `bias_HNN` to compute it once for several passes. `newest`
        and `keep_cache` are those of `STTransformer.forward`.
        """
        return self.stack(
            self.embed(tokens_BFhw),
            self.bias() if bias_HNN is None else bias_HNN,
            actions_BFA=actions_BFA,
            order=order,
            cache=cache,
            newest=newest,
            keep_cache=keep_cache,
        )

    def extend_cache(
        self, tokens_BFhw: Tensor, actions_BFA: Tensor, cache: KVCache | None
    ) -> KVCache:
        """Return the cache with further finished frames."""
        return self.forward_with_cache(tokens_BFhw, actions_BFA, cache, newest=0)[1]

    def predict_after(
        self, tokens_BFhw: Tensor, actions_BFA: Tensor, cache: KVCache, bias_HNN: Tensor
    ) -> Tensor:
        """Compute the logits BFhwK of frames after the cached ones."""
        hidden, _ = self.forward_with_cache(
            tokens_BFhw, actions_BFA, cache, bias_HNN=bias_HNN, keep_cache=False
        )
        return self.head(hidden)

    def newest_hidden(self, tokens_BFhw: Tensor, actions_BFA: Tensor, cache: KVCache) -> Tensor:
        """Compute the hidden states BhwD of the last frame after the cached ones."""
        hidden, _ = self.forward_with_cache(
            tokens_BFhw, actions_BFA, cache, newest=1, keep_cache=False
        )
        return hidden[:, -1]

    def loss(
        self,
        tokens_BThw: Tensor,
        actions_BT: Tensor,
        *,
        generator: torch.Generator | None = None,
        checked: bool = False,
    ) -> dict[str, Tensor]:
        """Compute the training losses of whole clips, tokens BThw in [0, K), actions (B, T-1).

        Returns `loss` (TDCE on masked tokens), `accuracy` on them, and `masked`, their share of the
        tokens of predicted frames. Raises InputError for other input or without a codebook; with
        `checked` it does not look at their values, which waits for the device.
        """
        batch, actions = len(tokens_BThw), tokens_BThw.shape[1] - 1
        self.cfg.check_tokens(tokens_BThw, values=not checked)
        self.cfg.check_actions(actions_BT, batch, actions, values=not checked)
        if tokens_BThw.shape[1] < 2:
            raise InputError(
                "dynamics loss: expected clips of 2 frames or more, got 1: nothing can be predicted"
            )
        if not checked and not self.has_codebook:
            raise InputError(
                "dynamics has no codebook: call set_codebook(tokenizer.codebook) before training"
            )

        # Predict the masked tokens.
        if self.cfg.dynamics.objective == "clean_past":
            hidden, targets, mask = self._clean_past_pass(tokens_BThw, actions_BT, generator)
        else:
            hidden, targets, mask = self._masked_pass(tokens_BThw, actions_BT, generator)

        # Run the head on all tokens before masked ones are selected: their number varies, and CPU
        # matrix kernels are compiled and kept for each new shape (5 MB a step).
        masked_M = mask.flatten().nonzero().squeeze(1)
        logits_MK = self.head(hidden).flatten(0, -2).index_select(0, masked_M)
        targets_M = targets.flatten().index_select(0, masked_M)
        distances_KK, weight = token_distances(self.codebook), self.cfg.dynamics.tdce_weight
        return {
            "loss": token_distance_cross_entropy(logits_MK, targets_M, distances_KK, weight),
            "accuracy": (logits_MK.detach().argmax(-1) == targets_M).float().mean(),
            "masked": mask.float().mean(),
        }

    def _masked_pass(
        self, tokens_BThw: Tensor, actions_BT: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask tokens of frames 1..T-1, the paper's objective -> (hidden, targets, mask).

        A clip has one mask ratio; with `masked_frames` each frame has one.
        """
        # Draw mask ratios and masks.
        later = tokens_BThw[:, 1:]
        if self.cfg.dynamics.objective == "masked_frames":
            ratios_shape, num_tokens = later.shape[:2], later[0, 0].numel()
        else:
            ratios_shape, num_tokens = later.shape[:1], later[0].numel()
        ratios = mask_ratios(ratios_shape, generator, later.device)
        mask = random_mask(ratios, num_tokens, generator).view_as(later)

        # Predict from the masked frames; frame 0 is never masked.
        masked = later.masked_fill(mask, self.cfg.mask_id)
        inputs = torch.cat([tokens_BThw[:, :1], masked], dim=1)
        hidden, _ = self.forward_with_cache(
            inputs, self.encode_actions(actions_BT), keep_cache=False
        )
        return hidden[:, 1:], later, mask

    def _clean_past_pass(
        self, tokens_BThw: Tensor, actions_BT: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask tokens of each chunk, with clean frames before it -> (hidden, targets, mask)."""
        # Draw chunks and their masks.
        num_frames = tokens_BThw.shape[1]
        later = tokens_BThw[:, 1:]
        mask, starts = self.sample_chunks(later, generator)

        # Predict all chunks in one pass: clean frames 0..T-2, then masked copies of frames 1..T-1.
        layout = CleanNoisyLayout.of(starts, num_frames, later.device)
        masked = later.masked_fill(mask, self.cfg.mask_id)
        inputs = torch.cat([tokens_BThw[:, :-1], masked], dim=1)
        actions_BFA = self.encode_actions(actions_BT).index_select(1, layout.frame_idx_F)
        hidden, _ = self.forward_with_cache(
            inputs, actions_BFA, order=layout.order, keep_cache=False
        )
        return hidden[:, num_frames - 1 :], later, mask

    def sample_chunks(
        self, later_BThw: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, list[int]]:
        """Draw chunks of frames 1..T-1 and a mask -> (mask BThw, first frame of each chunk)."""
        batch, num_later = later_BThw.shape[:2]
        device, lengths = later_BThw.device, self.cfg.dynamics.chunk_lengths

        # Draw a chunk length (0 is the whole clip) and the phase of the first cut, which may
        # shorten the first chunk.
        length_draw, phase_draw = torch.rand(2, generator=generator, device=device).tolist()
        length = lengths[int(length_draw * len(lengths))]
        if length == 0 or length > num_later:
            length = num_later
        first_cut = 1 + int(phase_draw * length)
        cuts = range(first_cut - length, num_later + 1, length)
        starts = [1, *(cut for cut in cuts if cut > 1)]
        ends = [*starts[1:], num_later + 1]

        # Draw a mask ratio for each chunk; a share of the chunks is masked completely.
        ratios = mask_ratios((batch, len(starts)), generator, device)
        uniform = torch.rand(ratios.shape, generator=generator, device=device)
        ratios = ratios.masked_fill(uniform < self.cfg.dynamics.all_masked, 1.0)

        masks = []
        for chunk, (start, end) in enumerate(zip(starts, ends, strict=True)):
            shape = (batch, end - start, *later_BThw.shape[2:])
            num_tokens = shape[1] * later_BThw[0, 0].numel()
            masks.append(random_mask(ratios[:, chunk], num_tokens, generator).view(shape))
        return torch.cat(masks, 1), starts

    def embed(self, tokens_BFhw: Tensor) -> Tensor:
        """Embed tokens, BFhwD, with the token input skip: the projected code vector is added.

        The mask has no code vector.
        """
        tokens_BFhw = tokens_BFhw.long()
        x = self.embedding(tokens_BFhw)
        if self.code_proj is None:
            return x
        table = self.code_proj(F.pad(self.codebook, (0, 0, 0, 1)))
        return x + F.embedding(tokens_BFhw, table.to(x.dtype))
