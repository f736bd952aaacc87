"""The interface of all datasets that training reads."""

from abc import ABC, abstractmethod

import numpy as np

from worldmodel.data.batch import Batch
from worldmodel.data.sampler import Sampler


class Dataset(ABC):
    """Numbered training samples."""

    manifest_hash: str
    """Names the samples and their order: a run resumes only on a dataset with the same one."""
    provides: frozenset[str]
    """Fields of its batches: frames, actions, tokens, latent_actions, small_ and large_frames."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sampler(self, seed: int) -> Sampler:
        """Return the order in which a `ClipLoader` draws samples."""

    @abstractmethod
    def batch(self, window_ids: np.ndarray) -> Batch:
        """Read samples by number. Raise InputError that names the session of a damaged one."""

    @abstractmethod
    def describe(self, window_id: int) -> str:
        """Describe a sample in words, for messages."""

    def evenly_spaced(self, count: int) -> np.ndarray:
        """Return at most `count` numbers, spread evenly over all and always the same, int64 (N,).

        `count` = 0 returns all of them.
        """
        if count == 0 or count >= len(self):
            return np.arange(len(self))
        return np.arange(count) * len(self) // count

    def close(self) -> None:  # noqa: B027 - most datasets have nothing to stop
        """Stop reading ahead."""
