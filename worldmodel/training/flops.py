"""Predicted cost of training a component: FLOPs, tokens and memory.

FLOPs are counted by `torch.utils.flop_counter` on meta tensors: those of matrix products and
convolutions, with a multiply and an add as two. A backward pass costs twice its forward pass.
Recomputation to save memory is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.config import AutoencoderConfig, DynamicsConfig, WorldModelConfig
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.frame_order import CleanNoisyLayout
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.training.config import TrainConfig

_META = torch.device("meta")
_CLIPS = 64
"""Clips that are counted together, since a pass computes its position bias once for all of them."""


@dataclass(frozen=True)
class TrainCost:
    """Cost of one clip in one optimizer step, and the size of the model."""

    flops: float
    """Forward and backward, and encoding by frozen models if their output is not stored."""
    tokens: int
    """Tokens per clip: frames x patches; 0 for a model without tokens."""
    activations: float
    """Approximate bytes stored for the backward pass."""
    parameters: int
    trained: int


@cache  # counting takes seconds at the paper's sizes
def cost_of(
    component: str,
    config: WorldModelConfig,
    recipe: TrainConfig,
    *,
    decoder_only: bool = False,
    cached: bool = True,
    joint_lam: bool = False,
) -> TrainCost:
    """Compute the cost of training a component.

    `cached`: the dynamics model reads stored tokens, and stored actions of a frozen latent action
    model. `joint_lam`: the latent action model is trained with the dynamics.
    """
    if component == "dynamics":
        return _dynamics_cost(config, recipe, cached, joint_lam)
    if component == "upscaler":
        return _upscaler_cost(recipe)
    return _autoencoder_cost(component, config, recipe, decoder_only)


def count_parameters(module: type[nn.Module], config: WorldModelConfig) -> int:
    """Count the parameters of a module without allocating them."""
    with _META:
        return _size(module(config))


@cache
def encoding_flops(config: WorldModelConfig, frames: int) -> float:
    """Count the FLOPs of encoding a clip's frames into tokens."""
    encoding, search, _ = _autoencoder_flops("tokenizer", config, frames)
    return encoding + search


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _count(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Run a pass over `_CLIPS` clips -> (its output, FLOPs per clip)."""
    with FlopCounterMode(display=False) as counter:
        output = run()
    return output, counter.get_total_flops() / _CLIPS


def _build_autoencoder(component: str, config: WorldModelConfig) -> Tokenizer | LatentActionModel:
    with _META:
        return Tokenizer(config) if component == "tokenizer" else LatentActionModel(config)


def _autoencoder_flops(
    component: str, config: WorldModelConfig, frames: int
) -> tuple[float, float, float]:
    """Count the FLOPs per clip of encoding, of the search of the nearest codes, and of decoding."""
    model = _build_autoencoder(component, config)
    clips = torch.empty(_CLIPS, frames, 3, config.size, config.size, device=_META)
    if isinstance(model, Tokenizer):
        features, encoding = _count(lambda: model.encode_features(clips)[0])
        _, decoding = _count(lambda: model.decode_features(features)[0])
    else:
        features, encoding = _count(
            lambda: model.to_code(model.actions(model.encode_features(clips)[0]))
        )
        _, decoding = _count(lambda: model.decode_features(clips[:, :-1], features))
    _, search = _count(lambda: model.quantizer.ids(features))
    return encoding, search, decoding


def _autoencoder_cost(
    component: str, config: WorldModelConfig, recipe: TrainConfig, decoder_only: bool = False
) -> TrainCost:
    model, frames = _build_autoencoder(component, config), recipe.clip_length
    c: AutoencoderConfig = getattr(config, component)
    patches = (config.size // c.patch) ** 2
    decoded = frames if component == "tokenizer" else frames - 1
    encoding, search, decoding = _autoencoder_flops(component, config, frames)
    flops = search + 3 * decoding  # the search has no backward pass
    kept = _activations(c, c.decoder_blocks, decoded, patches, recipe)
    trained = sum(parameter.numel() for parameter in model.decoder_parameters())
    if decoder_only:
        flops += encoding
    else:
        flops += 3 * encoding
        kept += _activations(c, c.encoder_blocks, frames, patches, recipe)
        trained = _size(model)
    return TrainCost(flops, frames * patches, kept, _size(model), trained)


def _dynamics_cost(
    config: WorldModelConfig, recipe: TrainConfig, cached: bool, joint_lam: bool
) -> TrainCost:
    c, clip, grid = config.dynamics, recipe.clip_length, config.grid
    with _META:
        dynamics = Dynamics(config)
    frames, order = clip, None
    if c.objective == "clean_past":
        # Clean and masked frames run in one pass.
        frames, order = 2 * clip - 2, CleanNoisyLayout.of([1], clip, _META).order
    tokens = torch.zeros(_CLIPS, frames, grid, grid, dtype=torch.long, device=_META)
    actions = torch.zeros(_CLIPS, frames, config.actions, device=_META)
    hidden, stack = _count(lambda: dynamics.forward_with_cache(tokens, actions, order=order)[0])
    logits, head = _count(lambda: dynamics.head(hidden[:, 1 - clip :]))

    flops, total = 3 * (stack + head), _size(dynamics)
    kept = _activations(c, c.blocks, frames, grid**2, recipe)
    kept += 3 * 4 * logits[0].numel()  # logits, and their softmax in fp32
    if not cached:
        flops += encoding_flops(config, clip)
    if joint_lam:
        lam = _autoencoder_cost("lam", config, recipe)
        flops, kept, total = flops + lam.flops, kept + lam.activations, total + lam.parameters
    elif c.latent_actions and not cached:
        flops += sum(_autoencoder_flops("lam", config, clip)[:2])
    return TrainCost(flops, clip * grid**2, kept, total, total)


def _activations(
    c: AutoencoderConfig | DynamicsConfig, blocks: int, frames: int, patches: int, r: TrainConfig
) -> float:
    """Compute the bytes per clip that an `STTransformer` stores for the backward pass."""
    temporal = c.temporal if isinstance(c, AutoencoderConfig) else True
    sub_blocks, width, inner = 1 + temporal, c.heads * c.head_dim, int(4 * 2 / 3 * c.dim)
    if r.activation_checkpointing:
        return blocks * sub_blocks * frames * patches * 4 * c.dim
    # In the type of the products: inputs and outputs of the PEG and of both norms, q and its
    # directions, k, v and the attended values, and both halves of the GEGLU. In fp32: the inputs of
    # both norms.
    narrow = 2 if r.precision == "bf16" else 4
    sub_block = narrow * (3 * c.dim + 5 * width + 2 * inner) + 4 * 2 * c.dim
    attention = narrow * c.heads * (patches + frames * temporal)
    condition = narrow * c.dim if isinstance(c, DynamicsConfig) else 0
    return blocks * frames * patches * (sub_blocks * sub_block + attention + condition)


def _upscaler_cost(recipe: TrainConfig) -> TrainCost:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with _META:
        upscaler = Upscaler(upscaler_config(recipe.upscaler))
        frames = torch.empty(1, 3, upscaler.cfg.size, upscaler.cfg.size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        upscaler(frames)
    total = _size(upscaler)
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - 4 * total
    half = 0.5 if recipe.precision == "bf16" else 1.0
    return TrainCost(3.0 * counter.get_total_flops(), 0, max(activations, 0) * half, total, total)
