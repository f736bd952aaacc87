"""Causal space-time transformer (the paper's ST-ViViT), with a KV cache.

Frames need not follow one another: a `FrameOrder` says which frames each frame attends to and which
two come before it. A clip, a clip that goes on from a `KVCache`, and clean frames with masked ones
in one pass are the same code, so training computes exactly what generation computes.

Shapes: B clips, F frames, P cached frames, S = P + F, N = h*w patches, D width, H heads, E width of
a head, A width of the encoded actions, G groups of L tokens that attend to M tokens.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.models.frame_order import PEG_FRAMES, FrameOrder
from worldmodel.models.position_encoding import PEG

QK_NORM_EPS = 1e-6
"""Smallest length that a query or key is divided by."""
LOGIT_SCALE = 8.0
"""Factor on the dot products of queries and keys, which are unit vectors with learnt scales."""


@dataclass
class LayerCache:
    """Cache of one sub-block: the last inputs of its PEG and, in a temporal one, keys and values of
    all frames.
    """

    peg_inputs_BPhwD: Tensor
    """Inputs of the PEG at the last PEG_FRAMES frames, zeros before the first frame."""
    keys_BHPE: Tensor | None = None
    """Keys of a temporal sub-block, (B*N, H, P, E)."""
    values_BHPE: Tensor | None = None
    """Values of a temporal sub-block, (B*N, H, P, E)."""


@dataclass
class KVCache:
    """Cache of the finished frames of a clip, returned by `STTransformer.forward` and passed to its
    next call.
    """

    frames: int
    """Number of frames whose keys and values are held."""
    layers: list[LayerCache]
    """One entry for each sub-block, in their order."""

    def last_frames(self, frames: int) -> "KVCache":
        """Return the cache with keys and values of only the last `frames` frames: the attention
        window slides.
        """
        if self.frames <= frames:
            return self
        layers = [
            LayerCache(
                layer.peg_inputs_BPhwD,
                None if layer.keys_BHPE is None else layer.keys_BHPE[:, :, -frames:],
                None if layer.values_BHPE is None else layer.values_BHPE[:, :, -frames:],
            )
            for layer in self.layers
        ]
        return KVCache(frames, layers)


class Attention(nn.Module):
    """Multi-head attention over a normalised input, with normalised queries and keys. Without
    biases.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)  # a sub-block starts as its PEG alone
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))

    def forward(
        self, x_GLD: Tensor, bias_HLM: Tensor, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend within each group, and to the cached tokens -> (output GLD, keys GHME, values
        GHME).

        `bias_HLM` is added to the logits; -inf hides a token.
        """
        qkv = self.qkv(self.norm(x_GLD))
        q, k, v = rearrange(qkv, "g l (three h e) -> three g h l e", three=3, h=self.heads)

        # Queries and keys are unit vectors with a learnt scale for each dimension.
        q = (F.normalize(q, dim=-1, eps=QK_NORM_EPS) * self.q_scale).to(v.dtype)
        k = (F.normalize(k, dim=-1, eps=QK_NORM_EPS) * self.k_scale).to(v.dtype)

        if cache is not None and cache.keys_BHPE is not None and cache.values_BHPE is not None:
            k = torch.cat([cache.keys_BHPE.to(k.dtype), k], dim=2)
            v = torch.cat([cache.values_BHPE.to(v.dtype), v], dim=2)

        mask = bias_HLM[None].to(v.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=LOGIT_SCALE)
        return self.out(rearrange(attended, "g h l e -> g l (h e)")), k, v


class FeedForward(nn.Module):
    """GEGLU over a normalised input, inner width int(4 * 2/3 * dim), without biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(4 * 2 / 3 * dim)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension, (..., D) -> (..., D)."""
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class TransformerSubBlock(nn.Module):
    """One half of a block, in space or in time: position encoding, attention and feed-forward
    layer.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.peg = PEG(dim)
        self.attention = Attention(dim, heads, head_dim)
        self.feed_forward = FeedForward(dim)

    def forward(
        self,
        x_BFhwD: Tensor,
        attn_bias_HNN: Tensor,
        order: FrameOrder,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """Run frames that follow those of `cache` -> (frames of the same shape, the cache with
        them).
        """
        peg_inputs = None if cache is None else cache.peg_inputs_BPhwD
        new_cache = LayerCache(last_peg_inputs(x_BFhwD, peg_inputs))
        x_BFhwD = x_BFhwD + self.peg(x_BFhwD, order, peg_inputs)
        x_BFhwD = x_BFhwD + self.attend(x_BFhwD, attn_bias_HNN, order, cache, new_cache)
        x_BFhwD = x_BFhwD + self.feed_forward(x_BFhwD)
        return x_BFhwD, new_cache

    def attend(
        self,
        x_BFhwD: Tensor,
        attn_bias_HNN: Tensor,
        order: FrameOrder,
        cache: LayerCache | None,
        new_cache: LayerCache,
    ) -> Tensor:
        """Return the output of the attention layer; keys and values that later frames need go into
        `new_cache`.
        """
        raise NotImplementedError


class SpatialBlock(TransformerSubBlock):
    """Patches of a frame attend to each other, with the continuous position bias."""

    def attend(
        self,
        x_BFhwD: Tensor,
        attn_bias_HNN: Tensor,
        order: FrameOrder,
        cache: LayerCache | None,
        new_cache: LayerCache,
    ) -> Tensor:
        batch, _, height, _, _ = x_BFhwD.shape
        x = rearrange(x_BFhwD, "b f h w d -> (b f) (h w) d")
        x, _, _ = self.attention(x, attn_bias_HNN)
        return rearrange(x, "(b f) (h w) d -> b f h w d", b=batch, h=height)


class TemporalBlock(TransformerSubBlock):
    """A patch attends to itself in the frames that it sees, with ALiBi."""

    slopes_H: Tensor

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__(dim, heads, head_dim)
        # 2^-1 .. 2^-8 for 8 heads (ALiBi); the same range in equal ratios for other numbers of
        # heads.
        self.register_buffer("slopes_H", 2.0 ** -torch.linspace(1, 8, heads), persistent=False)

    def attend(
        self,
        x_BFhwD: Tensor,
        attn_bias_HNN: Tensor,
        order: FrameOrder,
        cache: LayerCache | None,
        new_cache: LayerCache,
    ) -> Tensor:
        batch, _, height, width, _ = x_BFhwD.shape
        x = rearrange(x_BFhwD, "b f h w d -> (b h w) f d")
        alibi_HFS = order.alibi_bias(self.slopes_H)
        x, new_cache.keys_BHPE, new_cache.values_BHPE = self.attention(x, alibi_HFS, cache)
        return rearrange(x, "(b h w) f d -> b f h w d", b=batch, h=height, w=width)


class ActionConditioning(nn.Module):
    """Concatenate the encoded action to every patch of its frame and project back to `dim`.

    Starts as the identity on the patch and small on the action, and is stored as a step away from
    the identity. The columns of the weight are applied apart, since the action is the same for all
    patches of a frame.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        weight = [torch.randn(dim, width) * 0.02, torch.zeros(dim, dim)]
        self.weight = nn.Parameter(torch.cat(weight, dim=1))

    def forward(self, x_BFhwD: Tensor, actions_BFA: Tensor) -> Tensor:
        from_action = F.linear(actions_BFA, self.weight[:, : self.width])
        from_patch = F.linear(x_BFhwD, self.weight[:, self.width :])
        return x_BFhwD + from_action[:, :, None, None] + from_patch


def last_peg_inputs(x_BFhwD: Tensor, cached_BPhwD: Tensor | None) -> Tensor:
    """Return the last PEG_FRAMES frames, cached ones among them, padded with zeros where there are
    too few.
    """
    if cached_BPhwD is None:
        cached_BPhwD = x_BFhwD.new_zeros(len(x_BFhwD), PEG_FRAMES, *x_BFhwD.shape[2:])
    return torch.cat([cached_BPhwD, x_BFhwD[:, -PEG_FRAMES:]], dim=1)[:, -PEG_FRAMES:]


class STTransformer(nn.Module):
    """Blocks of a spatial and a temporal sub-block, and a last LayerNorm.

    `temporal_first` swaps the two (the decoder). With `action_width` > 0 each block begins with an
    `ActionConditioning` on actions of that width.
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
        action_width: int = 0,
    ) -> None:
        super().__init__()
        # The names are part of the weights' names in checkpoints.
        kinds: dict[str, type[TransformerSubBlock]] = {"spatial": SpatialBlock}
        if temporal and temporal_first:
            kinds = {"temporal": TemporalBlock, "spatial": SpatialBlock}
        elif temporal:
            kinds = {"spatial": SpatialBlock, "temporal": TemporalBlock}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: kind(dim, heads, head_dim) for name, kind in kinds.items()})
            for _ in range(blocks)
        )
        self.conditions = nn.ModuleList(
            ActionConditioning(dim, action_width) for _ in range(blocks if action_width else 0)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.activation_checkpointing = False
        """Keep only the inputs of each sub-block in training and recompute the rest backward: less
        memory."""

    def forward(
        self,
        x_BFhwD: Tensor,
        attn_bias_HNN: Tensor,
        *,
        actions_BFA: Tensor | None = None,
        order: FrameOrder | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Run frames, after those of `cache` where it is given -> (frames of the same shape, the
        cache with them).

        Without an `order` the frames follow one another, and the cached ones.
        """
        cached_frames = cache.frames if cache else 0
        order = order or FrameOrder.consecutive(x_BFhwD.shape[1], cached_frames, x_BFhwD.device)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        new_cache = KVCache(cached_frames + x_BFhwD.shape[1], [])
        x = x_BFhwD
        for index, block in enumerate(self.blocks):
            if actions_BFA is not None:
                x = self.conditions[index](x, actions_BFA)
            for sub_block in block.values():  # type: ignore[operator]
                layer_cache = cache.layers[len(new_cache.layers)] if cache else None
                inputs = (x, attn_bias_HNN, order, layer_cache)
                if recompute:
                    x, new_layer_cache = checkpoint(sub_block, *inputs, use_reentrant=False)
                else:
                    x, new_layer_cache = sub_block(*inputs)
                new_cache.layers.append(new_layer_cache)
        return self.norm(x), new_cache
