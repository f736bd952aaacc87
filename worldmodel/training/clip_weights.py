"""Weights of training clips: shares of data sets, and priority for what a world model doubts.

Shapes: N clips of training, M scored windows, S data sets.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.utils.atomic_io import write_atomic
from envs.utils.progress import progress
from worldmodel.config import WINDOW
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.devices import product_format
from worldmodel.models.weights import tensors_sha256
from worldmodel.models.world_model import WorldModel
from worldmodel.uncertainty import window_entropies

SCORE_EVERY = 8
"""Frames from one scored window of an episode to the next."""
SCORE_BATCH = 32
"""Windows that are decoded at a time."""
LARGEST_DEVIATION = 2.0
"""Deviations from the mean uncertainty that count: a clip is preferred by a factor of e^2."""


def clip_weights(
    clips: ClipDataset,
    shares: Sequence[float] = (),
    prioritised: float = 0.0,
    uncertainty_N: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Return the probability of each clip, float64 (N,).

    `shares` is that of each data set, in any unit; without them every clip is as likely. Of each
    data set, the share `prioritised` of the draws is proportional to exp(z), z being the clip's
    uncertainty in standard deviations above the mean.
    """
    source_N = np.repeat(clips.source_E, clips.windows_E)
    counts_S = np.bincount(source_N, minlength=len(clips.uris))
    shares_S = np.array(shares, np.float64) if len(shares) else counts_S.astype(np.float64)

    def within_shares(likely_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale numbers so that those of each data set add up to its share."""
        totals_S = np.bincount(source_N, likely_N, len(clips.uris))
        scaled_N = likely_N * shares_S[source_N] / totals_S[source_N]
        return scaled_N / scaled_N.sum()

    weights_N = within_shares(np.ones(len(clips)))
    if uncertainty_N is None:
        return weights_N
    z_N = (uncertainty_N - uncertainty_N.mean()) / max(float(uncertainty_N.std()), 1e-9)
    priority_N = within_shares(np.exp(z_N.clip(-LARGEST_DEVIATION, LARGEST_DEVIATION)))
    return (1 - prioritised) * weights_N + prioritised * priority_N


def clip_uncertainty(clips: ClipDataset, world: WorldModel, cache: Path) -> NDArray[np.float32]:
    """Return the mean token entropy of a world model in each clip, float32 (N,).

    One window is scored at every `SCORE_EVERY`-th frame, and a clip has the score of the one that
    is nearest to its middle, or the mean if its episode is too short. Scores are kept in the folder
    `cache`.

    Raises: InputError for frames or actions that the model does not know.
    """
    windows = clips.with_windows(WINDOW, SCORE_EVERY)
    identity = f"{tensors_sha256(world.state_dict())} {windows.manifest_hash}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    products = product_format(world.device, world.precision)
    suffix = "" if products == "fp32" else f"-{products}"
    stored = cache / f"uncertainty-{digest}{suffix}.npy"
    if stored.exists():
        score_M = np.load(stored, allow_pickle=False)
    else:
        score_M = _score(windows, world)
        file = io.BytesIO()
        np.save(file, score_M)
        write_atomic(stored, file.getvalue())
    episode_N, first_N = clips.locate_all(np.arange(len(clips)))
    middle_N = first_N + (clips.length - WINDOW) // 2
    counts_N = windows.windows_E[episode_N]
    place_N = np.clip(np.round(middle_N / SCORE_EVERY).astype(np.int64), 0, counts_N - 1)
    known_N = counts_N > 0
    result_N = np.full(len(clips), score_M.mean() if len(score_M) else 0.0, np.float32)
    result_N[known_N] = score_M[windows.first_windows(episode_N)[known_N] + place_N[known_N]]
    return result_N


def _score(windows: ClipDataset, world: WorldModel) -> NDArray[np.float32]:
    """Return the mean token entropy of each window, float32 (M,)."""
    score_M = np.zeros(len(windows), np.float32)
    with progress("scoring clips", len(windows)) as bar:
        for ids in np.split(np.arange(len(windows)), range(SCORE_BATCH, len(windows), SCORE_BATCH)):
            batch = windows.batch(ids)
            frames, actions = batch.frames_BTHWC.numpy(), batch.actions_BT.numpy()
            score_M[ids] = window_entropies(world, frames, actions).mean(1)
            bar.advance(len(ids))
    return score_M
