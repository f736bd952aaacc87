"""World models: GenieRedux-G and GenieRedux generate clips and measure their uncertainty.

Shapes: B clips, P given frames, F generated frames, T = P + F frames, C=3, H=W pixels, h=w patches,
N=h*w, K codes, A actions of a clip or, last, width of an encoded action.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn

from envs.utils.errors import InputError
from worldmodel.config import GenerationMode, WorldModelConfig, check_action_ids
from worldmodel.models import saved_model
from worldmodel.models.action_map import ActionMap
from worldmodel.models.cpu_kernels import cached_weights
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.maskgit import sample
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import KVCache
from worldmodel.models.weights import check_lam, check_tokenizer

QUERY_BATCH = 32
"""Windows in one pass of the reward query, so that its memory does not grow with the request."""


class WorldModel(nn.Module):
    """Base class of GenieRedux-G and GenieRedux: everything but the kind of action.

    Raises InputError where the dynamics was trained with another tokenizer. A dynamics that has no
    codes yet takes over the tokenizer's.
    """

    PARTS: ClassVar[dict[str, Any]]
    """Name of each part, as the constructor takes them, and its class."""

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics) -> None:
        super().__init__()
        same_tokenizer = tokenizer.cfg.tokenizer == dynamics.cfg.tokenizer
        if not same_tokenizer or tokenizer.cfg.size != dynamics.cfg.size:
            raise InputError(
                "tokenizer and dynamics are of different configurations: "
                "use the tokenizer it was trained with"
            )
        if not dynamics.has_codebook:
            dynamics.set_codebook(tokenizer.codebook.detach())
        else:
            check_tokenizer(tokenizer, dynamics)
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.cfg: WorldModelConfig = dynamics.cfg

    @property
    def actions(self) -> int:
        """Number of actions that the model takes: 0 to this number - 1."""
        return self.cfg.actions

    def check_actions(self, actions_BA: Tensor, batch: int, count: int) -> None:
        """Raise InputError unless these are actions of this model, of shape (batch, count)."""
        self.cfg.check_actions(actions_BA, batch, count)

    def encode_actions(self, actions_BA: Tensor, first: bool = True) -> Tensor:
        """Encode actions as the dynamics takes them, see `Dynamics.encode_actions`."""
        return self.dynamics.encode_actions(actions_BA, first)

    def for_game(self, game: str | None) -> Self:
        """Return the same model, driven by the buttons of a game, which is what recorded episodes
        hold.

        None stands for the buttons of most games.
        """
        return self

    @torch.no_grad()
    def generate(
        self,
        frames_BPCHW: Tensor,
        actions_BA: Tensor,
        *,
        steps: int = 25,
        temperature: float = 1.0,
        mode: GenerationMode = "one_pass",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate the F frames (B, F, 3, H, W) in [0, 1] that follow given ones.

        frames (B, P, 3, H, W) in [0, 1], actions (B, P+F-1) between all frames. `one_pass` predicts
        as many frames together as the window holds, `autoregressive` cfg.dynamics.chunk_size at a
        time; each chunk takes `steps` MaskGIT passes, which compute only the frames of the chunk:
        finished frames are in a KV cache. Beyond cfg.frames the attention window slides. Noise
        comes from `generator`. Raises InputError for bad input.
        """
        tokens_BThw = self.generate_tokens(
            frames_BPCHW,
            actions_BA,
            steps=steps,
            temperature=temperature,
            mode=mode,
            generator=generator,
        )
        return self.tokenizer.decode(tokens_BThw)[:, frames_BPCHW.shape[1] :]

    @torch.no_grad()
    @cached_weights()
    def generate_tokens(
        self,
        frames_BPCHW: Tensor,
        actions_BA: Tensor,
        *,
        steps: int = 25,
        temperature: float = 1.0,
        mode: GenerationMode = "one_pass",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate as `generate` does -> tokens of the given and of the generated frames, int64 (B,
        P+F, h, w).
        """
        self.cfg.check_frames(frames_BPCHW)
        num_given = frames_BPCHW.shape[1]
        num_frames = actions_BA.shape[1] + 1 if actions_BA.ndim == 2 else 0
        if num_frames <= num_given:
            raise InputError(
                f"actions: expected shape (B, {num_given} or more), got {tuple(actions_BA.shape)}: "
                f"{num_given} frames are given"
            )
        self.check_actions(actions_BA, len(frames_BPCHW), num_frames - 1)
        _check_sampling(steps, temperature, mode)
        window = self.cfg.frames
        max_chunk = (
            window - min(num_given, window // 2)
            if mode == "one_pass"
            else self.cfg.dynamics.chunk_size
        )
        chunk_size = min(num_frames - num_given, max_chunk)

        # Tokenise the given frames and fill the KV cache with them.
        encoded_BTA = self.encode_actions(actions_BA)
        tokens_BThw = self.tokenizer._encode(frames_BPCHW)
        cache = self.prefill(tokens_BThw, encoded_BTA[:, :num_given])

        # Sample chunk_size frames at a time; beyond cfg.frames the attention window slides.
        for start in range(num_given, num_frames, chunk_size):
            end = min(start + chunk_size, num_frames)
            future_actions = encoded_BTA[:, start:end]
            new_tokens = self.sample_frames(
                cache.last_frames(window - chunk_size),
                future_actions,
                steps=steps,
                temperature=temperature,
                generator=generator,
            )
            tokens_BThw = torch.cat([tokens_BThw, new_tokens], dim=1)

            # The chunk's own pass saw masks: run it again, finished, into the cache of the next
            # chunk.
            if end < num_frames:
                cache = self.prefill(new_tokens, future_actions, cache)
        return tokens_BThw

    @torch.no_grad()
    def token_entropy(
        self, frames_BTCHW: Tensor, actions_BA: Tensor, *, context: int = 2, steps: int = 1
    ) -> Tensor:
        """Compute the uncertainty of each token of a window's last frame (Eq. 2), (B, N) in [0, 1],
        fp32.

        frames (B, T, 3, H, W) in [0, 1] and the actions (B, T-1) between them; T is 5 for the
        paper's reward. The first `context` frames are given and tokenised once; the T - context
        others are predicted in `steps` MaskGIT passes without noise, and nothing is decoded. u_i =
        -sum_k p_k ln p_k / ln K of the pass in which token i was decided. Raises InputError for bad
        input.
        """
        self.cfg.check_frames(frames_BTCHW)
        num_frames = frames_BTCHW.shape[1]
        if not 1 <= context < num_frames <= self.cfg.frames:
            raise InputError(
                f"token entropy: expected 1 <= context < frames <= {self.cfg.frames}, "
                f"got {context} and {num_frames}"
            )
        self.check_actions(actions_BA, len(frames_BTCHW), num_frames - 1)
        _check_sampling(steps, 0.0, "one_pass")
        return self._token_entropy(frames_BTCHW[:, :context], actions_BA, steps)

    @torch.no_grad()
    def future_token_entropy(
        self, frames_BPCHW: Tensor, actions_BA: Tensor, *, steps: int = 1
    ) -> Tensor:
        """Compute `token_entropy` of the frame that the last action leads to, from the given frames
        alone.

        frames (B, P, 3, H, W) in [0, 1], actions (B, A) from the first of them on, P <= A <
        cfg.frames. Returns (B, N) in [0, 1], fp32. Raises InputError for bad input.
        """
        self._check_query(frames_BPCHW, actions_BA)
        _check_sampling(steps, 0.0, "one_pass")
        return self._token_entropy(frames_BPCHW, actions_BA, steps)

    @torch.no_grad()
    def query_hidden(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> Tensor:
        """Return the hidden states (B, N, D) of the frame that the last action leads to.

        This is the query of the reward: all frames after the given ones are masked and predicted in
        one pass. `dynamics.head` turns the hidden states into logits of the tokens. Inputs are
        those of `future_token_entropy`, on the model's device. Raises InputError for bad input.
        """
        self._check_query(frames_BPCHW, actions_BA)
        return self._query_hidden(frames_BPCHW, actions_BA)

    def _check_query(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> None:
        self.cfg.check_frames(frames_BPCHW)
        num_given = frames_BPCHW.shape[1]
        num_frames = actions_BA.shape[1] + 1 if actions_BA.ndim == 2 else 0
        if not 1 <= num_given < num_frames <= self.cfg.frames:
            raise InputError(
                f"token entropy: expected 1 <= given frames <= actions < {self.cfg.frames}, "
                f"got {num_given} and {num_frames - 1}"
            )
        self.check_actions(actions_BA, len(frames_BPCHW), num_frames - 1)

    def _query_hidden(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> Tensor:
        cache, future_actions = self._prefill_given(frames_BPCHW, actions_BA)
        masked = self._mask_tokens(future_actions)
        hidden, _ = self.dynamics.forward_with_cache(masked, future_actions, cache)
        return hidden[:, -1].flatten(1, 2)

    def _token_entropy(self, frames_BPCHW: Tensor, actions_BA: Tensor, steps: int) -> Tensor:
        entropies = []
        batches = zip(frames_BPCHW.split(QUERY_BATCH), actions_BA.split(QUERY_BATCH), strict=True)
        for frames, actions in batches:
            if steps == 1:
                logits = self.dynamics.head(self._query_hidden(frames, actions))
                entropies.append(normalised_entropy(logits))
            else:
                entropies.append(self._refined_entropy(frames, actions, steps))
        return torch.cat(entropies)

    def _refined_entropy(self, frames_BPCHW: Tensor, actions_BA: Tensor, steps: int) -> Tensor:
        """Sample the last frame in several passes -> the entropy of each token in the pass that
        decides it.
        """
        cache, future_actions = self._prefill_given(frames_BPCHW, actions_BA)
        patches = self.cfg.grid**2
        entropy_BN = torch.zeros(len(future_actions), patches, device=future_actions.device)
        undecided_BN = torch.ones_like(entropy_BN, dtype=torch.bool)

        def record_entropy(logits_BMK: Tensor, tokens_BM: Tensor) -> None:
            still_masked = tokens_BM[:, -patches:] == self.cfg.mask_id
            decided_now = undecided_BN & ~still_masked
            entropy_BN[decided_now] = normalised_entropy(logits_BMK[:, -patches:])[decided_now]
            undecided_BN.copy_(still_masked)

        self.sample_frames(
            cache, future_actions, steps=steps, temperature=0.0, on_step=record_entropy
        )
        return entropy_BN

    def _prefill_given(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> tuple[KVCache, Tensor]:
        """Return the KV cache of the given frames and the encoded actions (B, F, A) of the frames
        after them.
        """
        num_given = frames_BPCHW.shape[1]
        encoded_BTA = self.encode_actions(actions_BA)
        tokens_BPhw = self.tokenizer._encode(frames_BPCHW)
        return self.prefill(tokens_BPhw, encoded_BTA[:, :num_given]), encoded_BTA[:, num_given:]

    def prefill(
        self, tokens_BFhw: Tensor, actions_BFA: Tensor, cache: KVCache | None = None
    ) -> KVCache:
        """Run finished frames, whose actions are encoded, into the KV cache: half a window at a
        time if they are many.
        """
        window = self.cfg.frames
        length = tokens_BFhw.shape[1] if tokens_BFhw.shape[1] < window else window // 2
        stretches = zip(tokens_BFhw.split(length, 1), actions_BFA.split(length, 1), strict=True)
        for tokens, actions in stretches:
            seen = cache.last_frames(window - length) if cache else None
            _, cache = self.dynamics.forward_with_cache(tokens, actions, seen)
        assert cache is not None
        return cache

    @cached_weights()
    def sample_frames(
        self,
        cache: KVCache,
        actions_BFA: Tensor,
        *,
        steps: int,
        temperature: float,
        generator: torch.Generator | None = None,
        on_step: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Sample the tokens BFhw of the frames that follow the cached ones under encoded actions,
        all together.

        `on_step` is called with the logits and the tokens after each pass.
        """
        masked, bias = self._mask_tokens(actions_BFA), self.dynamics.bias()

        def predict_logits(tokens_BM: Tensor) -> Tensor:
            tokens_BFhw = tokens_BM.view_as(masked)
            hidden, _ = self.dynamics.forward_with_cache(
                tokens_BFhw, actions_BFA, cache, bias_HNN=bias
            )
            return self.dynamics.head(hidden).flatten(1, 3)

        tokens_BM = sample(
            predict_logits,
            masked.flatten(1),
            self.cfg.mask_id,
            steps=steps,
            temperature=temperature,
            generator=generator,
            on_step=on_step,
        )
        return tokens_BM.view_as(masked)

    def _mask_tokens(self, actions_BFA: Tensor) -> Tensor:
        """Return tokens BFhw that are all masked, for the frames of the given actions."""
        shape = (*actions_BFA.shape[:2], self.cfg.grid, self.cfg.grid)
        return torch.full(shape, self.cfg.mask_id, device=actions_BFA.device)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, see `saved_model.save_model`."""
        saved_model.save_model(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load the model that `save` wrote, in evaluation mode, see `saved_model.read_model`."""
        return saved_model.read_model(cls, Path(path), torch.device(device))


class GenieReduxG(WorldModel):
    """World model that is driven by real actions.

    Raises InputError where tokenizer and dynamics do not belong together, and for a dynamics on
    latent actions.
    """

    PARTS: ClassVar[dict[str, Any]] = {"tokenizer": Tokenizer, "dynamics": Dynamics}

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics) -> None:
        super().__init__(tokenizer, dynamics)
        if self.cfg.dynamics.latent_actions:
            raise InputError(
                "dynamics was trained on latent actions: build a GenieRedux of it and its LAM"
            )


class GenieRedux(WorldModel):
    """World model that is driven by the latent actions of `lam`, or through `action_map` by real
    ones.

    It takes latent actions, such as `infer` reads from frames; `for_game` returns the same model
    driven by buttons. Raises InputError where the three do not belong together, and for a dynamics
    on real actions. A dynamics that knows no latent action model yet takes over this one.
    """

    PARTS: ClassVar[dict[str, Any]] = {
        "tokenizer": Tokenizer,
        "lam": LatentActionModel,
        "dynamics": Dynamics,
    }

    def __init__(
        self,
        tokenizer: Tokenizer,
        lam: LatentActionModel,
        dynamics: Dynamics,
        action_map: ActionMap | None = None,
    ) -> None:
        super().__init__(tokenizer, dynamics)
        if not self.cfg.dynamics.latent_actions:
            raise InputError(
                "dynamics was trained on real actions: build a GenieReduxG of it, without a LAM"
            )
        if (lam.cfg.lam, lam.cfg.size) != (self.cfg.lam, self.cfg.size):
            raise InputError(
                "LAM and dynamics are of different configurations: use the LAM it was trained with"
            )
        check_lam(dynamics, lam)
        self.lam, self.action_map = lam, action_map
        self._latent_of_A: Tensor | None = None

    @property
    def actions(self) -> int:
        """Number of latent actions, or of the buttons that `for_game` gave it."""
        return self.cfg.actions if self._latent_of_A is None else len(self._latent_of_A)

    def check_actions(self, actions_BA: Tensor, batch: int, count: int) -> None:
        check_action_ids(actions_BA, batch, count, self.actions)

    def encode_actions(self, actions_BA: Tensor, first: bool = True) -> Tensor:
        if self._latent_of_A is not None:
            actions_BA = self._latent_of_A.to(actions_BA.device)[actions_BA]
        return self.dynamics.encode_actions(actions_BA, first)

    def infer(self, frames_BTCHW: Tensor) -> Tensor:
        """Infer the latent action between each frame and the next, (B, T-1), by which the paper
        drives GenieRedux.
        """
        return self.lam.encode(frames_BTCHW)

    def for_game(self, game: str | None) -> Self:
        """Return the same model, driven by real actions: each becomes the latent one that does the
        same in that game.

        For None, or a game that the map was not fitted on, it is the one that does the same in most
        games. Raises InputError without a map.
        """
        if self.action_map is None:
            raise InputError("this GenieRedux has no action map: fit one with `autoexplore export`")
        driven = copy.copy(self)
        driven._latent_of_A = torch.tensor(self.action_map.latent_actions(game))
        return driven


def load_world_model(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Load the GenieRedux or GenieReduxG that a folder holds. Raises InputError as
    `WorldModel.load` does.
    """
    kinds: dict[str, type[WorldModel]] = {"GenieReduxG": GenieReduxG, "GenieRedux": GenieRedux}
    kind = saved_model.read_manifest(Path(path))["model"]
    if kind not in kinds:
        raise InputError(
            f"{path}: holds a model of an unknown kind {kind!r}: it belongs to another version"
        )
    return kinds[kind].load(path, device)


def normalised_entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of softmax(logits) over its largest value, ln K. (..., K) -> (...) in [0,
    1], fp32.
    """
    log_p = logits.float().log_softmax(-1)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])).clamp(0, 1)


def _check_sampling(steps: int, temperature: float, mode: GenerationMode) -> None:
    if steps < 1:
        raise InputError(f"steps = {steps}: sampling needs 1 pass or more")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature = {temperature}: expected 0 or more")
    if mode not in get_args(GenerationMode):
        raise InputError(f"mode = {mode!r}: choose {' or '.join(get_args(GenerationMode))}")
