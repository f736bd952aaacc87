"""Snapshots: screens from an agent's play, with the model's uncertainty about each of their tokens.

They are by-products of scoring and leave a runner once an epoch. <run>/snapshots/ stores the screen
with the highest reward of each epoch.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.utils.atomic_io import write_atomic
from envs.utils.images import Frames, heat_map
from exploration.agent.replay_buffer import GAME
from exploration.reward.scorers import ClipRewards

FOLDER = "snapshots"
HEAT_HIGH = 0.8
"""Entropy in [0, 1] that is drawn with the brightest colour."""


@dataclass(frozen=True)
class Snapshot:
    """Screen with the uncertainty of its tokens and the reward for reaching it."""

    game: str
    frame_HWC: NDArray[np.uint8]
    entropy_N: NDArray[np.float32]
    """Token entropies in [0, 1]; empty if the reward has none."""
    reward: float

    def map(self) -> Frames | None:
        """Draw the entropies over the grey frame, uint8 (H, W, 3); None unless N is a square."""
        side = math.isqrt(len(self.entropy_N))
        if side < 2 or side**2 != len(self.entropy_N) or self.frame_HWC.shape[0] % side:
            return None
        return heat_map(self.entropy_N.reshape(1, side, side), self.frame_HWC[None], HEAT_HIGH)[0]

    def pair(self) -> Frames:
        """Draw frame and map side by side, or the frame alone."""
        drawn = self.map()
        return self.frame_HWC if drawn is None else np.concatenate([self.frame_HWC, drawn], axis=1)


@dataclass(frozen=True)
class SnapshotPair:
    """Newest screen of a runner's last fragments, and the one with the highest reward."""

    newest: Snapshot
    peak: Snapshot


def take_snapshots(scored: Sequence[tuple[Any, ClipRewards]]) -> SnapshotPair | None:
    """Return the newest screen of the last fragment and the highest-reward one of all fragments.

    `scored`: fragments (numpy) with the rewards of their last B steps.
    """
    newest: Snapshot | None = None
    peaks = []
    for episode, rewards in scored:
        if len(rewards.rewards_B):
            newest = _snapshot(episode, rewards, len(rewards.rewards_B) - 1)
            peaks.append(_snapshot(episode, rewards, int(np.argmax(rewards.rewards_B))))
    return None if newest is None else SnapshotPair(newest, max(peaks, key=_reward))


def _reward(snapshot: Snapshot) -> float:
    return snapshot.reward


def _snapshot(episode: Any, rewards: ClipRewards, step: int) -> Snapshot:
    """Return the screen that one of the last B steps of a fragment led to."""
    frame_HWC = np.asarray(episode.observations.data[step - len(rewards.rewards_B)])
    tokens_BN = rewards.tokens_BN
    entropy_N = np.empty(0, np.float32) if tokens_BN is None else tokens_BN[step]
    game = episode.custom_data.get(GAME, "")
    return Snapshot(game, frame_HWC, entropy_N, float(rewards.rewards_B[step]))


def merge_snapshots(of_runners: Iterable[SnapshotPair | None]) -> SnapshotPair | None:
    """Return the first runner's newest screen and the highest-reward one of all runners."""
    pairs = [pair for pair in of_runners if pair is not None]
    if not pairs:
        return None
    return SnapshotPair(pairs[0].newest, max((pair.peak for pair in pairs), key=_reward))


def save_snapshot(run: Path, epoch: int, snapshot: Snapshot) -> None:
    """Write <run>/snapshots/epoch-<epoch>.npz, a few KB."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        frame=snapshot.frame_HWC,
        entropy=snapshot.entropy_N.astype(np.float16),
        reward=np.float32(snapshot.reward),
        game=np.array(snapshot.game),
    )
    write_atomic(run / FOLDER / f"epoch-{epoch:08d}.npz", file.getvalue())


def load_snapshots(run: Path) -> dict[int, Snapshot]:
    """Load the highest-reward screen of each epoch, in order."""
    snapshots = {}
    for path in sorted((run / FOLDER).glob("epoch-*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            snapshots[int(path.stem.removeprefix("epoch-"))] = Snapshot(
                str(stored["game"]),
                stored["frame"],
                stored["entropy"].astype(np.float32),
                float(stored["reward"]),
            )
    return snapshots
