"""World model: generation of clips and the entropy of its predictions.

Shapes: B clips, P given frames, F generated frames, T = P + F frames, C=3, H=W pixels, h=w patches,
N=h*w, M=F*N, K codes, A actions of a clip or, as last dimension, width of an encoded action.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from envs.controls import custom_actions
from envs.utils.errors import InputError
from worldmodel.config import GenerationMode, SamplingConfig, WorldModelConfig
from worldmodel.devices import autocast
from worldmodel.models import saved_model
from worldmodel.models.captured_passes import CapturedPasses, CudaCapture
from worldmodel.models.cpu_kernels import cached_weights
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.maskgit import sample
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import KVCache
from worldmodel.models.weights import check_tokenizer

QUERY_BATCH_CPU, QUERY_BATCH_GPU = 4, 128
"""Windows in one pass of the reward query, which bounds its memory. A few at a time stay in a CPU's
cache: a sixth less time than with 16."""


class WorldModel(nn.Module):
    """Base class of GenieRedux-G and GenieRedux, which differ in the kind of action.

    A dynamics without a codebook adopts the tokenizer's. Raises InputError if the dynamics was
    trained with another tokenizer.
    """

    PARTS: ClassVar[dict[str, Any]]
    """Name of each part, as in the constructor, and its class."""

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics) -> None:
        super().__init__()
        same_tokenizer = tokenizer.cfg.tokenizer == dynamics.cfg.tokenizer
        if not same_tokenizer or tokenizer.cfg.size != dynamics.cfg.size:
            raise InputError(
                "tokenizer and dynamics are of different configurations: "
                "use the tokenizer it was trained with"
            )
        if dynamics.has_codebook:
            check_tokenizer(tokenizer, dynamics)
        else:
            dynamics.set_codebook(tokenizer.codebook)
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.cfg: WorldModelConfig = dynamics.cfg
        self.precision = "fp32"
        """Precision of generation and of the reward query: fp32, or bf16 under autocast."""
        self.passes = CapturedPasses()
        """Passes of generation and of the reward query, replayed after `use_cuda_graphs`."""

    def use_cuda_graphs(self) -> Self:
        """Replay passes as CUDA graphs if the model is on an NVIDIA GPU; return the model.

        It pays for few films or windows at a time, and needs no compilation.
        """
        if self.device.type == "cuda":
            self.passes.start(CudaCapture())
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Change all weights, as `to` does, and stop using CUDA graphs."""
        self.passes.stop()
        return super()._apply(fn, recurse)

    @property
    def device(self) -> torch.device:
        """Device of the weights, where inputs must be."""
        return next(self.parameters()).device

    @property
    def query_batch(self) -> int:
        """Number of windows in a pass of the reward query that suits the device."""
        return QUERY_BATCH_CPU if self.device.type == "cpu" else QUERY_BATCH_GPU

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of passes in the model's precision."""
        return autocast(self.device, "bf16") if self.precision == "bf16" else nullcontext()

    @property
    def actions(self) -> int:
        """Number of actions of the model; their ids are smaller."""
        return self.cfg.actions

    def check_actions(self, actions_BA: Tensor, batch: int, count: int) -> None:
        """Raise InputError unless these are actions of this model, of shape (batch, count)."""
        self.cfg.check_actions(actions_BA, batch, count)

    def check_action_names(self, names: Sequence[str], source: str) -> None:
        """Raise InputError unless the actions of `source`, games or data, are the model's."""
        names = tuple(names)
        if self.actions != len(names):
            raise InputError(
                f"the world model has {self.actions} actions, {source} {len(names)} "
                f"({', '.join(names)})"
            )
        named = not self.cfg.dynamics.latent_actions  # an action map knows no names
        if named and self.cfg.action_names != custom_actions(names):
            own = ", ".join(self.cfg.action_names) or "of the games themselves"
            raise InputError(f"the world model has the actions {own}, {source} {', '.join(names)}")

    def encode_actions(self, actions_BA: Tensor, first: bool = True) -> Tensor:
        """Encode actions for the dynamics, see `Dynamics.encode_actions`."""
        return self.dynamics.encode_actions(actions_BA, first)

    def for_game(self, game: str | None) -> Self:
        """Return the model driven by the buttons of a game, as recorded episodes hold them.

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
        time. Each chunk takes `steps` MaskGIT passes with noise of `temperature` from `generator`.
        Beyond cfg.frames the attention window slides. Raises InputError for bad input.
        """
        sampling = SamplingConfig(steps, temperature, mode)
        with self.autocast():
            tokens_BThw = self.generate_tokens(frames_BPCHW, actions_BA, sampling, generator)
            frames, _ = self.passes.bind(self.tokenizer.decode_after)(tokens_BThw)
            return frames[:, frames_BPCHW.shape[1] :]

    @torch.no_grad()
    @cached_weights()
    def generate_tokens(
        self,
        frames_BPCHW: Tensor,
        actions_BA: Tensor,
        sampling: SamplingConfig,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the tokens (B, P+F, h, w) of given and generated frames, see `generate`."""
        self.cfg.check_frames(frames_BPCHW)
        num_given, num_frames = frames_BPCHW.shape[1], _num_frames(actions_BA)
        if num_frames <= num_given:
            raise InputError(
                f"actions: expected shape (B, {num_given} or more), got {tuple(actions_BA.shape)}: "
                f"{num_given} frames are given"
            )
        self.check_actions(actions_BA, len(frames_BPCHW), num_frames - 1)
        window = self.cfg.frames
        if sampling.mode == "one_pass":
            max_chunk = window - min(num_given, window // 2)
        else:
            max_chunk = self.cfg.dynamics.chunk_size
        chunk_size = min(num_frames - num_given, max_chunk)

        # Tokenise the given frames and fill the KV cache with them.
        encoded_BTA = self.encode_actions(actions_BA)
        tokens_BThw = self.passes.bind(self.tokenizer.encode_checked)(frames_BPCHW)
        cache = self.prefill(tokens_BThw, encoded_BTA[:, :num_given])

        # Sample chunk_size frames at a time; beyond cfg.frames the attention window slides.
        for start in range(num_given, num_frames, chunk_size):
            end = min(start + chunk_size, num_frames)
            future_actions = encoded_BTA[:, start:end]
            new_tokens = self.sample_frames(
                cache.last_frames(window - chunk_size),
                future_actions,
                steps=sampling.steps,
                temperature=sampling.temperature,
                generator=generator,
            )
            tokens_BThw = torch.cat([tokens_BThw, new_tokens], dim=1)
            # The last sampling pass saw masks: run the finished frames again to cache them.
            if end < num_frames:
                cache = self.prefill(new_tokens, future_actions, cache)
        return tokens_BThw

    def prefill(
        self, tokens_BFhw: Tensor, actions_BFA: Tensor, cache: KVCache | None = None
    ) -> KVCache:
        """Add finished frames, with encoded actions, to the KV cache.

        Clips that do not fit into the window pass through it in halves of its length.
        """
        window = self.cfg.frames
        length = tokens_BFhw.shape[1] if tokens_BFhw.shape[1] < window else window // 2
        stretches = zip(tokens_BFhw.split(length, 1), actions_BFA.split(length, 1), strict=True)
        for tokens, actions in stretches:
            seen = cache.last_frames(window - length) if cache else None
            cache = self.passes.bind(self.dynamics.extend_cache)(tokens, actions, seen)
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
        """Sample together the tokens BFhw of frames that follow the cached ones.

        `on_step` is called with logits BMK and tokens BM after each pass.
        """
        masked, bias = self._mask_tokens(actions_BFA), self.dynamics.bias()
        predict = self.passes.bind(self.dynamics.predict_after, actions_BFA, cache, bias)

        def predict_logits(tokens_BM: Tensor) -> Tensor:
            logits: Tensor = predict(tokens_BM.view_as(masked))
            return logits.flatten(1, 3)

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

    @torch.no_grad()
    def token_entropy(
        self,
        frames_BTCHW: Tensor,
        actions_BA: Tensor,
        *,
        context: int = 2,
        steps: int = 1,
        batch: int = 0,
    ) -> Tensor:
        """Compute the entropy of each token of a window's last frame (Eq. 2), (B, N) in [0, 1].

        frames (B, T, 3, H, W) in [0, 1] and the actions (B, T-1) between them; T is 5 for the
        paper's reward. The first `context` frames are given; the others are predicted in `steps`
        MaskGIT passes without noise. u_i = -sum_k p_k ln p_k / ln K in the pass that decides
        token i. A pass takes `batch` windows, 0 for `query_batch`. Raises InputError for bad input.
        """
        self._check_query(frames_BTCHW, actions_BA, context)
        self.check_actions(actions_BA, len(frames_BTCHW), frames_BTCHW.shape[1] - 1)
        with self.autocast():
            return self._token_entropy(frames_BTCHW[:, :context], actions_BA, steps, batch)

    @torch.no_grad()
    def future_token_entropy(
        self, frames_BPCHW: Tensor, actions_BA: Tensor, *, steps: int = 1, batch: int = 0
    ) -> Tensor:
        """Compute `token_entropy` of the frame that the last action leads to, from given frames.

        frames (B, P, 3, H, W) in [0, 1], actions (B, A) from the first of them on, P <= A <
        cfg.frames. Returns (B, N) in [0, 1]. Raises InputError for bad input.
        """
        self._check_query(frames_BPCHW, actions_BA, frames_BPCHW.shape[1])
        with self.autocast():
            return self._token_entropy(frames_BPCHW, actions_BA, steps, batch)

    @torch.no_grad()
    def query_hidden(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> Tensor:
        """Return the hidden states (B, N, D) of the frame that the last action leads to.

        All frames after the given ones are masked and predicted in one pass; `dynamics.head` turns
        hidden states into logits. Inputs are those of `future_token_entropy`, on the model's
        device. Raises InputError for bad input.
        """
        self._check_query(frames_BPCHW, actions_BA, frames_BPCHW.shape[1])
        with self.autocast():
            return self._query_hidden(frames_BPCHW, actions_BA)

    def _check_query(self, frames_BTCHW: Tensor, actions_BA: Tensor, num_given: int) -> None:
        self.cfg.check_frames(frames_BTCHW)
        num_frames = _num_frames(actions_BA)
        if not 1 <= num_given < num_frames <= self.cfg.frames:
            raise InputError(
                f"token entropy: expected 1 <= given frames <= actions < {self.cfg.frames}, "
                f"got {num_given} and {num_frames - 1}"
            )
        self.check_actions(actions_BA, len(frames_BTCHW), num_frames - 1)

    def _token_entropy(
        self, frames_BPCHW: Tensor, actions_BA: Tensor, steps: int, batch: int
    ) -> Tensor:
        SamplingConfig(steps)  # checks the number of steps
        entropies, batch = [], batch or self.query_batch
        batches = zip(frames_BPCHW.split(batch), actions_BA.split(batch), strict=True)
        for frames, actions in batches:
            if steps == 1:
                logits = self.dynamics.head(self._query_hidden(frames, actions))
                entropies.append(normalised_entropy(logits))
            else:
                entropies.append(self._refined_entropy(frames, actions, steps))
        return torch.cat(entropies)

    def _query_hidden(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> Tensor:
        cache, future_actions = self._prefill_given(frames_BPCHW, actions_BA)
        masked = self._mask_tokens(future_actions)
        hidden: Tensor = self.passes.bind(self.dynamics.newest_hidden)(
            masked, future_actions, cache
        )
        return hidden.flatten(1, 2)

    def _refined_entropy(self, frames_BPCHW: Tensor, actions_BA: Tensor, steps: int) -> Tensor:
        """Return the entropy of each token of the last frame in the pass that decides it."""
        cache, future_actions = self._prefill_given(frames_BPCHW, actions_BA)
        patches = self.cfg.grid**2
        entropy_BN = torch.zeros(len(future_actions), patches, device=future_actions.device)
        undecided_BN = torch.ones_like(entropy_BN, dtype=torch.bool)

        def record_entropy(logits_BMK: Tensor, tokens_BM: Tensor) -> None:
            still_masked = tokens_BM[:, -patches:] == self.cfg.mask_id
            decided_now = undecided_BN & ~still_masked
            now_BN = normalised_entropy(logits_BMK[:, -patches:])
            entropy_BN.copy_(torch.where(decided_now, now_BN, entropy_BN))
            undecided_BN.copy_(still_masked)

        self.sample_frames(
            cache, future_actions, steps=steps, temperature=0.0, on_step=record_entropy
        )
        return entropy_BN

    def _prefill_given(self, frames_BPCHW: Tensor, actions_BA: Tensor) -> tuple[KVCache, Tensor]:
        """Return the KV cache of the given frames and the encoded actions BFA of later frames."""
        num_given = frames_BPCHW.shape[1]
        encoded_BTA = self.encode_actions(actions_BA)
        tokens_BPhw = self.passes.bind(self.tokenizer.encode_checked)(frames_BPCHW)
        return self.prefill(tokens_BPhw, encoded_BTA[:, :num_given]), encoded_BTA[:, num_given:]

    def _mask_tokens(self, actions_BFA: Tensor) -> Tensor:
        """Return masked tokens BFhw for the frames of the given actions."""
        shape = (*actions_BFA.shape[:2], self.cfg.grid, self.cfg.grid)
        return torch.full(shape, self.cfg.mask_id, device=actions_BFA.device)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, see `saved_model.save_model`."""
        saved_model.save_model(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        *,
        compile: bool | None = None,
    ) -> Self:
        """Load the model that `save` wrote, in eval mode, see `saved_model.read_model`."""
        classes = {cls.__name__: cls}
        return saved_model.read_model(classes, Path(path), device, precision, compile=compile)


def normalised_entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of softmax(logits) divided by ln K, (..., K) -> (...) in [0, 1], fp32."""
    log_p = logits.float().log_softmax(-1)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])).clamp(0, 1)


def _num_frames(actions_BA: Tensor) -> int:
    """Return the number of frames of a clip with these actions; 0 for another shape."""
    return actions_BA.shape[1] + 1 if actions_BA.ndim == 2 else 0
