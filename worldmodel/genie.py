"""GenieRedux-G: tokenizer and dynamics as one model that continues films, says how unsure it is, and is saved.

Shapes: B clips, P given frames, F predicted frames, C=3, H=W pixels, h=w patches, N=h*w, K codes.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.errors import InputError
from envs.files import new_folder, write_json_atomic
from worldmodel.checkpoint import check_tokenizer, file_sha256, load_weights
from worldmodel.config import WorldModelConfig
from worldmodel.dynamics import Dynamics
from worldmodel.maskgit import sample
from worldmodel.tokenizer import Tokenizer
from worldmodel.transformer import Past

FORMAT = "autoexplore-model-1"
_PARTS = ("tokenizer", "dynamics")
_MODES = ("one_pass", "autoregressive")
_BATCH = 32
"""Windows in a pass of the reward query, so that its memory does not grow with the request."""


class GenieReduxG(nn.Module):
    """A world model that is driven by real actions.

    Raises InputError where the dynamics was trained with another tokenizer. One that has no codes yet takes over the
    tokenizer's.
    """

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
        cfg.dynamics.together at a time, `steps` passes each. The given frames are tokenised once; keys, values and PEG
        inputs of finished frames are kept, so that a pass computes only the frames that are being generated. Past
        cfg.frames the window slides. Noise comes from `generator`. Raises InputError for bad input.
        """
        tokens = self.generate_tokens(
            frames_BPCHW, actions_BA, steps=steps, temperature=temperature, mode=mode, generator=generator
        )
        return self.tokenizer.decode(tokens)[:, frames_BPCHW.shape[1] :]

    @torch.no_grad()
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
        self.cfg.check_actions(actions_BA, len(frames_BPCHW), given + wanted - 1)
        _check_sampling(steps, temperature, mode)
        window = self.cfg.frames
        at_once = window - min(given, window // 2) if mode == "one_pass" else self.cfg.dynamics.together
        together = min(wanted, at_once)
        conditions = self.dynamics.conditions(actions_BA)
        tokens = self.tokenizer.encode(frames_BPCHW)
        past = self.read(tokens, conditions[:, :given], None)
        while tokens.shape[1] < given + wanted:
            begin = tokens.shape[1]
            ahead = conditions[:, begin : begin + together]
            made = self.fill(past.last(window - together), ahead, steps, temperature, generator)
            tokens = torch.cat([tokens, made], 1)
            if tokens.shape[1] < given + wanted:
                past = self.read(made, ahead, past)
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
        self.cfg.check_actions(actions_BA, len(frames_BTCHW), frames - 1)
        _check_sampling(steps, 0.0, "one_pass")
        parts = zip(frames_BTCHW[:, :context].split(_BATCH), actions_BA.split(_BATCH), strict=True)
        return torch.cat([self._entropy(given, actions, steps) for given, actions in parts])

    def _entropy(self, given_BPCHW: Tensor, actions_BA: Tensor, steps: int) -> Tensor:
        given = given_BPCHW.shape[1]
        conditions = self.dynamics.conditions(actions_BA)
        past = self.read(self.tokenizer.encode(given_BPCHW), conditions[:, :given], None)
        ahead = conditions[:, given:]
        if steps == 1:
            masked = self._masked(ahead)
            hidden, _ = self.dynamics.run(masked, ahead, past)
            return normalised_entropy(self.dynamics.head(hidden[:, -1])).flatten(1)
        entropy = torch.zeros(len(ahead), self.cfg.grid**2, device=ahead.device)
        undecided = torch.ones_like(entropy, dtype=torch.bool)

        def note(logits_BMK: Tensor, tokens_BM: Tensor) -> None:
            last = tokens_BM[:, -entropy.shape[1] :] == self.cfg.mask_id
            now = undecided & ~last
            entropy[now] = normalised_entropy(logits_BMK[:, -entropy.shape[1] :])[now]
            undecided.copy_(last)

        self.fill(past, ahead, steps, 0.0, None, note)
        return entropy

    def read(self, tokens_BFhw: Tensor, conditions_BFA: Tensor, past: Past | None) -> Past:
        """Take finished frames into the past, half a window at a time where they are many."""
        window = self.cfg.frames
        stretch = tokens_BFhw.shape[1] if tokens_BFhw.shape[1] < window else window // 2
        for tokens, conditions in zip(tokens_BFhw.split(stretch, 1), conditions_BFA.split(stretch, 1), strict=True):
            kept = past.last(window - stretch) if past else None
            _, past = self.dynamics.run(tokens, conditions, kept)
        assert past is not None
        return past

    def fill(
        self,
        past: Past,
        ahead_BFA: Tensor,
        steps: int,
        temperature: float,
        generator: torch.Generator | None,
        on_step: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Tokens of the frames that follow the past under the given conditions, sampled together. -> BFhw."""
        start = self._masked(ahead_BFA)

        def logits_of(tokens_BM: Tensor) -> Tensor:
            hidden, _ = self.dynamics.run(tokens_BM.view_as(start), ahead_BFA, past)
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

    def _masked(self, ahead_BFA: Tensor) -> Tensor:
        shape = (*ahead_BFA.shape[:2], self.cfg.grid, self.cfg.grid)
        return torch.full(shape, self.cfg.mask_id, device=ahead_BFA.device)

    def save(self, path: str | Path) -> None:
        """Write a folder: `tokenizer.safetensors`, `dynamics.safetensors` and, last, `manifest.json` with the hashes.

        Whole or absent: it is written under a temporary name and renamed. An existing folder is replaced.
        """
        with new_folder(Path(path)) as folder:
            for name in _PARTS:
                state = {key: value.cpu().contiguous() for key, value in getattr(self, name).state_dict().items()}
                save_file(state, folder / f"{name}.safetensors")
            manifest = {
                "format": FORMAT,
                "config": self.cfg.to_dict(),
                "sha256": {name: file_sha256(folder / f"{name}.safetensors") for name in _PARTS},
            }
            write_json_atomic(folder / "manifest.json", manifest)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "GenieReduxG":
        """The model that `save` wrote, in evaluation mode. Nothing is unpickled.

        Raises InputError where a file is missing, changed or of another architecture; a model is never partly loaded.
        """
        path = Path(path)
        manifest = read_manifest(path)
        cfg = WorldModelConfig.from_dict(manifest["config"])
        parts: list[Any] = [Tokenizer(cfg), Dynamics(cfg)]
        for name, module in zip(_PARTS, parts, strict=True):
            file = path / f"{name}.safetensors"
            if not file.is_file() or file_sha256(file) != manifest["sha256"].get(name):
                what = "differs from its sha256 in manifest.json" if file.is_file() else "is missing"
                raise InputError(f"{file} {what}: the model is damaged; save it again from its checkpoints")
            try:
                weights = load_file(file)
            except SafetensorError as error:
                raise InputError(f"{file}: not a safetensors file ({error})") from error
            load_weights(module, weights, file)
        return cls(*parts).to(device).eval()


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of a saved model. Raises InputError where it is missing, no JSON or of another format."""
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{path} holds no saved model ({file.name}: {error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from error
    expected = {"format", "config", "sha256"}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not expected <= manifest.keys():
        raise InputError(f"{file}: not a saved model of this version: expected format {FORMAT!r}")
    return manifest


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
