"""Ensemble disagreement of prediction heads on the frozen world model: a reward robust to noise.

Entropy does not separate what can be learnt from noise (noisy-TV problem): even a perfect model has
high entropy on irreducible noise. M heads, trained on the same play from different random weights,
agree on noise, whose distribution they all learn, and disagree on unfamiliar frames.

For token i of o_t head m gives the distribution p_im over the K codes. The value of the token is

    u_i = ( H(1/M sum_m p_im) - 1/M sum_m H(p_im) ) / ln M      in [0, 1],

the mutual information between token and head (Shyam et al. 2019; Pathak et al. 2019). It takes the
place of the entropy in Eq. 3-4. Each head adds a fixed random network to what it learns (Osband et
al. 2018), so that heads stay apart where there is no data.

Shapes: B windows, N tokens, D width of the dynamics, M heads, K codes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from exploration.reward.baselines import (
    BATCH,
    load_frames,
    load_reward_network,
    minimise,
    read_episodes,
)
from exploration.reward.scorers import ClipRewards, ModelScorer, reward_tokens
from exploration.reward.token_entropy import TOP_FRACTION
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.uncertainty import Windows, cut_windows

if TYPE_CHECKING:
    from worldmodel.models.genie import WorldModel


HEADS = 5
HIDDEN_DIM = 128
PRIOR_SCALE = 1.0
"""Weight of a head's fixed random part, for which the learnt part must compensate on data. With 2.5
heads disagreed more on a noisy television than on an unfamiliar room."""


class Perceptrons(nn.Module):
    """M parallel perceptrons: the same (X, D) for all, or (M, X, D) -> (M, X, K)."""

    def __init__(self, heads: int, width: int, codes: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(heads, width, HIDDEN_DIM) / width**0.5)
        self.outer = nn.Parameter(torch.randn(heads, HIDDEN_DIM, codes) / HIDDEN_DIM**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs of all perceptrons."""
        return torch.relu(x @ self.inner) @ self.outer


class PriorEnsemble(nn.Module):
    """M heads on the hidden states of a dynamics model, each with a learnt and a fixed part."""

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


def hidden_states(model: "WorldModel", windows: Windows) -> Tensor:
    """Return `WorldModel.query_hidden` (B, N, D), from which the model predicts o_t."""
    device = model.device
    actions = torch.tensor(windows.actions_B4, dtype=torch.int64, device=device)
    return model.query_hidden(load_frames(windows.frames_B5HWC[:, :CONTEXT]).to(device), actions)


@torch.no_grad()
def examples(model: "WorldModel", batches: Sequence[Windows]) -> tuple[Tensor, Tensor]:
    """Compute the heads' training set: hidden states (B * N, D) and tokens (B * N,) of o_t."""
    hidden, tokens = [], []
    for windows in batches:
        hidden.append(hidden_states(model, windows).flatten(0, 1))
        newest = load_frames(windows.frames_B5HWC[:, -1:]).to(model.device)
        tokens.append(model.tokenizer.encode(newest).flatten())
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
    """Train the heads, each on its own batches; return them and the result of `minimise`."""
    device = hidden_XD.device
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = PriorEnsemble(hidden_XD.shape[1], codes).to(device)

    def cross_entropy() -> Tensor:
        shape = len(heads.learnt.inner), batch
        picked_MX = torch.randint(len(hidden_XD), shape, generator=generator).to(device)
        return -heads(hidden_XD[picked_MX]).gather(-1, tokens_X[picked_MX][..., None]).mean()

    optimizer = torch.optim.Adam(heads.learnt.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    loss = minimise(cross_entropy, optimizer, updates, scheduler=scheduler)
    return heads.eval(), loss


def sample_windows(data: Sequence[Path | str], count: int, seed: int = 0) -> Iterator[Windows]:
    """Yield batches of about `count` windows in all, equally many from each recorded episode."""
    generator = np.random.default_rng(seed)
    for episode, episodes in read_episodes(data):
        if len(episode.actions) < WINDOW:
            continue
        windows = cut_windows(episode.frames_THWC, episode.actions)
        picked = generator.permutation(len(windows.actions_B4))[: max(1, count // episodes)]
        for start in range(0, len(picked), BATCH):
            yield windows.select(picked[start : start + BATCH])


class Disagreement(ModelScorer):
    """Disagreement of trained heads on the world model."""

    def __init__(self, model_path: Path | str, heads: Path, **place: str) -> None:
        """Initialise with the file of trained heads."""
        super().__init__(model_path, **place)
        self._heads_path = heads
        self._heads: nn.Module

    def load_networks(self, model: Any) -> None:
        """Load the heads."""
        heads = PriorEnsemble(model.cfg.dynamics.dim, model.cfg.tokenizer.codes)
        self._heads = load_reward_network(self._heads_path, heads).to(model.device)

    @torch.inference_mode()
    def score_windows(self, windows: Windows, top_fraction: float = TOP_FRACTION) -> ClipRewards:
        """Compute the rewards of disagreements (B, N) in [0, 1]."""
        model, parts = self.load(), []
        count = len(windows.actions_B4)
        for start in range(0, count, BATCH):
            hidden_BND = hidden_states(model, windows.select(slice(start, start + BATCH)))
            values_X = disagreement(self._heads(hidden_BND.flatten(0, 1)))
            parts.append(values_X.unflatten(0, hidden_BND.shape[:2]))
        return reward_tokens(torch.cat(parts).cpu().numpy(), count, top_fraction)
