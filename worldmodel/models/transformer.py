"""Causal space-time transformer (the paper's ST-ViViT) with a KV cache.

Frames need not be consecutive: a `FrameOrder` holds the frames that each frame attends to and the
two before it. A clip, the continuation of a `KVCache`, and clean frames with masked ones in one
pass run the same code, so that training computes exactly what generation computes.

Shapes: B clips, F frames, P cached frames, S = P + F, N = h*w patches, D width, H heads, E width of
a head, A width of the encoded actions, G groups of L tokens that attend to M tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodel.devices import cast_for_inference
from worldmodel.models.frame_order import PEG_FRAMES, FrameOrder
from worldmodel.models.position_encoding import PEG

QK_NORM_EPS = 1e-6
"""Smallest length that a query or key is divided by."""
LOGIT_SCALE = 8.0
"""Factor on the dot products of queries and keys, which are unit vectors with learnt scales."""


@dataclass
class LayerCache:
    """Cache of one sub-block."""

    peg_inputs_BPhwD: Tensor
    """Inputs of the PEG at the last PEG_FRAMES frames, zeros before the first frame."""
    keys_BHPE: Tensor | None = None
    """Keys of all frames in a temporal sub-block, (B*N, H, P, E)."""
    values_BHPE: Tensor | None = None
    """Values of all frames in a temporal sub-block, (B*N, H, P, E)."""


@dataclass
class KVCache:
    """Cache of the finished frames of a clip, returned by one pass and passed to the next."""

    frames: int
    """Number of frames whose keys and values are held."""
    layers: list[LayerCache]
    """One entry for each sub-block, in order."""

    def last_frames(self, frames: int) -> "KVCache":
        """Return the cache with the keys and values of only the last `frames` frames."""
        if self.frames <= frames:
            return self
        layers = [
            LayerCache(
                layer.peg_inputs_BPhwD,
                *(
                    # Copied once, and not in each pass by a compiled sub-block.
                    None if tensor is None else tensor[:, :, -frames:].contiguous()
                    for tensor in (layer.keys_BHPE, layer.values_BHPE)
                ),
            )
            for layer in self.layers
        ]
        return KVCache(frames, layers)


class Attention(nn.Module):
    """Multi-head attention over a normalised input, with normalised queries and keys, no biases."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)  # a sub-block starts as its PEG alone
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))

    def forward(
        self,
        x_GLD: Tensor,
        bias_HLM: Tensor,
        cache: LayerCache | None = None,
        newest: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend within each group and to the cached tokens -> (GLD, keys GHME, values GHME).

        `bias_HLM` is added to the logits; -inf hides a token. With `newest` only the last tokens
        attend.
        """
        qkv = self.qkv(self.norm(x_GLD))
        q, k, v = rearrange(qkv, "g l (three h e) -> three g h l e", three=3, h=self.heads)

        # Queries and keys are unit vectors with a learnt scale for each dimension.
        q = (F.normalize(q, dim=-1, eps=QK_NORM_EPS) * self.q_scale).to(v.dtype)
        k = (F.normalize(k, dim=-1, eps=QK_NORM_EPS) * self.k_scale).to(v.dtype)
        k, v = prepend_cached(k, v, cache)
        if newest is not None:
            first = q.shape[2] - newest
            q, bias_HLM = q[:, :, first:], bias_HLM[:, first:]
        if not q.shape[2]:
            return x_GLD[:, :0], k, v

        mask = bias_HLM[None].to(v.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=LOGIT_SCALE)
        return self.out(rearrange(attended, "g h l e -> g l (h e)")), k, v


def prepend_cached(
    keys_GHLE: Tensor, values_GHLE: Tensor, cache: LayerCache | None
) -> tuple[Tensor, Tensor]:
    """Put cached keys and values, if any, before the new ones."""
    if cache is None or cache.keys_BHPE is None or cache.values_BHPE is None:
        return keys_GHLE, values_GHLE
    keys = torch.cat([cache.keys_BHPE.to(keys_GHLE.dtype), keys_GHLE], dim=2)
    values = torch.cat([cache.values_BHPE.to(values_GHLE.dtype), values_GHLE], dim=2)
    return keys, values


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
    """Spatial or temporal half of a block: position encoding, attention and feed-forward layer."""

    groups: ClassVar[str]
    """Dimensions that attention treats as a batch, as in einops."""
    tokens: ClassVar[str]
    """Dimensions whose positions attend to each other."""
    caches_keys: ClassVar[bool]
    """True if later frames attend to the keys of these."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.peg = PEG(dim)
        self.attention = Attention(dim, heads, head_dim)
        self.feed_forward = FeedForward(dim)

    def forward(
        self,
        x_BFhwD: Tensor,
        bias_HLM: Tensor,
        order: FrameOrder,
        cache: LayerCache | None = None,
        newest: int | None = None,
        keep_cache: bool = True,
    ) -> tuple[Tensor, LayerCache | None]:
        """Run frames that follow the cached ones -> (frames of the same shape, new cache).

        `bias_HLM` is added to the logits of attention. With `newest`, of a temporal sub-block, only
        that many of the last frames are computed. Without `keep_cache` there is no new cache.
        """
        peg_inputs = None if cache is None else cache.peg_inputs_BPhwD
        new_cache = LayerCache(last_peg_inputs(x_BFhwD, peg_inputs)) if keep_cache else None
        sizes = dict(zip("bfhw", x_BFhwD.shape[:4], strict=True))
        grouped = f"({self.groups}) ({self.tokens}) d"

        x_BFhwD = x_BFhwD + self.peg(x_BFhwD, order, peg_inputs)
        x_GLD = rearrange(x_BFhwD, f"b f h w d -> {grouped}")
        attended_GLD, keys, values = self.attention(x_GLD, bias_HLM, cache, newest)
        if newest is not None:
            x_BFhwD = x_BFhwD[:, sizes["f"] - newest :]
            sizes["f"] = newest
        x_BFhwD = x_BFhwD + rearrange(attended_GLD, f"{grouped} -> b f h w d", **sizes)
        x_BFhwD = x_BFhwD + self.feed_forward(x_BFhwD)
        if new_cache is not None and self.caches_keys:
            new_cache.keys_BHPE, new_cache.values_BHPE = keys, values
        return x_BFhwD, new_cache


class SpatialBlock(TransformerSubBlock):
    """Attention between the patches of a frame, with the continuous position bias."""

    groups, tokens, caches_keys = "b f", "h w", False


class TemporalBlock(TransformerSubBlock):
    """Attention of a patch to the same patch in the frames that its frame sees, with ALiBi."""

    groups, tokens, caches_keys = "b h w", "f", True


class ActionConditioning(nn.Module):
    """Concatenation of the encoded action with every patch of its frame, projected to `dim`.

    It starts as the identity on the patch, with a small weight on the action; the weight holds the
    difference from the identity. Its columns for action and patch are applied separately, since all
    patches of a frame have the same action.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        weight = [torch.randn(dim, width) * 0.02, torch.zeros(dim, dim)]
        self.weight = nn.Parameter(torch.cat(weight, dim=1))

    def forward(self, x_BFhwD: Tensor, actions_BFA: Tensor) -> Tensor:
        """Condition patches on the action that led to their frame, BFhwD -> BFhwD."""
        from_action = F.linear(actions_BFA, self.weight[:, : self.width])
        from_patch = F.linear(x_BFhwD, self.weight[:, self.width :])
        return x_BFhwD + from_action[:, :, None, None] + from_patch


def last_peg_inputs(x_BFhwD: Tensor, cached_BPhwD: Tensor | None) -> Tensor:
    """Return the last PEG_FRAMES frames, including cached ones, after zeros if there are fewer."""
    if x_BFhwD.shape[1] >= PEG_FRAMES:
        return x_BFhwD[:, -PEG_FRAMES:].contiguous()
    if cached_BPhwD is None:
        cached_BPhwD = x_BFhwD.new_zeros(len(x_BFhwD), PEG_FRAMES, *x_BFhwD.shape[2:])
    return torch.cat([cached_BPhwD, x_BFhwD[:, -PEG_FRAMES:]], dim=1)[:, -PEG_FRAMES:]


class STTransformer(nn.Module):
    """Blocks of a spatial and a temporal sub-block, and a final LayerNorm.

    `temporal_first` swaps the two (the decoder). With `action_width` > 0 each block begins with an
    `ActionConditioning` on actions of that width.
    """

    slopes_H: Tensor

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
        # These names are part of the keys in checkpoints.
        kinds: list[tuple[str, type[TransformerSubBlock]]] = [("spatial", SpatialBlock)]
        if temporal:
            kinds.insert(0 if temporal_first else 1, ("temporal", TemporalBlock))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: kind(dim, heads, head_dim) for name, kind in kinds})
            for _ in range(blocks)
        )
        self.layers = blocks * len(kinds)
        """Number of sub-blocks."""
        self.conditions = nn.ModuleList(
            ActionConditioning(dim, action_width) for _ in range(blocks if action_width else 0)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        # 2^-1 .. 2^-8 for 8 heads (ALiBi); the same range in equal ratios for other numbers.
        self.register_buffer("slopes_H", 2.0 ** -torch.linspace(1, 8, heads), persistent=False)
        self.activation_checkpointing = False
        """Keep only the inputs of each sub-block and recompute the rest in the backward pass."""

    def forward(
        self,
        x_BFhwD: Tensor,
        position_bias_HNN: Tensor,
        *,
        actions_BFA: Tensor | None = None,
        order: FrameOrder | None = None,
        cache: KVCache | None = None,
        newest: int | None = None,
        keep_cache: bool = True,
    ) -> tuple[Tensor, KVCache]:
        """Run frames that follow the cached ones -> (frames of the same shape, new cache).

        Without an `order` the frames are consecutive. With `newest` only that many of the last
        frames are returned: the last sub-block, which must be temporal, leaves out the others.
        Without `keep_cache` the new cache holds no layers, for passes that no frames follow.
        """
        cached_frames = cache.frames if cache else 0
        order = order or FrameOrder.consecutive(x_BFhwD.shape[1], cached_frames, x_BFhwD.device)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        biases = {"spatial": position_bias_HNN, "temporal": order.alibi_bias(self.slopes_H)}
        new_cache = KVCache(cached_frames + x_BFhwD.shape[1], [])
        x, layer = cast_for_inference(x_BFhwD), 0
        for index, block in enumerate(self.blocks):
            if actions_BFA is not None:
                x = self.conditions[index](x, actions_BFA)
            for kind, sub_block in block.items():  # type: ignore[operator]
                layer_cache = cache.layers[layer] if cache else None
                layer += 1
                wanted = newest if layer == self.layers else None
                inputs = (x, biases[kind], order, layer_cache, wanted, keep_cache)
                if recompute:
                    x, new_layer_cache = checkpoint(sub_block, *inputs, use_reentrant=False)
                else:
                    x, new_layer_cache = sub_block(*inputs)
                if keep_cache:
                    new_cache.layers.append(new_layer_cache)
        return self.norm(x), new_cache
