"""Ensemble disagreement of prediction heads on the frozen world model: a reward robust to noise.

Entropy cannot tell what could still be learnt from noise (the noisy-TV problem): even a perfect
model has high entropy about irreducible noise. M heads trained on the same play from different
random weights agree about the snow, because all of them learn its distribution, and differ where
nothing has told them what to say.

For token i of o_t head m gives the distribution p_im over the K codes. The reward's tokens are

    u_i = ( H(1/M sum_m p_im) - 1/M sum_m H(p_im) ) / ln M      in [0, 1],

the mutual information between the token and the choice of the head (Shyam et al. 2019; Pathak et
al. 2019), and the reward is the mean of the largest `top_fraction` of them, as of the entropies in
eq. 4. Each head adds a fixed random network to what it learns (Osband et al. 2018), so that heads
stay apart where no data pulls them together.

Shapes: B windows, N tokens, D width of the dynamics, M heads, K codes.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exploration.reward.baselines import BATCH, load_weights, recorded, to_pixels
from exploration.reward.scorers import Entropies, checked
from exploration.reward.token_entropy import CONTEXT, cut_windows
from worldmodel.uncertainty import WINDOW

if TYPE_CHECKING:
    from worldmodel.models.genie import WorldModel


HEADS = 5
HIDDEN_DIM = 128
PRIOR_SCALE = 1.0
"""Weight of a head's fixed random part. Where there is data, the learnt part must make up for it:
with a weight of 2.5 heads disagreed more about a noisy television than about an unfamiliar room,
and some agents stayed in front of it."""


class Perceptrons(nn.Module):
    """M perceptrons side by side: the same (X, D) for all, or (M, X, D) -> (M, X, K)."""

    def __init__(self, heads: int, width: int, codes: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(heads, width, HIDDEN_DIM) / width**0.5)
        self.outer = nn.Parameter(torch.randn(heads, HIDDEN_DIM, codes) / HIDDEN_DIM**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.inner) @ self.outer


class PriorEnsemble(nn.Module):
    """M heads on the hidden states of a dynamics model, each the sum of a part that learns and one
    that never does."""

    def __init__(self, width: int, codes: int, heads: int = HEADS) -> None:
        super().__init__()
        self.learnt, self.prior = Perceptrons(heads, width, codes), Perceptrons(heads, width, codes)
        self.prior.requires_grad_(False)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute log-probabilities (M, X, K) of hidden states (X, D), or (M, X, D) by head."""
        x = self.norm(hidden)
        return torch.log_softmax(self.learnt(x) + PRIOR_SCALE * self.prior(x), dim=-1)


def disagreement(log_p_MXK: Tensor) -> Tensor:
    """Compute the mutual information of token and head over ln M, (M, X, K) -> (X,) in [0, 1]."""
    heads = len(log_p_MXK)
    mean_XK = torch.logsumexp(log_p_MXK, 0) - np.log(heads)
    entropy_X = -(mean_XK.exp() * mean_XK).sum(-1)
    entropies_MX = -(log_p_MXK.exp() * log_p_MXK).sum(-1)
    return ((entropy_X - entropies_MX.mean(0)) / np.log(heads)).clamp(0, 1)


def hidden_states(
    model: "WorldModel", frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
) -> Tensor:
    """Return `WorldModel.query_hidden` (B, N, D) of o_t, which the reward's entropies are read
    from."""
    device = _device(model)
    given = np.ascontiguousarray(frames_B5HWC[:, :CONTEXT])
    frames = to_pixels(given.reshape(-1, *given.shape[2:])).unflatten(0, (len(given), CONTEXT))
    actions = torch.tensor(actions_B4, dtype=torch.int64, device=device)
    return model.query_hidden(frames.to(device), actions)


def _device(model: "WorldModel") -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def examples(
    model: "WorldModel", windows: Sequence[tuple[NDArray[np.uint8], NDArray[np.integer]]]
) -> tuple[Tensor, Tensor]:
    """Compute the training set of the heads: hidden states (B * N, D) and tokens of o_t (B * N,) of
    batches of windows."""
    hidden, tokens = [], []
    for frames_B5HWC, actions_B4 in windows:
        hidden.append(hidden_states(model, frames_B5HWC, actions_B4).flatten(0, 1))
        newest = to_pixels(frames_B5HWC[:, -1]).to(_device(model))
        tokens.append(model.tokenizer.encode(newest[:, None]).flatten())
    return torch.cat(hidden), torch.cat(tokens)


def train_heads(
    hidden_XD: Tensor,
    tokens_X: Tensor,
    codes: int,
    *,
    updates: int = 2_000,
    batch: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
) -> tuple[PriorEnsemble, float]:
    """Train the heads, each on random batches of its own -> them, and their mean cross-entropy in
    the last tenth.

    Raises FloatingPointError, before any weight changes, if the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = PriorEnsemble(hidden_XD.shape[1], codes).to(hidden_XD.device)
    optimizer = torch.optim.Adam(heads.learnt.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    count, losses = len(heads.learnt.inner), []
    for _ in range(updates):
        picked_MX = torch.randint(len(hidden_XD), (count, batch), generator=generator).to(
            hidden_XD.device
        )
        loss = -heads(hidden_XD[picked_MX]).gather(-1, tokens_X[picked_MX][..., None]).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} of the heads")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return heads.eval(), float(np.mean(losses[-max(updates // 10, 1) :]))


def sample_windows(
    data: Sequence[Path | str], count: int, seed: int = 0
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.integer]]]:
    """Batches of about `count` windows in all, drawn from folders of episodes, as many from each
    episode.

    Raises InputError where there is no folder, or it holds no episode.
    """
    generator = np.random.default_rng(seed)
    for episode, episodes in recorded(data):
        if len(episode.actions) < WINDOW:
            continue
        windows = cut_windows(
            episode.frames_THWC, episode.actions.astype(np.int64), len(episode.actions)
        )
        picked = generator.permutation(len(windows.actions_B4))[: max(1, count // episodes)]
        for at in range(0, len(picked), BATCH):
            part = picked[at : at + BATCH]
            yield windows.frames_B5HWC[part], windows.actions_B4[part]


class Disagreement:
    """Scorer that answers u_i (B, N) in place of entropies."""

    def __init__(self, model_path: Path | str, heads: Path) -> None:
        """`heads`: the file that `train_heads`' heads were saved to."""
        self._model_path, self._heads_path = model_path, heads
        self._model: Any = None
        self._heads: nn.Module

    def load(self) -> None:
        """Load model and heads, if that was not done yet.

        Raises InputError for what cannot be used.
        """
        if self._model is None:
            from worldmodel.uncertainty import load_model

            model = load_model(self._model_path, "cpu")
            heads = PriorEnsemble(model.cfg.dynamics.dim, model.cfg.tokenizer.codes)
            self._heads, self._model = (
                load_weights(self._heads_path, heads).to(_device(model)),
                model,
            )

    @torch.inference_mode()
    def entropies(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Entropies:
        """Windows uint8 and their actions -> disagreements (B, N) in [0, 1]."""
        self.load()
        parts = []
        for at in range(0, len(frames_B5HWC), BATCH):
            span = slice(at, at + BATCH)
            hidden_BND = hidden_states(self._model, frames_B5HWC[span], actions_B4[span])
            parts.append(
                disagreement(self._heads(hidden_BND.flatten(0, 1))).unflatten(
                    0, hidden_BND.shape[:2]
                )
            )
        return checked(torch.cat(parts).cpu().numpy(), len(frames_B5HWC))

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Entropies]:
        """`entropies` when its result is asked for."""
        return lambda: self.entropies(frames_B5HWC, actions_B4)
