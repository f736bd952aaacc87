"""Statistics of a data set per game: sizes, actions, rewards, endings and distinct screens."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.controls import ACTIONS
from envs.episodes import manifest
from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError
from envs.utils.progress import progress
from envs.utils.screen_hash import CELLS, distinct_screens
from envs.utils.storage import parse_uri


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
    actions: Counter[int] = field(default_factory=Counter)
    screens: set[bytes] | None = field(default_factory=set)
    """Keys of `envs.utils.screen_hash`; None if the frame size cannot be divided into cells."""

    def add(self, other: "GameStats") -> None:
        """Add the statistics of other episodes."""
        for name in (
            "episodes",
            "frames",
            "file_bytes",
            "steps",
            "reward",
            "terminated",
            "validation",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.actions.update(other.actions)
        self.screens = (
            None if self.screens is None or other.screens is None else self.screens | other.screens
        )

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as shares in [0, 1] and means per step."""
        count = max(self.actions, default=0) + 1
        # A game with more actions, like CoinRun, numbers them, because their meanings differ.
        names = ACTIONS if count <= len(ACTIONS) else tuple(map(str, range(count)))
        return {
            "episodes": self.episodes,
            "validation_episodes": self.validation,
            "frames": self.frames,
            "bytes": self.file_bytes,
            "bytes_per_frame": self.file_bytes / max(self.frames, 1),
            "mean_length": self.steps / max(self.episodes, 1),
            "action_shares": {
                name: self.actions[i] / max(self.steps, 1) for i, name in enumerate(names)
            },
            "reward_mean": self.reward / max(self.steps, 1),
            "terminated_share": self.terminated / max(self.episodes, 1),
            "distinct_screens": None if self.screens is None else len(self.screens),
        }


def compute_stats(uri: str, *, workers: int = 2) -> dict[str, GameStats]:
    """Return game -> statistics in alphabetical order. Decodes every frame, with `workers` threads.

    Raises: InputError for a folder without episodes, a damaged file, or `workers` below 1.
    """
    if workers < 1:
        raise InputError(f"--workers is at least 1, not {workers}")
    reader = EpisodeReader(uri)
    validation = set(EpisodeReader(uri, "val").session_ids)
    games: dict[str, GameStats] = {game: GameStats() for game in sorted(set(reader.games))}
    for shard in manifest.load(parse_uri(uri)).shards.values():
        games[shard.sessions[0].game].file_bytes += shard.bytes
    with progress("stats", len(reader)) as bar, ThreadPoolExecutor(workers) as pool:
        for game, figures in _in_batches(pool, reader, workers):
            games[game].add(figures)
            bar.advance(1, game)
    for game, session_id in zip(reader.games, reader.session_ids, strict=True):
        games[game].validation += session_id in validation
    return games


def _in_batches(
    pool: ThreadPoolExecutor, reader: EpisodeReader, workers: int
) -> Iterator[tuple[str, GameStats]]:
    """Yield the statistics of every episode with only a few episodes in memory at a time."""
    size = 4 * workers
    for start in range(0, len(reader), size):
        yield from pool.map(
            lambda index: _episode(reader, index), range(start, min(start + size, len(reader)))
        )


def _episode(reader: EpisodeReader, index: int) -> tuple[str, GameStats]:
    """Return the game and the statistics of one episode, without its file size."""
    episode = reader[index]
    _, height, width, _ = episode.frames_THWC.shape
    fits = not (height % CELLS or width % CELLS)
    return episode.game, GameStats(
        episodes=1,
        frames=episode.num_frames,
        steps=len(episode.actions),
        reward=float(episode.rewards.sum(dtype=np.float64)),
        terminated=int(episode.terminated),
        actions=Counter(episode.actions.tolist()),
        screens=distinct_screens(episode.frames_THWC) if fits else None,
    )
