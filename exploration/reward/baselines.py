"""Baseline rewards of Table 6, and two controls.

| name   | reward for a window o_{t-4}..o_t                                          | needs       |
|--------|---------------------------------------------------------------------------|-------------|
| rf     | sum_i (phi_i(o_t) - phi_i(x_t))^2, x_t the world model's prediction, phi  | model       |
|        | a random network of 512 features                                          |             |
| vae    | the same, phi the posterior means of a variational autoencoder trained on | model, data |
|        | recorded play                                                             |             |
| count  | 1 / sqrt(n), n: how often the runners together have seen the screen o_t,  |             |
|        | including this time                                                       |             |
| random | uniform in [0, 1)                                                         |             |

Shapes: T frames of a clip, B = T - 4 windows and rewards.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import safetensors.torch
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError, one_line
from envs.utils.screen_hash import screen_keys
from exploration.reward.scorers import ClipRewards, ModelScorer, Pending, ScoringError
from exploration.reward.token_entropy import TOP_FRACTION
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.data.batch import to_float_frames
from worldmodel.uncertainty import Actions, Frames, Windows

FEATURES = 512
BATCH = 16
"""Windows in a forward pass."""
FEATURE_SEED = 6
"""Seed of the random features, the same for every runner."""


def finite_rewards(rewards_B: NDArray[np.float32]) -> ClipRewards:
    """Wrap rewards. Raises ScoringError unless all are finite."""
    if not np.isfinite(rewards_B).all():
        raise ScoringError("rewards are not all finite")
    return ClipRewards(rewards_B)


def load_frames(frames: NDArray[np.uint8]) -> Tensor:
    """Copy frames uint8 (..., H, W, C), also views, to float (..., C, H, W) in [0, 1]."""
    return to_float_frames(torch.tensor(frames))


class FeatureEncoder(nn.Module):
    """Convolutional network of Burda et al. 2019: (B, 3, 64, 64) in [0, 1] -> (B, 512).

    32 filters 8x8 stride 4, 64 filters 4x4 stride 2, 64 filters 3x3 stride 1, then a linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        convolutions = nn.Conv2d(3, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)
        self.trunk = nn.Sequential(
            *(part for layer in convolutions for part in (layer, nn.ReLU())), nn.Flatten()
        )
        self.features = nn.Linear(1_024, FEATURES)

    def forward(self, frames_BCHW: Tensor) -> Tensor:
        """Compute the features of frames."""
        return self.features(self.trunk(frames_BCHW - 0.5))


def random_features() -> FeatureEncoder:
    """Return the network of the RF baseline: orthogonal weights, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FEATURE_SEED)
        network = FeatureEncoder()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.orthogonal_(parameter, gain=2**0.5)
            else:
                nn.init.zeros_(parameter)
    return network.eval()


class Autoencoder(nn.Module):
    """Small variational autoencoder, whose `encoder` gives the features of the VAE baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = FeatureEncoder()
        self.log_variance = nn.Linear(1_024, FEATURES)
        self.expand = nn.Linear(FEATURES, 1_024)
        layers = (
            nn.ConvTranspose2d(64, 64, 3, 1),
            nn.ConvTranspose2d(64, 32, 4, 2, output_padding=1),
        )
        self.decoder = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.pixels = nn.ConvTranspose2d(32, 3, 8, 4)

    def loss(self, frames_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the mean negative ELBO of frames, with Gaussian pixels of variance 0.1."""
        hidden_BF = self.encoder.trunk(frames_BCHW - 0.5)
        mean_BD = self.encoder.features(hidden_BF)
        log_variance_BD = self.log_variance(hidden_BF).clamp(-8, 8)
        noise_BD = torch.randn(mean_BD.shape, generator=generator)
        code_BD = mean_BD + noise_BD * (log_variance_BD / 2).exp()
        expanded_BCHW = F.relu(self.expand(code_BD)).unflatten(1, (64, 4, 4))
        decoded_BCHW = self.pixels(self.decoder(expanded_BCHW)) + 0.5
        error_B = (decoded_BCHW - frames_BCHW).square().flatten(1).sum(1) / (2 * 0.1)
        divergence_B = (mean_BD.square() + log_variance_BD.exp() - 1 - log_variance_BD).sum(1) / 2
        return (error_B + divergence_B).mean()


def train_autoencoder(
    frames_NHWC: NDArray[np.uint8],
    *,
    updates: int = 500,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> tuple[Autoencoder, float]:
    """Train the VAE on frames uint8 (N, 64, 64, 3); return it and the result of `minimise`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder()

    def batch_loss() -> Tensor:
        picked = torch.randint(len(frames_NHWC), (batch,), generator=generator).numpy()
        frames_BCHW = load_frames(frames_NHWC[picked]).to(memory_format=torch.channels_last)
        return model.loss(frames_BCHW, generator)

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loss = minimise(batch_loss, optimizer, updates, max_norm=100.0)
    return model.eval(), loss


def minimise(
    batch_loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    updates: int,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    max_norm: float = math.inf,
) -> float:
    """Take `updates` optimizer steps; return the mean loss of the last tenth of them.

    Raises FloatingPointError, before any weight changes, if the loss is not finite.
    """
    losses = []
    for _ in range(updates):
        loss = batch_loss()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} of a reward's network")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(updates // 10, 1) :]))


def save_reward_network(path: Path, network: nn.Module) -> None:
    """Write a network's weights atomically."""
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(path, safetensors.torch.save(weights))


def load_reward_network(path: Path, network: nn.Module) -> nn.Module:
    """Load the weights that `save_reward_network` wrote into a network of the same shape."""
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not the weights of this reward ({first}): delete it to train it again"
        ) from error
    return network.eval()


class PredictionError(ModelScorer):
    """RF and VAE of Table 6: error of the world model's prediction of o_t in feature space."""

    def __init__(self, model_path: Path | str, features: Path | None = None, **place: str) -> None:
        """Initialise with the file of a trained encoder, or None for random features."""
        super().__init__(model_path, **place)
        self._features_path = features
        self._features: nn.Module

    def load_networks(self, model: Any) -> None:
        """Load the feature network."""
        path = self._features_path
        features = (
            random_features() if path is None else load_reward_network(path, FeatureEncoder())
        )
        self._features = features.to(model.device)

    @torch.inference_mode()
    def score_windows(self, windows: Windows, top_fraction: float = TOP_FRACTION) -> ClipRewards:
        """Compute squared errors (B,), 0 or more."""
        model, rewards = self.load(), []
        for start in range(0, len(windows.frames_B5HWC), BATCH):
            frames_B5HWC, actions_B4 = windows.select(slice(start, start + BATCH))
            predicted = model.generate(
                load_frames(frames_B5HWC[:, :CONTEXT]).to(model.device),
                torch.tensor(actions_B4, dtype=torch.int64, device=model.device),
                steps=1,
                temperature=0.0,
            )[:, -1].clamp(0, 1)
            newest = load_frames(frames_B5HWC[:, -1]).to(model.device)
            newest = newest.to(memory_format=torch.channels_last)
            difference_BD = self._features(newest) - self._features(predicted)
            rewards.append(difference_BD.square().sum(1).cpu().numpy())
        return finite_rewards(np.concatenate(rewards))


class VisitCounter:
    """Visits of screens by all runners of a run, as a Ray actor."""

    def __init__(self) -> None:
        self._visits: Counter[bytes] = Counter()

    def visit(self, keys: list[bytes]) -> list[int]:
        """Count visits; return the number of visits of each screen so far."""
        counts = []
        for key in keys:
            self._visits[key] += 1
            counts.append(self._visits[key])
        return counts


class CountBonus:
    """1 / sqrt(n), n: visits of the newest screen (Bellemare et al. 2016; see `screen_hash`)."""

    def __init__(self, counter: Any = None) -> None:
        """Initialise with the actor of a `VisitCounter`, or count in this process alone."""
        self._counter, self._own = counter, VisitCounter()

    def reset_counts(self) -> None:
        """Count from zero, in this process alone, so that evaluation does not depend on age."""
        self._counter, self._own = None, VisitCounter()

    def submit(
        self, frames_THWC: Frames, actions_T: Actions, top_fraction: float = TOP_FRACTION
    ) -> Pending:
        """Count the newest frames of all windows at once; return a call with rewards in (0, 1]."""
        keys = list(screen_keys(frames_THWC[WINDOW - 1 :]))
        if self._counter is None:
            counts = self._own.visit(keys)
            return lambda: _bonus(counts)
        answer = self._counter.visit.remote(keys)
        return lambda: _bonus(_counts_of(answer))


def _bonus(counts: list[int]) -> ClipRewards:
    return ClipRewards((1 / np.sqrt(np.array(counts))).astype(np.float32))


def _counts_of(answer: Any) -> list[int]:
    """Wait for the answer of a counter. Raises ScoringError if it died."""
    try:
        return list(ray.get(answer))
    except RayError as error:
        raise ScoringError(f"the counter of screens is lost: {one_line(error)}") from error


class RandomReward:
    """Uniformly random reward: a control that shows the effect of training alone."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def submit(
        self, frames_THWC: Frames, actions_T: Actions, top_fraction: float = TOP_FRACTION
    ) -> Pending:
        """Return a call with rewards in [0, 1)."""
        rewards_B = self._generator.random(len(frames_THWC) - WINDOW + 1, np.float32)
        return lambda: ClipRewards(rewards_B)


def sample_frames(data: Sequence[Path | str], count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw about `count` frames uint8 (N, 64, 64, 3), equally many from each recorded episode."""
    generator, frames = np.random.default_rng(seed), []
    for episode, episodes in read_episodes(data):
        order = generator.permutation(len(episode.frames_THWC))
        frames.append(episode.frames_THWC[np.sort(order[: max(1, count // episodes)])])
    return np.concatenate(frames)


def read_episodes(data: Sequence[Path | str]) -> Iterator[tuple[Episode, int]]:
    """Yield the episodes of some folders, each with the total number of episodes.

    Raises InputError without a folder or an episode.
    """
    readers = [EpisodeReader(folder) for folder in data]
    episodes = sum(map(len, readers))
    if not episodes:
        raise InputError(
            "this reward is trained on recorded play: name folders of episodes with --reward-data"
        )
    for reader in readers:
        for index in range(len(reader)):
            yield reader[index], episodes
