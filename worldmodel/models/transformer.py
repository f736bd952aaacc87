"""Causal space-time transformer (spec: section 1; ST-ViViT of the paper), with an exact past.

A stack runs over frames that need not be one film in order. A `FrameOrder` says when each frame happens, which frames it
sees and which two come before it: a film, a film that continues an earlier one (`KVCache`), or clean and masked frames
side by side are the same code, which is why what training computes is what generation computes.

Shapes: B clips, F frames, P frames of the past, S = P + F frames that can be seen, N = h*w patches, D width, H heads,
E width of a head, A width of the condition.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.models.cpu_kernels import add_normed, attention, gated_feed_forward, split_heads
from worldmodel.models.frame_order import PEG_FRAMES, FrameOrder
from worldmodel.models.position_encoding import PEG, compute_dtype


@dataclass
class LayerCache:
    """What one part of a block keeps of finished frames: inputs of its PEG and, of a temporal part, keys and values."""

    tail_BPhwD: Tensor
    """Inputs of the PEG at the last PEG_FRAMES frames, zeros where there were none."""
    keys_BHPE: Tensor | None = None
    """Temporal part: (B*N, H, P, E)."""
    values_BHPE: Tensor | None = None


@dataclass
class KVCache:
    """What a stack keeps of `frames` finished frames. Made by `STTransformer.forward`, handed to the next call."""

    frames: int
    parts: list[LayerCache]

    def last_frames(self, frames: int) -> "KVCache":
        """The same with keys and values of the last `frames` frames only: the window slides on."""
        if self.frames <= frames:
            return self
        parts = [
            LayerCache(
                part.tail_BPhwD,
                None if part.keys_BHPE is None else part.keys_BHPE[:, :, -frames:],
                None if part.values_BHPE is None else part.values_BHPE[:, :, -frames:],
            )
            for part in self.parts
        ]
        return KVCache(frames, parts)


class Attention(nn.Module):
    """Heads with L2-normalised queries and keys, learnt scales for each dimension, logits times 8.

    Its `norm`, as that of the feed-forward layer, is applied by the part, together with the sum that it normalises.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)  # a part starts as its PEG alone
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))

    def project(self, x: Tensor) -> Tensor:
        """Normalised (..., D) -> queries, keys and values side by side, (..., 3, H, E)."""
        return self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))

    def split(self, qkv_3GHNE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A projection in the order in which patches attend -> q, k, v (..., H, N, E), whose products are logits."""
        return split_heads(qkv_3GHNE, 8 * self.q_scale * self.k_scale)


class FeedForward(nn.Module):
    """GEGLU, inner width int(4 * 2/3 * dim), no biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(4 * 2 / 3 * dim)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (..., D) -> (..., D)."""
        return gated_feed_forward(x, self.up.weight, self.down.weight)


class TransformerSubBlock(nn.Module):
    """x += PEG(x); x += attention(LN(x)); x += FF(LN(x)): one half of a block, in space or in time."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.peg = PEG(dim)
        self.attention = Attention(dim, heads, head_dim)
        self.feed_forward = FeedForward(dim)

    def forward(
        self, x_BFhwD: Tensor, bias_HNN: Tensor, timeline: FrameOrder, past: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """-> (frames of the same shape, what this part keeps of them)."""
        tail = None if past is None else past.tail_BPhwD
        kept = LayerCache(_last_peg_inputs(x_BFhwD, tail))
        dtype = compute_dtype(x_BFhwD)
        x, normed = add_normed(x_BFhwD, self.peg(x_BFhwD, timeline, tail), self.attention.norm.weight, dtype)
        mixed = self.attention.out(self.attend(normed, bias_HNN, timeline, past, kept))
        x, normed = add_normed(x, mixed, self.feed_forward.norm.weight, dtype)
        return x + self.feed_forward(normed), kept

    def attend(
        self, x_BFhwD: Tensor, bias_HNN: Tensor, timeline: FrameOrder, past: LayerCache | None, kept: LayerCache
    ) -> Tensor:
        """What the heads make of normalised x, (B, F, h, w, H*E).

        Keys and values that a later frame needs go into `kept`.
        """
        raise NotImplementedError


class SpatialBlock(TransformerSubBlock):
    """Patches of a frame attend to each other, with the continuous position bias."""

    def attend(
        self, x_BFhwD: Tensor, bias_HNN: Tensor, timeline: FrameOrder, past: LayerCache | None, kept: LayerCache
    ) -> Tensor:
        qkv = self.attention.project(x_BFhwD).flatten(2, 3).flatten(0, 1)  # (B*F, N, 3, H, E)
        q, k, v = self.attention.split(qkv.permute(2, 0, 3, 1, 4))
        return attention(q, k, v, bias_HNN).transpose(1, 2).reshape(*x_BFhwD.shape[:4], -1)


class TemporalBlock(TransformerSubBlock):
    """A patch attends to itself in the frames that it sees, with ALiBi."""

    slopes_H: Tensor

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__(dim, heads, head_dim)
        # 2^-1 .. 2^-8 for 8 heads (ALiBi); the same range in equal ratios for other counts.
        self.register_buffer("slopes_H", 2.0 ** -torch.linspace(1, 8, heads), persistent=False)

    def attend(
        self, x_BFhwD: Tensor, bias_HNN: Tensor, timeline: FrameOrder, past: LayerCache | None, kept: LayerCache
    ) -> Tensor:
        # (B, F, h, w, 3, H, E) -> (3, B, h, w, H, F, E) -> each (B*N, H, F, E)
        qkv = self.attention.project(x_BFhwD).permute(4, 0, 2, 3, 5, 1, 6)
        q, k, v = (part.flatten(0, 2) for part in self.attention.split(qkv))
        if past is not None and past.keys_BHPE is not None and past.values_BHPE is not None:
            k, v = torch.cat([past.keys_BHPE.to(k.dtype), k], 2), torch.cat([past.values_BHPE.to(v.dtype), v], 2)
        kept.keys_BHPE, kept.values_BHPE = k, v
        mixed = attention(q, k, v, timeline.distance_bias(self.slopes_H))
        batch, _, height, width, _ = x_BFhwD.shape
        return mixed.unflatten(0, (batch, height, width)).permute(0, 4, 1, 2, 3, 5).flatten(4)


class ActionConditioning(nn.Module):
    """Concatenate a condition to every patch of a frame and project back to `dim`.

    Starts as the identity on the patch and small on the condition, and is written as a step away from the identity.
    The columns of the weight are used apart, since the condition is the same for all patches of a frame.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.cat([torch.randn(dim, width) * 0.02, torch.zeros(dim, dim)], 1))

    def forward(self, x_BFhwD: Tensor, condition_BFA: Tensor) -> Tensor:
        from_condition = F.linear(condition_BFA, self.weight[:, : self.width])
        return x_BFhwD + from_condition[:, :, None, None] + F.linear(x_BFhwD, self.weight[:, self.width :])


def _last_peg_inputs(x_BFhwD: Tensor, before: Tensor | None) -> Tensor:
    if before is None:
        before = x_BFhwD.new_zeros(len(x_BFhwD), PEG_FRAMES, *x_BFhwD.shape[2:])
    return torch.cat([before, x_BFhwD[:, -PEG_FRAMES:]], 1)[:, -PEG_FRAMES:]


class STTransformer(nn.Module):
    """Blocks of a spatial and a temporal part, and a last LayerNorm.

    `temporal_first` turns the parts of each block round (the decoder). With `condition` > 0 each block begins with a
    `ActionConditioning` of that width.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        blocks: int,
        *,
        temporal: bool = True,
        temporal_first: bool = False,
        condition: int = 0,
    ) -> None:
        super().__init__()
        kinds: dict[str, type[TransformerSubBlock]] = {"spatial": SpatialBlock}
        if temporal:
            kinds = {"temporal": TemporalBlock, **kinds} if temporal_first else {**kinds, "temporal": TemporalBlock}
        # The names are part of the weights' names in checkpoints.
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: kind(dim, heads, head_dim) for name, kind in kinds.items()}) for _ in range(blocks)
        )
        self.conditions = nn.ModuleList(ActionConditioning(dim, condition) for _ in range(blocks if condition else 0))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.activation_checkpointing = False
        """Whether training keeps only the input of each part and computes the rest again backward: less memory."""

    def forward(
        self,
        x_BFhwD: Tensor,
        bias_HNN: Tensor,
        *,
        condition_BFA: Tensor | None = None,
        timeline: FrameOrder | None = None,
        past: KVCache | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Run the frames, after those of `past` where it is given -> (frames of the same shape, the past with them).

        Without a `timeline` the frames are a film that goes on from the past.
        """
        seen = past.frames if past else 0
        timeline = timeline or FrameOrder.consecutive(x_BFhwD.shape[1], seen, x_BFhwD.device)
        parts = [part for block in self.blocks for part in block.values()]  # type: ignore[operator]
        before: list[LayerCache | None] = list(past.parts) if past else [None] * len(parts)
        per_block = len(parts) // max(len(self.blocks), 1)
        kept: list[LayerCache] = []
        x = x_BFhwD
        for place, part in enumerate(parts):
            if condition_BFA is not None and place % per_block == 0:
                x = self.conditions[place // per_block](x, condition_BFA)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x, new = checkpoint(part, x, bias_HNN, timeline, before[place], use_reentrant=False)
            else:
                x, new = part(x, bias_HNN, timeline, before[place])
            kept.append(new)
        return self.norm(x), KVCache(seen + x.shape[1], kept)
