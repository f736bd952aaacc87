"""Pairs of small and large frames: two data sets of the same play, matched by session id.

The larger one is made by `envs.collect.rerender`, which plays every episode again and keeps its
session id and split. B pairs, h, w pixels of the small frames, H, W of the large ones, C = 3.
"""

import hashlib

import numpy as np
import torch

from envs.utils.errors import InputError
from worldmodel.data.batch import Batch
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.data.dataset import Dataset
from worldmodel.data.sampler import ClipSampler


class PairDataset(Dataset):
    """Every frame of `small` that `large` has too. Both have windows of one frame and the same
    stride.

    Sessions that `large` lacks (a game whose ROM was not there) are left out. Raise InputError
    where a session is not the same play in both, or they share none.
    """

    provides = frozenset({"small_frames", "large_frames"})

    def __init__(self, small: ClipDataset, large: ClipDataset) -> None:
        self._small, self._large = small, large
        self.manifest_hash = hashlib.sha256(
            f"{small.manifest_hash} {large.manifest_hash}".encode()
        ).hexdigest()
        places = {episode.session_id: place for place, episode in enumerate(large.episodes)}
        ids: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for place, episode in enumerate(small.episodes):
            other = places.get(episode.session_id)
            if other is None:
                continue
            again = large.episodes[other]
            if (again.game, again.num_frames) != (episode.game, episode.num_frames):
                told = (
                    f"{again.num_frames} frames of {again.game}, not {episode.num_frames} of "
                    f"{episode.game}"
                )
                raise InputError(
                    f"session {episode.session_id} of the pairs has {told}: replay the data again"
                )
            count = np.arange(small.windows_E[place])
            firsts = (
                clips.first_windows(np.array([at]))[0]
                for clips, at in ((small, place), (large, other))
            )
            a, b = (first + count for first in firsts)
            ids.append((a, b))
        self._small_ids, self._large_ids = (np.concatenate(side) for side in zip(*ids, strict=True))
        if len(small) and not len(self):
            raise InputError(
                "the pairs hold no session of the data: make them of it with `autoexplore "
                "data rerender`"
            )

    def __len__(self) -> int:
        return len(self._small_ids)

    def sampler(self, seed: int) -> ClipSampler:
        """Return the order in which a `ClipLoader` draws pairs."""
        return ClipSampler(len(self), seed)

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Decode pairs. Raise InputError that names the session of a damaged one."""
        small = self._small.batch(self._small_ids[window_ids])
        large = self._large.batch(self._large_ids[window_ids])
        return Batch(
            window_ids_B=torch.from_numpy(window_ids),
            small_frames_BhwC=small.frames_BTHWC[:, 0],
            large_frames_BHWC=large.frames_BTHWC[:, 0],
        )

    def describe(self, window_id: int) -> str:
        """Describe a pair in words, for messages."""
        return self._small.describe(int(self._small_ids[window_id]))

    def close(self) -> None:
        """Stop reading ahead."""
        self._small.close()
        self._large.close()


def check_sizes(pairs: PairDataset, size: int, factor: int) -> None:
    """Raise InputError unless small frames have `size` pixels a side and large ones `factor` times
    that.
    """
    sizes = pairs._small.size, pairs._large.size
    wanted = (size, size), (size * factor, size * factor)
    if sizes != wanted:
        raise InputError(
            f"pairs of frames of {sizes[0]} and {sizes[1]} pixels: expected {wanted[0]} and "
            f"{wanted[1]}"
        )
