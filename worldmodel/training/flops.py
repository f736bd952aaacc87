"""Cost of training a component, computed in advance: FLOPs, tokens and memory.

FLOPs count a multiply and an add as two, matrix products and convolutions alone, as
`torch.utils.flop_counter` does; a backward pass costs twice its forward pass, and what is computed
again to save memory is not counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.config import AutoencoderConfig, WorldModelConfig
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.training.config import TrainConfig


@dataclass(frozen=True)
class TrainCost:
    """Cost of one clip in one optimizer step, and the size of the model."""

    flops: float
    """Forward and backward, and the encoding by frozen models where it is not stored."""
    tokens: int
    """Tokens per clip: frames x patches; 0 for a model without tokens."""
    activations: float
    """Bytes stored for the backward pass, roughly."""
    parameters: int
    trained: int


@dataclass(frozen=True)
class StackCost:
    """Sizes of a `worldmodel.models.transformer.STTransformer`."""

    dim: int
    heads: int
    head_dim: int
    blocks: int
    patches: int
    temporal: bool = True
    conditioned: bool = False

    @property
    def inner(self) -> int:
        return int(4 * 2 / 3 * self.dim)

    def flops(self, frames: int) -> float:
        """Compute the FLOPs of a forward pass."""
        d, width = self.dim, self.heads * self.head_dim
        part = (
            2 * 27 * d
            + 2 * d * 3 * width
            + 2 * width * d
            + 2 * d * 2 * self.inner
            + 2 * self.inner * d
        )
        spatial = part + 4 * self.patches * width
        temporal = part + 4 * frames * width if self.temporal else 0
        condition = 2 * d * d if self.conditioned else 0
        return self.blocks * frames * self.patches * (spatial + temporal + condition)

    def activations(self, frames: int, *, half: bool, checkpointing: bool) -> float:
        """Compute the bytes that a forward pass stores for the backward pass."""
        d, width, narrow = self.dim, self.heads * self.head_dim, 2 if half else 4
        parts = 2 if self.temporal else 1
        if checkpointing:
            return self.blocks * parts * frames * self.patches * 4 * d
        # PEG, inputs of both norms (fp32) and what they give, q and its directions, k, v, output, 2
        # x GEGLU.
        part = narrow * (d + 2 * d + 5 * width + 2 * self.inner) + 4 * 2 * d
        attention = narrow * self.heads * (self.patches + (frames if self.temporal else 0))
        condition = narrow * d if self.conditioned else 0
        return self.blocks * frames * self.patches * (parts * part + attention + condition)


def cost_of(
    component: str,
    config: WorldModelConfig,
    recipe: TrainConfig,
    *,
    decoder_only: bool = False,
    cached: bool = True,
    joint_lam: bool = False,
) -> TrainCost | None:
    """Compute the cost of training a component; None for one that is not known here.

    `cached`: the dynamics model reads stored tokens, and stored actions of a frozen latent action
    model. `joint_lam`: that model is trained with it.
    """
    if component == "tokenizer":
        return _tokenizer_cost(config, recipe, decoder_only)
    if component == "lam":
        return _lam_cost(config, recipe)
    if component == "dynamics":
        return _dynamics_cost(config, recipe, cached, joint_lam)
    if component == "upscaler":
        return _upscaler_cost(recipe)
    return None


def count_parameters(module: type[nn.Module], config: WorldModelConfig) -> int:
    """Count the parameters of a module without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in module(config).parameters())


def _halves(c: AutoencoderConfig, patches: int) -> tuple[StackCost, StackCost]:
    encoder, decoder = (
        StackCost(c.dim, c.heads, c.head_dim, blocks, patches, c.temporal)
        for blocks in (c.encoder_blocks, c.decoder_blocks)
    )
    return encoder, decoder


def encoding_flops(config: WorldModelConfig, frames: int) -> float:
    """Compute the FLOPs of encoding a clip's frames into tokens."""
    c, tokens = config.tokenizer, frames * config.grid**2
    ends = 2 * 3 * c.patch**2 * c.dim + 2 * c.dim * c.code_dim + 2 * c.code_dim * c.codes
    return _halves(c, config.grid**2)[0].flops(frames) + tokens * ends


def _tokenizer_cost(config: WorldModelConfig, recipe: TrainConfig, decoder_only: bool) -> TrainCost:
    c, frames = config.tokenizer, recipe.clip_length
    tokens = frames * config.grid**2
    encoder, decoder = _halves(c, config.grid**2)
    decoding = decoder.flops(frames) + tokens * 2 * c.dim * (c.code_dim + 3 * c.patch**2)
    encoding = encoding_flops(config, frames)
    nearest = tokens * 2 * c.code_dim * c.codes
    options = {"half": recipe.precision == "bf16", "checkpointing": recipe.activation_checkpointing}
    total = count_parameters(Tokenizer, config)
    with torch.device("meta"):
        of_decoder = sum(parameter.numel() for parameter in Tokenizer(config).decoder_parameters())
    kept = decoder.activations(frames, **options)
    if decoder_only:
        return TrainCost(encoding + 3 * decoding, tokens, kept, total, of_decoder)
    kept += encoder.activations(frames, **options)
    return TrainCost(3 * (encoding - nearest) + nearest + 3 * decoding, tokens, kept, total, total)


def _lam_flops(config: WorldModelConfig, frames: int) -> tuple[float, float]:
    """Compute the FLOPs of inferring the latent actions of a clip, and of the nearest-code search,
    which has no backward pass.
    """
    c, pairs, patches = config.lam, frames - 1, (config.size // config.lam.patch) ** 2
    to_code = 2 * patches * c.dim**2 + 2 * c.dim * c.code_dim
    pixels = 2 * 3 * c.patch**2 * c.dim  # of a patch into its vector
    reading = _halves(c, patches)[0].flops(frames) + frames * patches * pixels + pairs * to_code
    return reading, pairs * 2 * c.code_dim * c.codes


def _lam_cost(config: WorldModelConfig, recipe: TrainConfig) -> TrainCost:
    c, frames, pairs = config.lam, recipe.clip_length, recipe.clip_length - 1
    patches = (config.size // c.patch) ** 2
    encoder, decoder = _halves(c, patches)
    encoding, nearest = _lam_flops(config, frames)
    pixels = 2 * 3 * c.patch**2 * c.dim  # of a patch, into its vector or out of it
    decoding = decoder.flops(pairs) + pairs * (2 * patches * pixels + 2 * c.code_dim * c.dim)
    options = {"half": recipe.precision == "bf16", "checkpointing": recipe.activation_checkpointing}
    kept = encoder.activations(frames, **options) + decoder.activations(pairs, **options)
    total = count_parameters(LatentActionModel, config)
    return TrainCost(3 * (encoding + decoding) + nearest, frames * patches, kept, total, total)


def _dynamics_cost(
    config: WorldModelConfig, recipe: TrainConfig, cached: bool, joint_lam: bool
) -> TrainCost:
    c, clip = config.dynamics, recipe.clip_length
    patches = config.grid**2
    # The clean past runs together with the masked frames.
    frames = 2 * clip - 2 if c.objective == "clean_past" else clip
    stack = StackCost(c.dim, c.heads, c.head_dim, c.blocks, patches, conditioned=True)
    head = 2 * c.dim * config.tokenizer.codes * (clip - 1) * patches
    kept = stack.activations(
        frames, half=recipe.precision == "bf16", checkpointing=recipe.activation_checkpointing
    )
    kept += (
        3 * 4 * (clip - 1) * patches * config.tokenizer.codes
    )  # logits, and their softmax in fp32
    flops = 3 * (stack.flops(frames) + head) + (0 if cached else encoding_flops(config, clip))
    total = count_parameters(Dynamics, config)
    if joint_lam:
        lam = _lam_cost(config, recipe)
        flops, kept, total = flops + lam.flops, kept + lam.activations, total + lam.parameters
    elif c.latent_actions and not cached:
        flops += sum(_lam_flops(config, clip))
    return TrainCost(flops, clip * patches, kept, total, total)


def _upscaler_cost(recipe: TrainConfig) -> TrainCost:
    """Count the cost of an upscaler with torch on tensors without memory."""
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        upscaler = Upscaler(upscaler_config(recipe.upscaler))
        frames = torch.empty(1, 3, upscaler.cfg.size, upscaler.cfg.size)
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with FlopCounterMode(display=False) as counter, hooks:
            upscaler(frames)
    total = sum(parameter.numel() for parameter in upscaler.parameters())
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - 4 * total
    half = 0.5 if recipe.precision == "bf16" else 1.0
    return TrainCost(3.0 * counter.get_total_flops(), 0, max(activations, 0) * half, total, total)
