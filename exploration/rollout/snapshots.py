"""Snapshots: single screens from an agent's play, with the model's uncertainty about each part of
them.

They are by-products of the scoring, and leave a runner once an epoch, so sampling does not wait for
them. The screen with the highest reward of each epoch is kept in <run>/snapshots/.
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

FOLDER = "snapshots"
HEAT_HIGH = 0.8
"""Entropy in [0, 1] that is drawn brightest."""


@dataclass(frozen=True)
class Snapshot:
    """Frame uint8 (H, W, 3), the entropies (N,) of its tokens in [0, 1], and the reward for
    reaching it.

    `entropy_N` is empty where the reward does not come from token entropies.
    """

    game: str
    frame_HWC: NDArray[np.uint8]
    entropy_N: NDArray[np.float32]
    reward: float

    def map(self) -> Frames | None:
        """Draw the entropies in colour over the grey frame, uint8 (H, W, 3); None if the tokens
        form no square."""
        side = math.isqrt(len(self.entropy_N))
        if side < 2 or side**2 != len(self.entropy_N) or self.frame_HWC.shape[0] % side:
            return None
        return heat_map(self.entropy_N.reshape(1, side, side), self.frame_HWC[None], HEAT_HIGH)[0]

    def pair(self) -> Frames:
        """Draw frame and map side by side, or the frame alone."""
        shown = self.map()
        return self.frame_HWC if shown is None else np.concatenate([self.frame_HWC, shown], axis=1)


@dataclass(frozen=True)
class SnapshotPair:
    """Newest screen of a runner's last fragments, and the one with the highest reward."""

    newest: Snapshot
    peak: Snapshot


def take_snapshots(answers: Sequence[tuple[Any, NDArray[np.float32]]]) -> SnapshotPair | None:
    """Return the newest screen of the last fragment and the highest-reward one of all fragments.

    `answers`: fragments (numpy) that have their rewards, each with its scorer's answer about its
    last B steps: entropies (B, N) or rewards (B,).
    """
    newest, peak = None, None
    for episode, answer in answers:
        rewards_B = np.asarray(episode.rewards.data[-len(answer) :])
        newest = _snapshot(episode, answer, rewards_B, len(answer) - 1)
        best = _snapshot(episode, answer, rewards_B, int(np.argmax(rewards_B)))
        if peak is None or best.reward > peak.reward:
            peak = best
    return None if newest is None or peak is None else SnapshotPair(newest, peak)


def _snapshot(
    episode: Any, answer: NDArray[np.float32], rewards_B: NDArray[np.floating], step: int
) -> Snapshot:
    """Return the screen that one of the last B steps of a fragment led to."""
    frames = episode.observations.data
    frame_HWC = np.asarray(frames[len(frames) - len(answer) + step])
    entropy_N = answer[step] if answer.ndim == 2 else np.empty(0, np.float32)
    return Snapshot(episode.custom_data.get(GAME, ""), frame_HWC, entropy_N, float(rewards_B[step]))


def joined(of_runners: Iterable[SnapshotPair | None]) -> SnapshotPair | None:
    """Return the first runner's newest screen and the highest-reward one of all runners; None if
    there is none."""
    seen = [one for one in of_runners if one is not None]
    if not seen:
        return None
    return SnapshotPair(
        seen[0].newest, max((one.peak for one in seen), key=lambda snapshot: snapshot.reward)
    )


def save_snapshot(run: Path, epoch: int, snapshot: Snapshot) -> None:
    """Write <run>/snapshots/epoch-<epoch>.npz: a few KB."""
    file = io.BytesIO()
    entropy = snapshot.entropy_N.astype(np.float16)
    np.savez_compressed(
        file,
        frame=snapshot.frame_HWC,
        entropy=entropy,
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
