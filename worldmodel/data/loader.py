"""Batches decoded in advance by threads, in an order that can be resumed."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from envs.utils.errors import InputError
from worldmodel.data.batch import Batch
from worldmodel.data.dataset import Dataset


class ClipLoader:
    """Shuffled, resumable stream of one rank's batches, decoded in advance by threads.

    `batch_size` counts the clips of all ranks together. A loader that gets the `state()` of another
    one continues with the next batch, also with a different number of ranks. The stream ends after
    `batches`, or never. With `pin` the threads also copy batches to pinned memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 0,
        state: dict[str, Any] | None = None,
        batches: int | None = None,
        pin: bool = False,
    ) -> None:
        self.dataset, self._batch_size, self._rank, self._ranks = dataset, batch_size, rank, ranks
        self._sampler = dataset.sampler(seed)
        self._consumed = 0
        self._pin = pin
        if state is not None:
            if (state["manifest_hash"], state["seed"]) != (dataset.manifest_hash, seed):
                raise InputError(
                    "the run was trained on other data, clips or seed: continue it with "
                    "the same ones"
                )
            self._consumed = int(state["samples_consumed"])
        self._requested = self._consumed
        self._end = None if batches is None else self._consumed + batches * batch_size
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        # One batch more than there are threads, so that no thread is idle while one is consumed.
        self._max_pending = threads + 1
        self._pending: deque[Future[Batch]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._consumed == self._end:
            raise StopIteration
        if self._pool is None:
            batch = self._read(self._next_ids())
        else:
            while len(self._pending) < self._max_pending and self._requested != self._end:
                self._pending.append(self._pool.submit(self._read, self._next_ids()))
            batch = self._pending.popleft().result()
        self._consumed += self._batch_size
        return batch

    def _read(self, ids: np.ndarray) -> Batch:
        batch = self.dataset.batch(ids)
        return batch.pin() if self._pin else batch

    def _next_ids(self) -> np.ndarray:
        ids = self._sampler.batch(self._requested, self._batch_size, self._rank, self._ranks)
        self._requested += self._batch_size
        return ids

    def state(self) -> dict[str, Any]:
        """Return the position after the batches returned so far, as JSON data."""
        return {
            "seed": self._sampler.seed,
            "epoch": self._sampler.epoch(self._consumed),
            "samples_consumed": self._consumed,
            "manifest_hash": self.dataset.manifest_hash,
        }

    def close(self) -> None:
        """Stop the threads."""
        self.dataset.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
