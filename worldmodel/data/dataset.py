"""The interface of all datasets that training reads."""

from abc import ABC, abstractmethod

import numpy as np

from worldmodel.data.batch import Batch
from worldmodel.data.sampler import Sampler


class Dataset(ABC):
    """Numbered training samples."""

    manifest_hash: str
    """Hash of what determines the samples and their order. A run resumes only on an equal one."""
    provides: frozenset[str]
    """Fields of its batches: a subset of frames, actions, tokens, latent_actions, small_frames,
    large_frames.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws samples."""

    @abstractmethod
    def batch(self, window_ids: np.ndarray) -> Batch:
        """Read samples by number. Raises: InputError naming the session of a damaged one."""

    @abstractmethod
    def describe(self, window_id: int) -> str:
        """Describe a sample in words, for messages."""

    def evenly_spaced(self, count: int) -> np.ndarray:
        """Return `count` evenly spaced sample numbers, or all if `count` is 0 or too large."""
        if count == 0 or count >= len(self):
            return np.arange(len(self))
        return np.arange(count) * len(self) // count

    def close(self) -> None:  # noqa: B027 - most datasets have nothing to stop
        """Stop reading ahead."""
