"""Configuration of world models: frozen dataclasses, named presets, and checks of their inputs.

Shapes: B clips, T frames, C=3, H=W=size pixels, h=w=size/patch patches, K codes (id K is the mask),
A actions.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from envs.utils.errors import InputError

MASKED_ACTION = -1
"""Value in batches of a recorded action that the model may not see."""
GenerationMode = Literal["one_pass", "autoregressive"]
"""Way to generate: all frames together, or `DynamicsConfig.chunk_size` frames at a time."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Common part of tokenizer and latent action model: an ST-ViViT encoder and decoder and a
    codebook.
    """

    patch: int = 4
    """Pixels of a patch's side: one token a patch."""
    dim: int = 512
    """Width."""
    heads: int = 8
    """Attention heads."""
    head_dim: int = 64
    """Width of a head."""
    encoder_blocks: int = 8
    """Space-time blocks before the quantiser."""
    decoder_blocks: int = 8
    """Time-space blocks after it."""
    patch_norm: bool = True
    """LayerNorm of a patch's pixels before they are embedded (the paper's). It makes plain patches
    of different brightness equal: without it they can be told apart."""
    temporal: bool = True
    """Give blocks a temporal half; without it a frame sees only the two before it, through the
    PEG."""
    codes: int = 1024
    """K, the codebook's size."""
    code_dim: int = 32
    """Width of a code."""
    codebook: str = "gradient"
    """Way to learn codes: gradient (the paper: codebook MSE) or ema (moving average of their
    features)."""
    ema_decay: float = 0.99
    """Decay of the moving averages of code use and, with codebook = ema, of the codes."""
    commitment: float = 0.25
    """Weight of the commitment MSE."""
    quantizer_start: float = 0.0
    """Share of the run after which features are quantised; before it they pass unquantised."""
    reseed_below: float = 0.02
    """A code whose use falls below this share of the mean use is dead and re-seeded from the batch;
    0 for never."""
    reseed_error: float = 0.02
    """Dead codes move only to features whose 1 - cosine to their code is at least this. Otherwise
    the background, which hardly ever changes, gets hundreds of codes that differ by noise, and
    tokens of a still scene flicker."""
    reseed_until: float = 0.8
    """Share of the run after which no code is re-seeded, so that the end of the run refines a fixed
    set of codes."""
    changed_pixel_weight: float = 1.0
    """Weight, in the reconstruction loss, of pixels that differ from the frame before."""


@dataclass(frozen=True)
class TokenizerConfig(AutoencoderConfig):
    """ST-ViViT VQ-VAE. The defaults are those of Table 7."""


@dataclass(frozen=True)
class LatentActionConfig(AutoencoderConfig):
    """Latent action model. The defaults are those of Table 9."""

    codes: int = 7
    """K, the number of latent actions."""
    residual: bool = False
    """Let the decoder predict the change from frame t to t+1 instead of frame t+1 itself (the
    paper)."""
    difference: bool = False
    """Infer an action from the difference of two frames' features instead of those of frame t+1."""


@dataclass(frozen=True)
class DynamicsConfig:
    """MaskGIT dynamics. The defaults are those of Table 8."""

    dim: int = 512
    """Width."""
    heads: int = 8
    """Attention heads."""
    head_dim: int = 64
    """Width of a head."""
    blocks: int = 12
    """Space-time blocks."""
    token_input: bool = True
    """Token input skip: add a projection of the tokenizer's code vector to the learnt embedding."""
    objective: str = "masked"
    """Training objective: masked (the paper: one mask ratio for all later frames of a clip),
    masked_frames (one for each frame, as in autoregressive sampling) or clean_past (own tokens
    masked, earlier frames clean)."""
    chunk_lengths: tuple[int, ...] = (1, 2, 0)
    """clean_past: frames that are predicted together, drawn from these for each batch; 0 is the
    whole clip."""
    all_masked: float = 0.0
    """clean_past: share of chunks whose tokens are all masked, as in the first sampling step."""
    tdce_weight: float = 3.0
    """Lambda of the token distance cross-entropy (Eq. 1); 0 is plain cross-entropy."""
    chunk_size: int = 2
    """Frames that autoregressive generation predicts at a time."""
    latent_actions: bool = False
    """Condition on the codes of a latent action model (GenieRedux) instead of real actions
    (GenieRedux-G)."""


@dataclass(frozen=True)
class WorldModelConfig:
    """Tokenizer, latent action model and dynamics for frames of one size. The defaults are the
    paper's.
    """

    size: int = 64
    """Pixels of a frame's side."""
    frames: int = 16
    """Frames that attention spans at most, and the length of the window that slides in long
    generation."""
    actions: int = 5
    """A, number of actions of the dynamics: the real ones, or lam.codes latent ones."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    lam: LatentActionConfig = field(default_factory=LatentActionConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)

    def __post_init__(self) -> None:
        for part in ("tokenizer", "lam"):
            patch = getattr(self, part).patch
            if self.size % patch:
                raise InputError(f"size = {self.size} is not a multiple of {part}.patch = {patch}")
        choices = (
            ("tokenizer.codebook", self.tokenizer.codebook, ("gradient", "ema")),
            ("lam.codebook", self.lam.codebook, ("gradient", "ema")),
            (
                "dynamics.objective",
                self.dynamics.objective,
                ("masked", "masked_frames", "clean_past"),
            ),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise InputError(f"{name} = {value!r}: choose {' or '.join(allowed)}")
        if self.frames < 2:
            raise InputError(
                f"frames = {self.frames}: a window needs 2 frames or more to hold an action"
            )
        if not 1 <= self.dynamics.chunk_size < self.frames:
            raise InputError(
                f"dynamics.chunk_size = {self.dynamics.chunk_size}: expected 1 to {self.frames - 1}"
            )
        if not self.dynamics.chunk_lengths or min(self.dynamics.chunk_lengths) < 0:
            raise InputError(
                f"dynamics.chunk_lengths = {self.dynamics.chunk_lengths}: "
                "give lengths of 0 (all) or more"
            )
        if self.dynamics.latent_actions and self.actions != self.lam.codes:
            raise InputError(
                f"actions = {self.actions}: "
                f"a dynamics on latent actions has lam.codes = {self.lam.codes}"
            )

    @property
    def grid(self) -> int:
        """h = w, patches along a side."""
        return self.size // self.tokenizer.patch

    @property
    def mask_id(self) -> int:
        """The token id that stands for a masked token: K."""
        return self.tokenizer.codes

    def with_latent_actions(self) -> "WorldModelConfig":
        """Return the same with a dynamics model whose actions are the codes of the latent action
        model.
        """
        dynamics = dataclasses.replace(self.dynamics, latent_actions=True)
        return dataclasses.replace(self, actions=self.lam.codes, dynamics=dynamics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, which `from_dict` reads."""
        plain = dataclasses.asdict(self)
        plain["dynamics"]["chunk_lengths"] = list(self.dynamics.chunk_lengths)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "WorldModelConfig":
        """Build the configuration from the data of `to_dict`. Raises InputError for unknown,
        missing or mistyped keys.
        """
        parts = {
            "tokenizer": TokenizerConfig,
            "lam": LatentActionConfig,
            "dynamics": DynamicsConfig,
        }
        values = _checked(cls, plain, "")
        for name, part in parts.items():
            if not isinstance(values[name], dict):
                raise InputError(f"configuration {name}: expected an object, got {values[name]!r}")
            inner = _checked(part, values[name], f"{name}.")
            if name == "dynamics":
                inner["chunk_lengths"] = tuple(inner["chunk_lengths"])
            values[name] = part(**inner)
        return cls(**values)

    def check_frames(self, frames_BTCHW: Tensor) -> None:
        """Raise InputError unless frames are floats in [0, 1] of shape (B, T, 3, size, size), T >=
        1.
        """
        shape = tuple(frames_BTCHW.shape)
        if len(shape) != 5 or shape[2:] != (3, self.size, self.size) or 0 in shape:
            raise InputError(
                f"frames: expected shape (B, T, 3, {self.size}, {self.size}), got {shape}"
            )
        if not frames_BTCHW.is_floating_point():
            raise InputError(
                f"frames: expected floats in [0, 1], got {frames_BTCHW.dtype}: divide uint8 by 255"
            )
        low, high = (bound.item() for bound in frames_BTCHW.detach().aminmax())
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise InputError(f"frames: expected values in [0, 1], got {low:.4g} to {high:.4g}")

    def check_tokens(self, tokens_BThw: Tensor, *, masked: bool = False) -> None:
        """Raise InputError unless tokens are integers in [0, K), with `masked` [0, K], of shape (B,
        T, h, w).
        """
        shape, top = tuple(tokens_BThw.shape), self.tokenizer.codes - (not masked)
        if len(shape) != 4 or shape[2:] != (self.grid, self.grid) or 0 in shape:
            raise InputError(
                f"tokens: expected shape (B, T, {self.grid}, {self.grid}), got {shape}"
            )
        _check_integers(tokens_BThw, "tokens", top)

    def check_actions(self, actions_BT: Tensor, batch: int, count: int) -> None:
        """Raise InputError unless actions are integers in [0, A) of shape (batch, count)."""
        check_action_ids(actions_BT, batch, count, self.actions)


def check_action_ids(actions_BT: Tensor, batch: int, count: int, actions: int) -> None:
    """Raise InputError unless actions are integers in [0, actions) of shape (batch, count)."""
    if tuple(actions_BT.shape) != (batch, count):
        raise InputError(
            f"actions: expected shape ({batch}, {count}), got {tuple(actions_BT.shape)}"
        )
    _check_integers(actions_BT, "actions", actions - 1)


def _check_integers(values: Tensor, name: str, top: int) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{name}: expected integers in [0, {top}], got {values.dtype}")
    if values.numel():
        low, high = (int(bound.item()) for bound in values.aminmax())
        if low < 0 or high > top:
            raise InputError(f"{name}: expected integers in [0, {top}], got {low} to {high}")


def _checked(cls: Any, plain: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(cls)}
    for name in sorted(plain.keys() ^ names):
        problem = "is unknown" if name in plain else "is missing"
        raise InputError(
            f"configuration: {prefix}{name} {problem}: it belongs to another version of the model"
        )
    return dict(plain)


PRESETS: dict[str, WorldModelConfig] = {
    "debug": WorldModelConfig(
        frames=8,
        tokenizer=TokenizerConfig(
            patch=8,
            dim=32,
            heads=2,
            head_dim=16,
            encoder_blocks=1,
            decoder_blocks=1,
            codes=64,
            code_dim=8,
            codebook="ema",
        ),
        lam=LatentActionConfig(
            patch=8,
            dim=32,
            heads=2,
            head_dim=16,
            encoder_blocks=1,
            decoder_blocks=1,
            patch_norm=False,
            code_dim=8,
            codebook="ema",
            commitment=0.01,
            residual=True,
        ),
        dynamics=DynamicsConfig(
            dim=32, heads=2, head_dim=16, blocks=2, objective="clean_past", all_masked=0.5
        ),
    ),
    "cpu": WorldModelConfig(
        tokenizer=TokenizerConfig(
            dim=128,
            heads=2,
            encoder_blocks=1,
            decoder_blocks=1,
            temporal=False,
            patch_norm=False,
            codebook="ema",
            quantizer_start=0.3,
            reseed_error=0.05,
        ),
        lam=LatentActionConfig(
            patch=8,
            dim=128,
            heads=2,
            encoder_blocks=1,
            decoder_blocks=1,
            patch_norm=False,
            codebook="ema",
            quantizer_start=0.3,
            commitment=0.0,
            temporal=False,
            changed_pixel_weight=8.0,
            residual=True,
        ),
        dynamics=DynamicsConfig(
            dim=128,
            heads=2,
            blocks=2,
            objective="clean_past",
            chunk_lengths=(1, 1, 2, 0),
            all_masked=0.5,
            chunk_size=1,
        ),
    ),
    "paper": WorldModelConfig(),
}
"""debug: steps take milliseconds, learns little. cpu: learns most in minutes on two cores. paper:
Tables 7-9."""


def preset(name: str) -> WorldModelConfig:
    """Return the preset debug, cpu or paper. Raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
