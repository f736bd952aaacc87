"""Batches decoded in advance by threads, in an order that can be resumed."""

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from envs.utils.errors import InputError
from worldmodel.data.batch import Batch
from worldmodel.data.dataset import Dataset


def read_batches(
    dataset: Dataset, window_ids: Iterable[np.ndarray], *, threads: int = 0, pin: bool = False
) -> Generator[Batch]:
    """Yield the batch of each array of window numbers, in order, decoded in advance by threads.

    With `pin` the threads also copy batches to pinned memory. Closing the generator cancels what is
    read in advance.
    """

    def read(ids: np.ndarray) -> Batch:
        batch = dataset.batch(ids)
        return batch.pin() if pin else batch

    if not threads:
        yield from map(read, window_ids)
        return
    queue = iter(window_ids)
    pending: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(threads, "decode") as pool:
        try:
            # One batch more than there are threads, so that none is idle while one is consumed.
            for ids in itertools.islice(queue, threads + 1):
                pending.append(pool.submit(read, ids))
            while pending:
                yield pending.popleft().result()
                for ids in itertools.islice(queue, 1):
                    pending.append(pool.submit(read, ids))
        finally:
            for future in pending:
                future.cancel()


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
        if state is not None:
            if (state["manifest_hash"], state["seed"]) != (dataset.manifest_hash, seed):
                raise InputError(
                    "the run was trained on other data, clips or seed: continue it with "
                    "the same ones"
                )
            self._consumed = int(state["samples_consumed"])
        self._requested = self._consumed
        self._end = None if batches is None else self._consumed + batches * batch_size
        self._batches = read_batches(dataset, self._next_ids(), threads=threads, pin=pin)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._consumed += self._batch_size
        return batch

    def _next_ids(self) -> Iterator[np.ndarray]:
        """Yield the windows of this rank in each batch."""
        while self._requested != self._end:
            ids = self._sampler.batch(self._requested, self._batch_size, self._rank, self._ranks)
            self._requested += self._batch_size
            yield ids

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
        self._batches.close()
