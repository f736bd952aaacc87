"""Baseline rewards of Table 6, and two controls.

A baseline answers rewards (B,) where a scorer of `exploration.reward.scorers` answers entropies
(B, N); the connector takes either. B windows of five frames o_{t-4}..o_t and the four actions
between them; phi is a network of 512 features.

| name   | reward of a window                                                        | needs       |
|--------|---------------------------------------------------------------------------|-------------|
| rf     | sum_i (phi_i(o_t) - phi_i(x_t))^2, x_t the world model's prediction, phi  | model       |
|        | random and fixed                                                          |             |
| vae    | the same, phi the posterior means of a variational autoencoder trained on | model, data |
|        | `data`                                                                    |             |
| count  | 1 / sqrt(n), n: how often this runner has seen o_t's screen, including    |             |
|        | this time                                                                 |             |
| random | uniform in [0, 1), whatever the window shows                              |             |

`disagreement`, the reward that is robust to noise, is in `exploration.reward.disagreement`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.utils.errors import InputError
from envs.utils.screen_hash import screen_keys
from exploration.reward.scorers import ScoringError
from exploration.reward.token_entropy import CONTEXT
from worldmodel.uncertainty import WINDOW

Rewards = NDArray[np.float32]
FEATURES = 512
FRAME_SIZE = 64
BATCH = 16
"""Windows in a forward pass."""
FEATURE_SEED = 6
"""Seed of the random features: every runner must have the same ones."""


def checked_rewards(rewards_B: Any, windows: int) -> Rewards:
    """Return rewards as float32. Raises ScoringError unless `windows` of them, all finite."""
    array = np.asarray(rewards_B, np.float32)
    if array.shape != (windows,) or not np.isfinite(array).all():
        raise ScoringError(
            f"rewards of shape {array.shape} for {windows} windows, or not all finite"
        )
    return array


class FeatureNetwork(nn.Module):
    """32 filters 8x8 stride 4, 64 4x4 stride 2, 64 3x3 stride 1, then 512 features (Burda et al.
    2019).

    frames (B, 3, 64, 64) in [0, 1] -> (B, 512).
    """

    def __init__(self) -> None:
        super().__init__()
        convolutions = nn.Conv2d(3, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)
        self.trunk = nn.Sequential(
            *(part for layer in convolutions for part in (layer, nn.ReLU())), nn.Flatten()
        )
        self.features = nn.Linear(1_024, FEATURES)

    def forward(self, frames_BCHW: Tensor) -> Tensor:
        return self.features(self.trunk(frames_BCHW - 0.5))


def random_features() -> FeatureNetwork:
    """Build the network of the RF baseline: orthogonal weights, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FEATURE_SEED)
        network = FeatureNetwork()
        for parameter in network.parameters():
            nn.init.orthogonal_(parameter, gain=2**0.5) if parameter.ndim > 1 else nn.init.zeros_(
                parameter
            )
    return network.eval()


class Autoencoder(nn.Module):
    """Small variational autoencoder: the posterior means of `encoder` are the features of the VAE
    baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = FeatureNetwork()
        self.log_variance = nn.Linear(1_024, FEATURES)
        self.expand = nn.Linear(FEATURES, 1_024)
        layers = (
            nn.ConvTranspose2d(64, 64, 3, 1),
            nn.ConvTranspose2d(64, 32, 4, 2, output_padding=1),
        )
        self.decoder = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.pixels = nn.ConvTranspose2d(32, 3, 8, 4)

    def loss(self, frames_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the negative ELBO of a frame, Gaussian pixels of variance 0.1 (mean over B)."""
        hidden_BF = self.encoder.trunk(frames_BCHW - 0.5)
        mean_BD, log_variance_BD = (
            self.encoder.features(hidden_BF),
            self.log_variance(hidden_BF).clamp(-8, 8),
        )
        noise_BD = torch.randn(mean_BD.shape, generator=generator)
        code_BD = mean_BD + noise_BD * (log_variance_BD / 2).exp()
        drawn_BCHW = (
            self.pixels(self.decoder(F.relu(self.expand(code_BD)).unflatten(1, (64, 4, 4)))) + 0.5
        )
        miss = (drawn_BCHW - frames_BCHW).square().flatten(1).sum(1) / (2 * 0.1)
        divergence = (mean_BD.square() + log_variance_BD.exp() - 1 - log_variance_BD).sum(1) / 2
        return (miss + divergence).mean()


def train_autoencoder(
    frames_NHWC: NDArray[np.uint8],
    *,
    updates: int = 500,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> tuple[Autoencoder, float]:
    """Train the VAE on frames uint8 (N, 64, 64, 3) -> it, and the mean loss of the last tenth of
    the updates.

    Raises FloatingPointError, before any weight changes, if the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(updates):
        picked = torch.randint(len(frames_NHWC), (batch,), generator=generator).numpy()
        loss = model.loss(to_pixels(frames_NHWC[picked]), generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} of the autoencoder")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), float(np.mean(losses[-max(updates // 10, 1) :]))


def to_pixels(frames_NHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, C) -> float (N, C, H, W) in [0, 1]."""
    return torch.tensor(frames_NHWC).permute(0, 3, 1, 2).float() / 255


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights; `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary
    )
    temporary.replace(path)


def load_weights(path: Path, network: nn.Module) -> nn.Module:
    """Fill a network from `save_weights`' file, strictly.

    Raises InputError for one that does not fit.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not the weights of this reward ({first}): delete it to train it again"
        ) from error
    return network.eval()


class PredictionError:
    """RF and VAE of table 6: how far the world model's prediction of o_t lies from o_t in a
    network's features."""

    def __init__(self, model_path: Path | str, features: Path | None = None) -> None:
        """`features`: file of the trained encoder; None for random features."""
        self._model_path, self._features_path = model_path, features
        self._model: Any = None
        self._features: nn.Module

    def load(self) -> None:
        """Load model and features, if that was not done yet.

        Raises InputError for what cannot be used.
        """
        if self._model is None:
            from worldmodel.uncertainty import load_model

            path = self._features_path
            self._features = (
                random_features() if path is None else load_weights(path, FeatureNetwork())
            )
            self._model = load_model(self._model_path, "cpu")

    @torch.inference_mode()
    def rewards(self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]) -> Rewards:
        """Compute squared errors (B,), 0 or more, of windows uint8 and their actions."""
        self.load()
        parts = []
        for at in range(0, len(frames_B5HWC), BATCH):
            windows = frames_B5HWC[at : at + BATCH]
            given = to_pixels(
                np.ascontiguousarray(windows[:, :CONTEXT]).reshape(-1, *windows.shape[2:])
            )
            predicted = self._model.generate(
                given.unflatten(0, (len(windows), CONTEXT)),
                torch.tensor(actions_B4[at : at + BATCH], dtype=torch.int64),
                steps=1,
                temperature=0.0,
            )[:, -1]
            difference_BD = self._features(to_pixels(windows[:, -1])) - self._features(
                predicted.clamp(0, 1)
            )
            parts.append(difference_BD.square().sum(1).numpy())
        return checked_rewards(np.concatenate(parts), len(frames_B5HWC))

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Rewards]:
        """`rewards` when its result is asked for."""
        return lambda: self.rewards(frames_B5HWC, actions_B4)


class CountBonus:
    """1 / sqrt(n) of the newest frame's screen (Bellemare et al. 2016, with
    `envs.utils.screen_hash`'s screens for counts)."""

    def __init__(self) -> None:
        self._seen: Counter[bytes] = Counter()

    def reset_counts(self) -> None:
        """Reset the counts, as an evaluation does, so that agents of different age are judged
        alike."""
        self._seen.clear()

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Rewards]:
        """Count the newest frames in their order, now -> rewards (B,) in (0, 1]."""
        counts = []
        for key in screen_keys(frames_B5HWC[:, WINDOW - 1]):
            self._seen[key] += 1
            counts.append(self._seen[key])
        return lambda: (1 / np.sqrt(np.array(counts))).astype(np.float32)


class RandomReward:
    """Uniformly random reward: a control that shows the effect of training alone."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Rewards]:
        """Rewards (B,), uniform in [0, 1)."""
        rewards_B = self._generator.random(len(frames_B5HWC), np.float32)
        return lambda: rewards_B


def sample_frames(data: Sequence[Path | str], count: int, seed: int = 0) -> NDArray[np.uint8]:
    """`count` frames uint8 (count, 64, 64, 3) or all, drawn from folders of episodes, as many from
    each episode.

    Raises InputError where there is no folder, or it holds no episode.
    """
    generator, frames = np.random.default_rng(seed), []
    for episode, episodes in recorded(data):
        own = episode.frames_THWC
        frames.append(own[np.sort(generator.permutation(len(own))[: max(1, count // episodes)])])
    return np.concatenate(frames)


def recorded(data: Sequence[Path | str]) -> Iterator[tuple[Episode, int]]:
    """Iterate over the episodes of some folders, each with the number of all of them.

    Raises InputError where there is no folder, or it holds no episode.
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
