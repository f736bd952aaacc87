"""Endless shuffled order of windows: a keyed permutation that is computed, not stored.

The position of a run in its data is therefore one number, the samples consumed. Resuming costs
nothing, and ranks split a batch without communication.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envs.utils.errors import InputError

_MIX_1, _MIX_2, _GOLDEN = (
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
    np.uint64(0x9E3779B97F4A7C15),
)
_ROUND_CONSTANTS = [np.uint64(int(_GOLDEN) * (number + 1) % 2**64) for number in range(6)]


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser: every input bit affects every output bit. uint64 (N,)"""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def derive_keys(key: np.uint64 | np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Derive a key for `feistel_permutation` from each number: int64 (N,) -> uint64 (N,)."""
    return _mix(key + _GOLDEN * (numbers.astype(np.uint64) + np.uint64(1)))


def feistel_permutation(
    positions: np.ndarray, size: int | np.ndarray, key: np.ndarray
) -> np.ndarray:
    """Map positions through a keyed permutation of 0..size-1: uint64 (N,) -> uint64 (N,).

    `size` is one for all positions or int64 (N,), `key` uint64 (N,).

    A balanced Feistel network permutes 0..4^b-1, the smallest such range that holds `size`. A value
    outside 0..size-1 is permuted again (cycle walking), which yields a permutation of 0..size-1
    (Black and Rogaway 2002). The range is less than four times `size`, so that a position takes
    fewer than four rounds on average.
    """
    sizes = np.broadcast_to(np.asarray(size, np.uint64), positions.shape)
    bits = np.frexp((sizes - np.uint64(1)).astype(np.float64))[1]  # of the largest value
    shifts = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    masks = (np.uint64(1) << shifts) - np.uint64(1)
    round_keys = [_mix(key + constant) for constant in _ROUND_CONSTANTS]
    values = positions.copy()
    outside = np.arange(len(positions))
    while len(outside):
        shift, mask = shifts[outside], masks[outside]
        left, right = values[outside] >> shift, values[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key[outside]) & mask)
        values[outside] = (left << shift) | right
        outside = outside[values[outside] >= sizes[outside]]
    return values


def hash_key(*parts: object) -> np.uint64:
    """Derive a key for `feistel_permutation` by hashing `parts`."""
    return np.uint64(int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()))


@dataclass(frozen=True)
class ClipSampler:
    """Shuffled stream of windows 0..windows-1; every epoch holds each window exactly once.

    A global batch is `batch_size` consecutive samples of the stream, and rank r of R takes the r-th
    of its R equal parts. Global batches therefore do not depend on the number of ranks.
    """

    windows: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise InputError(
                "no window to sample from: the episodes are shorter than a clip; give longer ones"
            )

    def window_ids(self, samples: np.ndarray) -> np.ndarray:
        """Return the window of each sample, counted over all epochs from 0. int64 (N,)"""
        epochs, inside = np.divmod(samples.astype(np.uint64), np.uint64(self.windows))
        key = derive_keys(np.uint64(self.seed % 2**64), epochs)
        return feistel_permutation(inside, self.windows, key).astype(np.int64)

    def batch(
        self, samples_consumed: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> np.ndarray:
        """Return this rank's windows of a global batch, int64 (batch_size / ranks,)."""
        share = share_of_batch(batch_size, ranks)
        return self.window_ids(samples_consumed + rank * share + np.arange(share))

    def epoch(self, samples_consumed: int) -> float:
        """Return the passes over the data so far, in [0, inf)."""
        return samples_consumed / self.windows


def share_of_batch(batch_size: int, ranks: int) -> int:
    """Return the samples of one rank. Raises: InputError if the batch does not split evenly."""
    if batch_size % ranks:
        raise InputError(
            f"a batch of {batch_size} does not split over {ranks} workers: make it a multiple"
        )
    return batch_size // ranks


class Sampler(Protocol):
    """Endless order of windows."""

    @property
    def seed(self) -> int:
        """Seed of the order."""

    def batch(self, samples_consumed: int, batch_size: int, rank: int, ranks: int) -> np.ndarray:
        """Return this rank's windows of a global batch, int64 (batch_size / ranks,)."""

    def epoch(self, samples_consumed: int) -> float:
        """Return the passes over the data so far, in [0, inf)."""


@dataclass(frozen=True)
class LabelledSampler:
    """Sampler that replaces a random half of the windows by labelled ones, with replacement.

    A few labelled episodes among many would otherwise be drawn too rarely. The choice is a function
    of the seed, the window and the samples consumed before its batch, so that it is the same after
    resuming and for any number of ranks.
    """

    order: Sampler
    labelled: np.ndarray
    """Numbers of the labelled windows, int64."""

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self.order.seed

    def batch(
        self, samples_consumed: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> np.ndarray:
        """Return this rank's windows of a global batch, int64 (batch_size / ranks,)."""
        window_ids = self.order.batch(samples_consumed, batch_size, rank, ranks)
        draws = derive_keys(hash_key(self.seed, "labelled", samples_consumed), window_ids)
        others = self.labelled[(draws >> np.uint64(1)) % np.uint64(len(self.labelled))]
        return np.where(draws % np.uint64(2) == 0, others, window_ids)

    def epoch(self, samples_consumed: int) -> float:
        """Return the passes of the given order so far, in [0, inf)."""
        return self.order.epoch(samples_consumed)


class WeightedSampler:
    """Sampler that draws windows with replacement, window w with probability `weights_N[w]`.

    A draw is a function of the seed and the number of the sample, so that it is the same after
    resuming and for any number of ranks.
    """

    def __init__(self, weights_N: np.ndarray, seed: int) -> None:
        self.seed = seed
        self._cumulative_N = weights_N.astype(np.float64).cumsum()
        if not len(weights_N) or not self._cumulative_N[-1] > 0:
            raise InputError("no window to sample from: every weight is 0")

    def batch(
        self, samples_consumed: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> np.ndarray:
        """Return this rank's windows of a global batch, int64 (batch_size / ranks,)."""
        share = share_of_batch(batch_size, ranks)
        samples = samples_consumed + rank * share + np.arange(share)
        keys = derive_keys(hash_key(self.seed, "weighted"), samples)
        # 53 random bits are a float64 in [0, 1).
        draws = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53 * self._cumulative_N[-1]
        return np.searchsorted(self._cumulative_N, draws, side="right").astype(np.int64)

    def epoch(self, samples_consumed: int) -> float:
        """Return the windows drawn so far, as a multiple of those there are, in [0, inf)."""
        return samples_consumed / len(self._cumulative_N)
