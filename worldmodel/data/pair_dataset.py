"""Pairs of small and large frames: two data sets of the same play, matched by session id.

`envs.collect.rerender` makes the larger one: it plays every episode again and keeps its session id
and split. B pairs, h, w pixels of the small frames, H, W of the large ones, C = 3.
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
    """Frames that both data sets hold. Both have windows of one frame and the same stride.

    Sessions that `large` lacks, for example because a ROM was missing, are left out.

    Raises: InputError if a session differs between the two, or if they have none in common.
    """

    provides = frozenset({"small_frames", "large_frames"})

    def __init__(self, small: ClipDataset, large: ClipDataset) -> None:
        self.small, self.large = small, large
        identity = f"{small.manifest_hash} {large.manifest_hash}"
        self.manifest_hash = hashlib.sha256(identity.encode()).hexdigest()
        large_index = {episode.session_id: index for index, episode in enumerate(large.episodes)}
        matches = []
        for index, episode in enumerate(small.episodes):
            if episode.session_id not in large_index:
                continue
            other = large.episodes[large_index[episode.session_id]]
            if other != episode:
                raise InputError(
                    f"session {episode.session_id} of the pairs has {other.num_frames} frames of "
                    f"{other.game}, not {episode.num_frames} of {episode.game}: replay the data "
                    "again"
                )
            matches.append((index, large_index[episode.session_id]))
        if len(small) and not matches:
            raise InputError(
                "the pairs hold no session of the data: make them of it with `autoexplore "
                "data rerender`"
            )
        self._small_ids = _window_ids(small, [index for index, _ in matches])
        self._large_ids = _window_ids(large, [index for _, index in matches])

    def __len__(self) -> int:
        return len(self._small_ids)

    def sampler(self, seed: int) -> ClipSampler:
        """Return the order in which a `ClipLoader` draws pairs."""
        return ClipSampler(len(self), seed)

    def batch(self, window_ids: np.ndarray) -> Batch:
        """Decode pairs. Raises: InputError naming the session of a damaged one."""
        small = self.small.batch(self._small_ids[window_ids])
        large = self.large.batch(self._large_ids[window_ids])
        return Batch(
            window_ids_B=torch.from_numpy(window_ids),
            small_frames_BhwC=small.frames_BTHWC[:, 0],
            large_frames_BHWC=large.frames_BTHWC[:, 0],
        )

    def describe(self, window_id: int) -> str:
        """Describe a pair in words, for messages."""
        return self.small.describe(int(self._small_ids[window_id]))


def check_sizes(pairs: PairDataset, size: int, factor: int) -> None:
    """Raise InputError unless small frames have `size` pixels a side and large ones `factor` times
    as many.
    """
    sizes = pairs.small.size, pairs.large.size
    expected = (size, size), (size * factor, size * factor)
    if sizes != expected:
        raise InputError(
            f"pairs of frames of {sizes[0]} and {sizes[1]} pixels: expected {expected[0]} and "
            f"{expected[1]}"
        )


def _window_ids(clips: ClipDataset, episodes: list[int]) -> np.ndarray:
    """Return the numbers of all windows of some episodes, int64."""
    ends, counts = clips.ends_E[episodes].tolist(), clips.windows_E[episodes].tolist()
    ranges = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return np.concatenate([np.arange(0), *ranges])
