"""What a person may look at while an agent learns: single screens, and how unsure the model was of each part of them.

They come out of the scoring that happens anyway, two a fragment, and leave a runner once an epoch: sampling does not
wait for them. The most surprising screen of each epoch is kept in <run>/snapshots/.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.utils.atomic_io import write_atomic
from envs.utils.images import Frames, heat_map

FOLDER = "snapshots"
HEAT_HIGH = 0.8
"""The entropy, as a share of the largest possible, that is drawn brightest."""


@dataclass(frozen=True)
class Snapshot:
    """One screen: its frame uint8 (H, W, 3), the entropy of its tokens (N,) in [0, 1], the reward for reaching it.

    `entropy_N` is empty where the reward is none of a world model's tokens.
    """

    game: str
    frame_HWC: NDArray[np.uint8]
    entropy_N: NDArray[np.float32]
    reward: float

    def map(self) -> Frames | None:
        """The entropies in colour over the grey frame, uint8 (H, W, 3); None where they are no square of tokens."""
        side = math.isqrt(len(self.entropy_N))
        if side < 2 or side**2 != len(self.entropy_N) or self.frame_HWC.shape[0] % side:
            return None
        return heat_map(self.entropy_N.reshape(1, side, side), self.frame_HWC[None], HEAT_HIGH)[0]

    def pair(self) -> Frames:
        """Frame and map side by side, or the frame alone."""
        shown = self.map()
        return self.frame_HWC if shown is None else np.concatenate([self.frame_HWC, shown], axis=1)


@dataclass(frozen=True)
class SnapshotPair:
    """Of a runner's last fragments: where an env stands now, and the screen that paid most."""

    newest: Snapshot
    peak: Snapshot


def joined(of_runners: Iterable[SnapshotPair | None]) -> SnapshotPair | None:
    """The first runner's newest screen, and the one of all runners that paid most; None where nobody saw anything."""
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
    """Epoch -> the screen that paid most in it, in order."""
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
