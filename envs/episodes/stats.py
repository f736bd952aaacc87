"""Statistics of a data set per game: sizes, actions, rewards, endings and distinct screens."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.screen_hash import CELLS, distinct_screens


@dataclass
class GameStats:
    """Statistics of the episodes of one game, or of all games."""

    episodes: int = 0
    frames: int = 0
    file_bytes: int = 0
    steps: int = 0
    reward: float = 0.0
    """Sum over all steps."""
    terminated: int = 0
    """Episodes that the game itself ended."""
    validation: int = 0
    """Episodes for validation."""
    actions: Counter[str] = field(default_factory=Counter)
    """Steps of each action."""
    screens: set[bytes] | None = field(default_factory=set)
    """Keys of `envs.utils.screen_hash`; None if the frame size cannot be divided into cells."""

    def add(self, other: "GameStats") -> None:
        """Add the statistics of other episodes."""
        for name, value in vars(other).items():
            if isinstance(value, int | float):
                setattr(self, name, getattr(self, name) + value)
        self.actions.update(other.actions)
        known = self.screens is not None and other.screens is not None
        self.screens = self.screens | other.screens if known else None  # type: ignore[operator]

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as shares in [0, 1] and means per step."""
        episodes, steps = max(self.episodes, 1), max(self.steps, 1)
        return {
            "episodes": self.episodes,
            "validation_episodes": self.validation,
            "frames": self.frames,
            "bytes": self.file_bytes,
            "bytes_per_frame": self.file_bytes / max(self.frames, 1),
            "mean_length": self.steps / episodes,
            "action_shares": {name: count / steps for name, count in self.actions.items()},
            "reward_mean": self.reward / steps,
            "terminated_share": self.terminated / episodes,
            "distinct_screens": None if self.screens is None else len(self.screens),
        }


def compute_stats(uri: str, *, workers: int = 2) -> dict[str, GameStats]:
    """Return game -> statistics, sorted by game. Decodes every frame, with `workers` threads.

    Raises: InputError for a folder without episodes, a damaged file, or `workers` below 1.
    """
    if workers < 1:
        raise InputError(f"--workers is at least 1, not {workers}")
    reader = EpisodeReader(uri)
    stats: dict[str, GameStats] = {game: GameStats() for game in sorted(set(reader.games))}
    for shard in {shard.path: shard for shard in reader.shards}.values():
        stats[shard.sessions[0].game].file_bytes += shard.bytes
    records = reader.records
    batch = 4 * workers  # only a few episodes are in memory at a time
    with progress("stats", len(reader)) as bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(reader), batch):
            indices = range(len(reader))[start : start + batch]
            results = pool.map(lambda index: _episode_stats(reader[index]), indices)
            for record, episode in zip(records[start : start + batch], results, strict=True):
                stats[record.game].add(episode)
                bar.advance(1, record.game)
    for record in EpisodeReader(uri, "val").records:
        stats[record.game].validation += 1
    return stats


def _episode_stats(episode: Episode) -> GameStats:
    """Return the statistics of one episode, without its file size and split."""
    _, height, width, _ = episode.frames_THWC.shape
    fits = not (height % CELLS or width % CELLS)
    names = episode.action_names
    steps_A = np.bincount(episode.actions, minlength=len(names)).tolist()
    return GameStats(
        episodes=1,
        frames=episode.num_frames,
        steps=len(episode.actions),
        reward=float(episode.rewards.sum(dtype=np.float64)),
        terminated=int(episode.terminated),
        actions=Counter(dict(zip(names, steps_A, strict=True))),
        screens=distinct_screens(episode.frames_THWC) if fits else None,
    )
