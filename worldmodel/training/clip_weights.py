"""Weights of training clips: shares of data sets, and priority for what a world model doubts.

Shapes: N clips of training, M scored windows.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError
from envs.utils.progress import progress
from worldmodel.config import WINDOW
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.models.weights import tensors_sha256
from worldmodel.uncertainty import load_model, window_entropies

SCORE_EVERY = 8
"""Frames from one scored window of an episode to the next."""
LARGEST_DEVIATION = 2.0
"""Deviations from the mean uncertainty that count: a clip is preferred by a factor of e^2."""


def weigh_clips(
    clips: ClipDataset,
    shares: Sequence[float] = (),
    prioritised: float = 0.0,
    uncertainty_N: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Return the probability of each clip, float64 (N,).

    `shares` is that of each data set, in any unit; without them every clip is as likely. Of each
    data set, the share `prioritised` of the draws is proportional to exp(z), z being the clip's
    uncertainty in standard deviations above the mean.

    Raises: InputError unless there is one positive share for each data set.
    """
    source_N = np.repeat(clips.source_E, clips.windows_E)
    counts_S = np.bincount(source_N, minlength=clips.sources)
    shares_S = np.array(shares, np.float64) if len(shares) else counts_S.astype(np.float64)
    if (
        len(shares_S) != clips.sources
        or not (shares_S > 0).all()
        or not np.isfinite(shares_S).all()
    ):
        raise InputError(
            f"data_shares {' '.join(map(str, shares))}: give one number above 0 for each of the "
            f"{clips.sources} data sets"
        )
    weights_N = (shares_S / np.maximum(counts_S, 1))[source_N]
    weights_N /= weights_N.sum()
    if uncertainty_N is None:
        return weights_N
    z_N = (uncertainty_N - uncertainty_N.mean()) / max(float(uncertainty_N.std()), 1e-9)
    priority_N = weights_N * np.exp(z_N.clip(-LARGEST_DEVIATION, LARGEST_DEVIATION))
    totals_S = np.bincount(source_N, priority_N, clips.sources)
    priority_N *= (shares_S / shares_S.sum() / np.maximum(totals_S, 1e-300))[source_N]
    return (1 - prioritised) * weights_N + prioritised * priority_N


def clip_uncertainty(
    clips: ClipDataset, uris: Sequence[str | Path], cache_dir: Path, model: Path, device: str
) -> NDArray[np.float32]:
    """Return the mean token entropy of a saved world model in each clip, float32 (N,).

    One window is scored at every `SCORE_EVERY`-th frame, and a clip has the score of the one that
    is nearest to its middle. `uris` are those of `clips`. Scores are kept in `cache_dir`.

    Raises: InputError for a model of other actions or another frame size.
    """
    split = clips.split
    windows = ClipDataset(uris, cache_dir, length=WINDOW, stride=SCORE_EVERY, split=split)
    world = load_model(model, device)
    identity = f"{tensors_sha256(world.state_dict())} {windows.manifest_hash}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    stored = Path(cache_dir) / f"uncertainty-{digest}.npy"
    if stored.exists():
        score_M = np.load(stored, allow_pickle=False)
    else:
        score_M = np.zeros(len(windows), np.float32)
        with progress("scoring clips", len(windows)) as bar:
            for start in range(0, len(windows), 32):
                ids = np.arange(start, min(start + 32, len(windows)))
                batch = windows.batch(ids)
                frames, actions = batch.frames_BTHWC.numpy(), batch.actions_BT.numpy()
                score_M[ids] = window_entropies(world, frames, actions).mean(1)
                bar.advance(len(ids))
        file = io.BytesIO()
        np.save(file, score_M)
        write_atomic(stored, file.getvalue())
    episode_N, first_N = clips.locate_all(np.arange(len(clips)))
    middle_N = first_N + (clips.length - WINDOW) // 2
    counts_N = windows.windows_E[episode_N]
    place_N = np.clip(np.round(middle_N / SCORE_EVERY).astype(np.int64), 0, counts_N - 1)
    result_N = np.full(len(clips), score_M.mean() if len(score_M) else 0.0, np.float32)
    known = counts_N > 0  # an episode shorter than a window has none
    first_of = windows.first_windows(episode_N[known])
    result_N[known] = score_M[first_of + place_N[known]]
    return result_N
