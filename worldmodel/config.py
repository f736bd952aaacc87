"""Configuration of world models: frozen dataclasses, presets, and checks of tensors against them.

Shapes: B clips, T frames, C=3, H=W=size pixels, h=w=size/patch patches, K codes (id K is the mask),
A actions.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from envs.controls import custom_actions
from envs.utils.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 5
"""Frames of a window of the reward."""
CONTEXT = 2
"""Given frames of such a window; the model sees them and all four actions."""

MASKED_ACTION = -1
"""Value in batches of a recorded action that is hidden from the model."""
Device = Literal["auto", "cpu", "cuda", "mps"]
"""Device as users give it; auto is the first GPU, or the CPU if there is none."""
Precision = Literal["auto", "bf16", "fp32"]
"""Precision as users give it; bf16 is autocast, auto is bf16 where it is fast."""
GenerationMode = Literal["one_pass", "autoregressive"]
"""Generate all frames together, or `DynamicsConfig.chunk_size` frames at a time."""
FidResize = Literal["nearest", "bilinear"]
"""Enlargement for Inception. nearest: pixels repeated, values cut to bytes, as the paper's
code does; bilinear: values rounded, then enlarged by Inception's file, as common tools do."""
ReplacedActions = Literal["all", "last"]
"""Actions that delta-PSNR replaces. all: those into the predicted frames, drawn uniformly, so that
the true one may be drawn; last: only the one into the measured frame, always by another, as the
paper's code does."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} = {value!r}: choose {' or '.join(choices)}")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings shared by tokenizer and latent action model: ST-ViViT encoder, codebook, decoder."""

    patch: int = 4
    """Side of a patch in pixels; each patch becomes one token."""
    dim: int = 512
    """Width."""
    heads: int = 8
    """Attention heads."""
    head_dim: int = 64
    """Width of a head."""
    encoder_blocks: int = 8
    """Space-time blocks of the encoder."""
    decoder_blocks: int = 8
    """Time-space blocks of the decoder."""
    patch_norm: bool = True
    """Apply LayerNorm to the pixels of a patch before the embedding (the paper). It maps all plain
    patches to the same vector, whatever their brightness."""
    temporal: bool = True
    """Use temporal attention. Without it a frame sees only the two frames before it, through the
    PEG."""
    codes: int = 1024
    """K, the size of the codebook."""
    code_dim: int = 32
    """Width of a code."""
    codebook: str = "gradient"
    """Way to learn codes: gradient (codebook MSE; the paper) or ema (moving averages of their
    features)."""
    ema_decay: float = 0.99
    """Decay of the moving averages of code use and, for ema, of the codes."""
    commitment: float = 0.25
    """Weight of the commitment MSE."""
    quantizer_start: float = 0.0
    """Share of the run after which features are quantised; before it they pass unquantised."""
    reseed_below: float = 0.02
    """Re-seed a code from the batch if its use falls below this share of the mean use; 0 for
    never."""
    reseed_error: float = 0.02
    """Re-seed only to features whose 1 - cosine to their code is at least this. Otherwise the
    background, which hardly changes, gets hundreds of codes that differ by noise, and the tokens
    of a still scene flicker."""
    reseed_until: float = 0.8
    """Share of the run after which no code is re-seeded, so that training ends on a fixed set of
    codes."""
    changed_pixel_weight: float = 1.0
    """Weight, in the reconstruction loss, of pixels that differ from the previous frame."""


@dataclass(frozen=True)
class TokenizerConfig(AutoencoderConfig):
    """ST-ViViT VQ-VAE. The defaults are those of Table 7."""


@dataclass(frozen=True)
class LatentActionConfig(AutoencoderConfig):
    """Latent action model. The defaults are those of Table 9."""

    codes: int = 7
    """K, the number of latent actions."""
    residual: bool = False
    """Predict the change from frame t to t+1 instead of frame t+1 itself (the paper)."""
    difference: bool = False
    """Infer an action from the difference between the features of two frames instead of the
    features of frame t+1."""


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
    """Training objective: masked (one mask ratio for all later frames of a clip; the paper),
    masked_frames (one for each frame, as in autoregressive sampling) or clean_past (own tokens
    masked, earlier frames clean)."""
    chunk_lengths: tuple[int, ...] = (1, 2, 0)
    """clean_past: numbers of frames predicted together, one of which is drawn for each batch; 0 is
    the whole clip."""
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
class SamplingConfig:
    """Settings of MaskGIT sampling."""

    steps: int = 25
    """Passes for each chunk of frames."""
    temperature: float = 1.0
    """Scale of the Gumbel noise in the first pass; it anneals to 0."""
    mode: GenerationMode = "one_pass"
    """Generate all frames together, or dynamics.chunk_size frames at a time."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"steps = {self.steps}: sampling needs 1 pass or more")
        _require(
            0 <= self.temperature < math.inf,
            f"temperature = {self.temperature}: expected 0 or more",
        )
        _require_choice("mode", self.mode, get_args(GenerationMode))


@dataclass(frozen=True)
class WorldModelConfig:
    """Tokenizer, latent action model and dynamics. The defaults are the paper's."""

    size: int = 64
    """Side of a frame in pixels."""
    frames: int = 16
    """Longest attention window in frames; it slides in longer generation."""
    actions: int = 5
    """A, the number of actions of the dynamics: real ones, or lam.codes latent ones."""
    action_names: tuple[str, ...] = ()
    """Names of the real actions if they were chosen; empty for the games' own."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    lam: LatentActionConfig = field(default_factory=LatentActionConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)

    def __post_init__(self) -> None:
        dynamics = self.dynamics
        for name, part in (("tokenizer", self.tokenizer), ("lam", self.lam)):
            _require(
                self.size % part.patch == 0,
                f"size = {self.size} is not a multiple of {name}.patch = {part.patch}",
            )
            _require_choice(f"{name}.codebook", part.codebook, ("gradient", "ema"))
        objectives = ("masked", "masked_frames", "clean_past")
        _require_choice("dynamics.objective", dynamics.objective, objectives)
        _require(
            self.frames >= 2,
            f"frames = {self.frames}: a window needs 2 frames or more to hold an action",
        )
        _require(
            1 <= dynamics.chunk_size < self.frames,
            f"dynamics.chunk_size = {dynamics.chunk_size}: expected 1 to {self.frames - 1}",
        )
        _require(
            min(dynamics.chunk_lengths, default=-1) >= 0,
            f"dynamics.chunk_lengths = {dynamics.chunk_lengths}: give lengths of 0 (all) or more",
        )
        _require(
            len(self.action_names) in (0, self.actions),
            f"action_names: {len(self.action_names)} names for {self.actions} actions",
        )
        _require(
            not dynamics.latent_actions or self.actions == self.lam.codes,
            f"actions = {self.actions}: a dynamics on latent actions has "
            f"lam.codes = {self.lam.codes}",
        )

    @property
    def grid(self) -> int:
        """h = w, patches along a side."""
        return self.size // self.tokenizer.patch

    @property
    def mask_id(self) -> int:
        """Token id of a masked token: K."""
        return self.tokenizer.codes

    def with_actions(self, names: Sequence[str]) -> "WorldModelConfig":
        """Return the same configuration with real actions of these names."""
        chosen = custom_actions(names)
        return dataclasses.replace(self, actions=len(names), action_names=chosen)

    def with_latent_actions(self) -> "WorldModelConfig":
        """Return the same configuration with a dynamics model on latent actions."""
        dynamics = dataclasses.replace(self.dynamics, latent_actions=True)
        return dataclasses.replace(self, actions=self.lam.codes, action_names=(), dynamics=dynamics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, which `from_dict` reads."""
        plain = dataclasses.asdict(self)
        plain["dynamics"]["chunk_lengths"] = list(self.dynamics.chunk_lengths)
        if self.action_names:
            plain["action_names"] = list(self.action_names)
        else:  # runs that were begun before there were names go on
            del plain["action_names"]
        return plain

    @classmethod
    def from_dict(cls, plain: Any) -> "WorldModelConfig":
        """Build the configuration from `to_dict` data. Raises InputError for other keys."""
        parts: dict[str, Any] = {
            "tokenizer": TokenizerConfig,
            "lam": LatentActionConfig,
            "dynamics": DynamicsConfig,
        }
        if isinstance(plain, dict):
            plain = {**plain, "action_names": tuple(plain.get("action_names", ()))}
        values = _checked_fields(cls, plain)
        for name, part in parts.items():
            fields = _checked_fields(part, values[name], f"{name}.")
            if name == "dynamics":
                fields["chunk_lengths"] = tuple(fields["chunk_lengths"])
            values[name] = part(**fields)
        return cls(**values)

    def check_frames(self, frames_BTCHW: "Tensor", *, values: bool = True) -> None:
        """Raise InputError unless frames are floats in [0, 1], (B, T, 3, size, size), T >= 1.

        A check of `values` waits for the device, here and in the next two.
        """
        shape, size = tuple(frames_BTCHW.shape), self.size
        _require(
            len(shape) == 5 and shape[2:] == (3, size, size) and 0 not in shape,
            f"frames: expected shape (B, T, 3, {size}, {size}), got {shape}",
        )
        _require(
            frames_BTCHW.is_floating_point(),
            f"frames: expected floats in [0, 1], got {frames_BTCHW.dtype}: divide uint8 by 255",
        )
        if not values:
            return
        low, high = _bounds(frames_BTCHW)
        _require(
            low >= -1e-4 and high <= 1 + 1e-4,
            f"frames: expected values in [0, 1], got {low:.4g} to {high:.4g}",
        )

    def check_tokens(
        self, tokens_BThw: "Tensor", *, masked: bool = False, values: bool = True
    ) -> None:
        """Raise InputError unless tokens are integers in [0, K), (B, T, h, w); K too if masked."""
        shape, grid = tuple(tokens_BThw.shape), self.grid
        _require(
            len(shape) == 4 and shape[2:] == (grid, grid) and 0 not in shape,
            f"tokens: expected shape (B, T, {grid}, {grid}), got {shape}",
        )
        _check_integers(tokens_BThw, "tokens", self.tokenizer.codes - (not masked), values)

    def check_actions(
        self, actions_BT: "Tensor", batch: int, count: int, *, values: bool = True
    ) -> None:
        """Raise InputError unless actions are integers in [0, A) of shape (batch, count)."""
        check_action_ids(actions_BT, batch, count, self.actions, values=values)


def check_action_ids(
    actions_BT: "Tensor", batch: int, count: int, actions: int, *, values: bool = True
) -> None:
    """Raise InputError unless actions are integers in [0, actions) of shape (batch, count)."""
    shape = tuple(actions_BT.shape)
    _require(shape == (batch, count), f"actions: expected shape ({batch}, {count}), got {shape}")
    _check_integers(actions_BT, "actions", actions - 1, values)


def _bounds(tensor: "Tensor") -> list[Any]:
    """Return the smallest and the largest value. Wait for the device once."""
    import torch  # not at the top, so that configurations load without it

    bounds: list[Any] = torch.stack(tensor.detach().aminmax()).tolist()
    return bounds


def _check_integers(tensor: "Tensor", name: str, top: int, values: bool) -> None:
    import torch  # not at the top, so that configurations load without it

    expected = f"{name}: expected integers in [0, {top}], got"
    integers = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    _require(integers, f"{expected} {tensor.dtype}")
    if values and tensor.numel():
        low, high = _bounds(tensor)
        _require(low >= 0 and high <= top, f"{expected} {low} to {high}")


def _checked_fields(cls: Any, plain: Any, prefix: str = "") -> dict[str, Any]:
    """Return a copy of the fields of a dataclass, none of which may be missing or unknown."""
    part = prefix[:-1] or "the model"
    _require(isinstance(plain, dict), f"configuration: expected an object for {part}, got {plain}")
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
            patch=8, dim=32, heads=2, head_dim=16, encoder_blocks=1, decoder_blocks=1,
            codes=64, code_dim=8, codebook="ema",
        ),
        lam=LatentActionConfig(
            patch=8, dim=32, heads=2, head_dim=16, encoder_blocks=1, decoder_blocks=1,
            code_dim=8, codebook="ema", patch_norm=False, commitment=0.01, residual=True,
        ),
        dynamics=DynamicsConfig(
            dim=32, heads=2, head_dim=16, blocks=2, objective="clean_past", all_masked=0.5
        ),
    ),
    "cpu": WorldModelConfig(
        tokenizer=TokenizerConfig(
            patch=8, dim=128, heads=2, encoder_blocks=1, decoder_blocks=1, temporal=False,
            patch_norm=False, codebook="ema", quantizer_start=0.3, reseed_error=0.05,
        ),
        lam=LatentActionConfig(
            patch=8, dim=128, heads=2, encoder_blocks=1, decoder_blocks=1, temporal=False,
            patch_norm=False, codebook="ema", quantizer_start=0.3, commitment=0.0,
            changed_pixel_weight=8.0, residual=True,
        ),
        dynamics=DynamicsConfig(
            dim=128, heads=2, blocks=2, objective="clean_past", chunk_lengths=(1, 1, 3),
            all_masked=0.5, chunk_size=1,
        ),
    ),
    "gpu": WorldModelConfig(
        frames=8,
        tokenizer=TokenizerConfig(
            dim=256, heads=4, encoder_blocks=4, decoder_blocks=4, patch_norm=False, codebook="ema",
            quantizer_start=0.2, reseed_error=0.05,
        ),
        lam=LatentActionConfig(
            dim=256, heads=4, encoder_blocks=4, decoder_blocks=4, patch_norm=False, codebook="ema",
            quantizer_start=0.2, commitment=0.0, changed_pixel_weight=8.0, residual=True,
        ),
        dynamics=DynamicsConfig(
            dim=320, heads=5, blocks=6, objective="clean_past", chunk_lengths=(1, 1, 3),
            all_masked=0.5, chunk_size=1,
        ),
    ),
    "paper": WorldModelConfig(),
}  # fmt: skip
"""debug: steps take milliseconds, learns little. cpu: learns most in minutes on two cores. gpu:
between cpu and paper, learns in minutes on one GPU of 24 GB. paper: Tables 7-9."""


def preset(name: str) -> WorldModelConfig:
    """Return the preset debug, cpu, gpu or paper. Raises InputError for another name."""
    _require(name in PRESETS, f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
