"""World models whole: GenieRedux-G and GenieRedux continue films, say how unsure they are, and are saved_model.

Shapes: B clips, P given frames, F predicted frames, C=3, H=W pixels, h=w patches, N=h*w, K codes.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from worldmodel.config import WorldModelConfig, check_action_ids
from worldmodel.models import saved_model
from worldmodel.models.action_map import ActionMap
from worldmodel.models.cpu_kernels import cached_weights
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.maskgit import sample
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import KVCache
from worldmodel.models.weights import check_lam, check_tokenizer

_MODES = ("one_pass", "autoregressive")
_BATCH = 32
"""Windows in a pass of the reward query, so that its memory does not grow with the request."""


class WorldModel(nn.Module):
    """What GenieRedux-G and GenieRedux have in common: all but whose actions they take.

    Raises InputError where the dynamics was trained with another tokenizer. One that has no codes yet takes over the
    tokenizer's.
    """

    PARTS: ClassVar[dict[str, Any]]
    """Name of each part, as the constructor takes them, and its class."""

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics) -> None:
        super().__init__()
        if tokenizer.cfg.tokenizer != dynamics.cfg.tokenizer or tokenizer.cfg.size != dynamics.cfg.size:
            raise InputError(
                "tokenizer and dynamics are of different configurations: use the tokenizer it was trained with"
            )
        if not dynamics.has_codebook:
            dynamics.set_codebook(tokenizer.codebook.detach())
        else:
            check_tokenizer(tokenizer, dynamics)
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.cfg: WorldModelConfig = dynamics.cfg

    @property
    def actions(self) -> int:
        """How many actions it can be driven by: they are 0 to this number - 1."""
        return self.cfg.actions

    def check_actions(self, actions_BA: Tensor, batch: int, count: int) -> None:
        """Raises InputError unless these are actions that it can be driven by, of shape (batch, count)."""
        self.cfg.check_actions(actions_BA, batch, count)

    def encode_actions(self, actions_BA: Tensor, first: bool = True) -> Tensor:
        """What the dynamics is told of actions, see `Dynamics.encode_actions`."""
        return self.dynamics.encode_actions(actions_BA, first)

    def for_game(self, game: str | None) -> Self:
        """The same weights, driven by the buttons of a game (None: of any), which is what recorded episodes hold."""
        return self

    @torch.no_grad()
    def generate(
        self,
        frames_BPCHW: Tensor,
        actions_BA: Tensor,
        *,
        steps: int = 25,
        temperature: float = 1.0,
        mode: str = "one_pass",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue films. frames (B, P, 3, H, W) in [0, 1], actions (B, P+F-1) -> the F frames that follow, in [0, 1].

        `one_pass` predicts all frames together, as many at a time as the window holds; `autoregressive`
        cfg.dynamics.chunk_size at a time, `steps` passes each. The given frames are tokenised once; keys, values and PEG
        inputs of finished frames are kept, so that a pass computes only the frames that are being generated. Past
        cfg.frames the window slides. Noise comes from `generator`. Raises InputError for bad input.
        """
        tokens = self.generate_tokens(
            frames_BPCHW, actions_BA, steps=steps, temperature=temperature, mode=mode, generator=generator
        )
        return self.tokenizer.decode(tokens)[:, frames_BPCHW.shape[1] :]

    @torch.no_grad()
    @cached_weights()
    def generate_tokens(
        self,
        frames_BPCHW: Tensor,
        actions_BA: Tensor,
        *,
        steps: int = 25,
        temperature: float = 1.0,
        mode: str = "one_pass",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What `generate` decodes: the tokens of the given and of the predicted frames, int64 (B, P+F, h, w)."""
        self.cfg.check_frames(frames_BPCHW)
        given = frames_BPCHW.shape[1]
        wanted = actions_BA.shape[1] + 1 - given if actions_BA.ndim == 2 else 0
        if wanted < 1:
            raise InputError(
                f"actions: expected shape (B, {given} or more), got {tuple(actions_BA.shape)}: {given} frames are given"
            )
        self.check_actions(actions_BA, len(frames_BPCHW), given + wanted - 1)
        _check_sampling(steps, temperature, mode)
        window = self.cfg.frames
        at_once = window - min(given, window // 2) if mode == "one_pass" else self.cfg.dynamics.chunk_size
        together = min(wanted, at_once)
        conditions = self.encode_actions(actions_BA)
        tokens = self.tokenizer.encode(frames_BPCHW)
        past = self.prefill(tokens, conditions[:, :given], None)
        while tokens.shape[1] < given + wanted:
            begin = tokens.shape[1]
            ahead = conditions[:, begin : begin + together]
            made = self.sample_frames(past.last_frames(window - together), ahead, steps, temperature, generator)
            tokens = torch.cat([tokens, made], 1)
            if tokens.shape[1] < given + wanted:
                past = self.prefill(made, ahead, past)
        return tokens

    @torch.no_grad()
    def token_entropy(self, frames_BTCHW: Tensor, actions_BA: Tensor, *, context: int = 2, steps: int = 1) -> Tensor:
        """Eq. 2: how unsure the model is of each token of a window's last frame. -> (B, N) in [0, 1], fp32.

        frames (B, T, 3, H, W) in [0, 1] and the actions (B, T-1) between them; T is 5 for the paper's reward. The first
        `context` frames are given and tokenised once; the T - context others are predicted in `steps` MaskGIT passes
        without noise, and nothing is decoded. u_i = -sum_k p_k ln p_k / ln K of the pass in which token i was decided.
        Raises InputError for bad input.
        """
        self.cfg.check_frames(frames_BTCHW)
        frames = frames_BTCHW.shape[1]
        if not 1 <= context < frames <= self.cfg.frames:
            raise InputError(
                f"token entropy: expected 1 <= context < frames <= {self.cfg.frames}, got {context} and {frames}"
            )
        self.check_actions(actions_BA, len(frames_BTCHW), frames - 1)
        return self.future_token_entropy(frames_BTCHW[:, :context], actions_BA, steps=steps)

    @torch.no_grad()
    def future_token_entropy(self, given_BPCHW: Tensor, actions_BA: Tensor, *, steps: int = 1) -> Tensor:
        """`token_entropy` of the frame that the last action leads to, without the frames that it does not look at.

        given (B, P, 3, H, W) in [0, 1], actions (B, A) from the first of them on, P <= A < cfg.frames. -> (B, N) in
        [0, 1], fp32. Raises InputError for bad input.
        """
        ahead = actions_BA.shape[1] + 1 if actions_BA.ndim == 2 else 0
        if not 1 <= given_BPCHW.shape[1] < ahead <= self.cfg.frames:
            raise InputError(
                f"token entropy: expected 1 <= given frames <= actions < {self.cfg.frames}, "
                f"got {given_BPCHW.shape[1]} and {ahead - 1}"
            )
        self.check_actions(actions_BA, len(given_BPCHW), ahead - 1)
        _check_sampling(steps, 0.0, "one_pass")
        parts = zip(given_BPCHW.split(_BATCH), actions_BA.split(_BATCH), strict=True)
        return torch.cat([self._entropy(given, actions, steps) for given, actions in parts])

    @torch.no_grad()
    def query_hidden(self, given_BPCHW: Tensor, actions_BA: Tensor) -> Tensor:
        """Return the hidden states (B, N, D) of the frame that the last action leads to.

        The query of the reward: all frames after the given ones are masked and predicted in one
        pass. `dynamics.head` turns the hidden states into logits of the tokens. Inputs are those of
        `future_token_entropy`, on the model's device.
        """
        past, ahead = self._given(given_BPCHW, actions_BA)
        hidden, _ = self.dynamics.forward_with_cache(self._mask_tokens(ahead), ahead, past)
        return hidden[:, -1].flatten(1, 2)

    def _entropy(self, given_BPCHW: Tensor, actions_BA: Tensor, steps: int) -> Tensor:
        if steps == 1:
            return normalised_entropy(self.dynamics.head(self.query_hidden(given_BPCHW, actions_BA)))
        past, ahead = self._given(given_BPCHW, actions_BA)
        entropy = torch.zeros(len(ahead), self.cfg.grid**2, device=ahead.device)
        undecided = torch.ones_like(entropy, dtype=torch.bool)

        def note(logits_BMK: Tensor, tokens_BM: Tensor) -> None:
            last = tokens_BM[:, -entropy.shape[1] :] == self.cfg.mask_id
            now = undecided & ~last
            entropy[now] = normalised_entropy(logits_BMK[:, -entropy.shape[1] :])[now]
            undecided.copy_(last)

        self.sample_frames(past, ahead, steps, 0.0, None, note)
        return entropy

    def _given(self, given_BPCHW: Tensor, actions_BA: Tensor) -> tuple[KVCache, Tensor]:
        """Return the past of the given frames and the conditions (B, F, A) of the frames after them."""
        given = given_BPCHW.shape[1]
        conditions = self.encode_actions(actions_BA)
        past = self.prefill(self.tokenizer.encode(given_BPCHW), conditions[:, :given], None)
        return past, conditions[:, given:]

    def prefill(self, tokens_BFhw: Tensor, conditions_BFA: Tensor, past: KVCache | None) -> KVCache:
        """Take finished frames into the past, half a window at a time where they are many."""
        window = self.cfg.frames
        stretch = tokens_BFhw.shape[1] if tokens_BFhw.shape[1] < window else window // 2
        for tokens, conditions in zip(tokens_BFhw.split(stretch, 1), conditions_BFA.split(stretch, 1), strict=True):
            kept = past.last_frames(window - stretch) if past else None
            _, past = self.dynamics.forward_with_cache(tokens, conditions, kept)
        assert past is not None
        return past

    @cached_weights()
    def sample_frames(
        self,
        past: KVCache,
        ahead_BFA: Tensor,
        steps: int,
        temperature: float,
        generator: torch.Generator | None,
        on_step: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Tokens of the frames that follow the past under the given conditions, sampled together. -> BFhw."""
        start, bias = self._mask_tokens(ahead_BFA), self.dynamics.bias()

        def logits_of(tokens_BM: Tensor) -> Tensor:
            hidden, _ = self.dynamics.forward_with_cache(tokens_BM.view_as(start), ahead_BFA, past, bias_HNN=bias)
            return self.dynamics.head(hidden).flatten(1, 3)

        made = sample(
            logits_of,
            start.flatten(1),
            self.cfg.mask_id,
            steps=steps,
            temperature=temperature,
            generator=generator,
            on_step=on_step,
        )
        return made.view_as(start)

    def _mask_tokens(self, ahead_BFA: Tensor) -> Tensor:
        shape = (*ahead_BFA.shape[:2], self.cfg.grid, self.cfg.grid)
        return torch.full(shape, self.cfg.mask_id, device=ahead_BFA.device)

    def save(self, path: str | Path) -> None:
        """Write a folder: `<part>.safetensors` of each part, what `_save_extra` adds and, last, `manifest.json`.

        Whole or absent: it is written under a temporary name and renamed. An existing folder is replaced.
        """
        parts = {name: getattr(self, name) for name in self.PARTS}
        saved_model.save_model(Path(path), type(self).__name__, self.cfg, parts, self._save_extra)

    def _save_extra(self, folder: Path) -> None:
        """Write what else belongs to the model."""

    def _load_extra(self, folder: Path) -> None:
        """Read it, where it is there."""

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """The model that `save` wrote, in evaluation mode. Nothing is unpickled.

        Raises InputError where a file is missing, changed or of another architecture, and for another kind of model; a
        model is never partly loaded.
        """
        path = Path(path)
        manifest = saved_model.read_manifest(path)
        if manifest["model"] != cls.__name__:
            raise InputError(f"{path} holds a {manifest['model']}, not a {cls.__name__}: give another folder")
        cfg = WorldModelConfig.from_dict(manifest["config"])
        parts = {name: kind(cfg) for name, kind in cls.PARTS.items()}
        saved_model.read_model(path, manifest, parts)
        model = cls(**parts)
        model._load_extra(path)
        return model.to(device).eval()


class GenieReduxG(WorldModel):
    """A world model that is driven by real actions.

    Raises InputError where tokenizer and dynamics do not belong together, and for a dynamics on latent actions.
    """

    PARTS: ClassVar[dict[str, Any]] = {"tokenizer": Tokenizer, "dynamics": Dynamics}

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics) -> None:
        super().__init__(tokenizer, dynamics)
        if self.cfg.dynamics.latent_actions:
            raise InputError("dynamics was trained on latent actions: build a GenieRedux of it and its LAM")


class GenieRedux(WorldModel):
    """A world model that is driven by the latent actions of `lam`, or through `action_map` by real ones.

    As it is it takes latent actions, such as `infer` reads from frames; `for_game` gives the same model driven by
    buttons. Raises InputError where the three do not belong together, and for a dynamics on real actions. A dynamics
    that was trained with no latent action model yet takes over this one.
    """

    PARTS: ClassVar[dict[str, Any]] = {"tokenizer": Tokenizer, "lam": LatentActionModel, "dynamics": Dynamics}

    def __init__(
        self, tokenizer: Tokenizer, lam: LatentActionModel, dynamics: Dynamics, action_map: ActionMap | None = None
    ) -> None:
        super().__init__(tokenizer, dynamics)
        if not self.cfg.dynamics.latent_actions:
            raise InputError("dynamics was trained on real actions: build a GenieReduxG of it, without a LAM")
        if (lam.cfg.lam, lam.cfg.size) != (self.cfg.lam, self.cfg.size):
            raise InputError("LAM and dynamics are of different configurations: use the LAM it was trained with")
        check_lam(dynamics, lam)
        self.lam, self.action_map = lam, action_map
        self._latent_of_A: Tensor | None = None

    @property
    def actions(self) -> int:
        """Latent actions, or the buttons that `for_game` gave it."""
        return self.cfg.actions if self._latent_of_A is None else len(self._latent_of_A)

    def check_actions(self, actions_BA: Tensor, batch: int, count: int) -> None:
        check_action_ids(actions_BA, batch, count, self.actions)

    def encode_actions(self, actions_BA: Tensor, first: bool = True) -> Tensor:
        if self._latent_of_A is not None:
            actions_BA = self._latent_of_A.to(actions_BA.device)[actions_BA]
        return self.dynamics.encode_actions(actions_BA, first)

    def infer(self, frames_BTCHW: Tensor) -> Tensor:
        """The latent action between each frame and the next, (B, T-1): what the paper drives GenieRedux by."""
        return self.lam.encode(frames_BTCHW)

    def for_game(self, game: str | None) -> Self:
        """The same weights, driven by real actions, each turned into the latent one that does the same in that game.

        None, or a game that the map was not learnt from: what it does in most games. Raises InputError without a map.
        """
        if self.action_map is None:
            raise InputError("this GenieRedux has no action map: learn one with `autoexplore export`")
        driven = copy.copy(self)
        driven._latent_of_A = torch.tensor(self.action_map.latent_actions(game))
        return driven

    def _save_extra(self, folder: Path) -> None:
        if self.action_map is not None:
            write_json_atomic(folder / saved_model.ACTION_MAP, self.action_map.to_dict())

    def _load_extra(self, folder: Path) -> None:
        if (folder / saved_model.ACTION_MAP).exists():
            self.action_map = ActionMap.from_dict(saved_model.read_json(folder / saved_model.ACTION_MAP))


def load_world_model(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """The GenieRedux or GenieReduxG that a folder holds. Raises InputError as `WorldModel.load`."""
    kinds: dict[str, type[WorldModel]] = {kind.__name__: kind for kind in (GenieReduxG, GenieRedux)}
    kind = saved_model.read_manifest(Path(path))["model"]
    if kind not in kinds:
        raise InputError(f"{path}: holds a model of an unknown kind {kind!r}: it belongs to another version")
    return kinds[kind].load(path, device)


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over its largest value, ln K. (..., K) -> (...) in [0, 1], fp32."""
    log_p = logits.float().log_softmax(-1)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])).clamp(0, 1)


def _check_sampling(steps: int, temperature: float, mode: str) -> None:
    if steps < 1:
        raise InputError(f"steps = {steps}: sampling needs 1 pass or more")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature = {temperature}: expected 0 or more")
    if mode not in _MODES:
        raise InputError(f"mode = {mode!r}: choose {' or '.join(_MODES)}")
