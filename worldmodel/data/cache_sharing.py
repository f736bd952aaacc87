"""Ranks of a training run that fill a cache folder together.

The ranks of one machine see the same folder, and so do those of several machines if it lies on a
network file system. No setting says which do: each rank writes an empty file and looks for those of
the others. Every group of ranks that see the same folder then does what is missing in it.

All ranks of the run wait for each other, whatever their folder holds already. A group that has
nothing to do thus waits for the others instead of leaving them in a barrier, and an error on one
rank ends all of them.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from envs.utils.atomic_io import temporary_path
from envs.utils.errors import InputError, one_line

LONGEST_WAIT = timedelta(days=1)
"""Time in which a rank has to finish its share. Copying and encoding take hours on large data."""


@dataclass(frozen=True)
class CacheSharing:
    """Ranks of a run that see the same cache folder as this rank, which is one of them."""

    rank: int = 0
    sharers: tuple[int, ...] = (0,)
    """The ranks that see the folder, in ascending order."""
    group: dist.ProcessGroup | None = None
    """All ranks of the run; None if there is one."""

    @property
    def part(self) -> int:
        """Number of this rank among those that see the folder. Number 0 decides what is missing."""
        return self.sharers.index(self.rank)

    @property
    def parts(self) -> int:
        """Number of ranks that see the folder."""
        return len(self.sharers)

    def meet(self, value: Any = None) -> list[Any]:
        """Wait for all ranks of the run -> the values of those that see the folder, by part.

        If a rank left the block of `share_cache` by an error, raise one that ends the block here.
        """
        values = _exchange(self.group, value)
        return [values[rank] for rank in self.sharers]

    def check_same(self, manifest_hash: str) -> None:
        """Raise InputError unless all ranks of the run have the same windows."""
        if len(set(_exchange(self.group, manifest_hash))) > 1:
            raise InputError(
                "the ranks of this run have different copies of the data: delete the cache "
                "folder's files episodes-* on each machine, and they are made again"
            )


@contextmanager
def share_cache(folder: Path, rank: int, ranks: int) -> Iterator[CacheSharing]:
    """Yield the share of a rank in filling a cache folder. All ranks of the run must call this.

    If the block fails on one rank, it fails on all.

    Raises: InputError if another rank raised one or the folder cannot be written to.
    """
    if ranks == 1:
        yield CacheSharing()
        return
    # A group of its own, since the run's would end ranks that wait for longer than half an hour. It
    # is never destroyed: that would cut off ranks that are still reading the last message.
    group = dist.new_group(timeout=LONGEST_WAIT)
    try:
        sharing = CacheSharing(rank, _find_sharers(folder, group), group)
        yield sharing
        sharing.meet()
    except _OtherRankFailed as failed:
        raise failed.cause from None
    except Exception as error:
        with contextlib.suppress(_OtherRankFailed):
            _exchange(group, None, error)
        raise


class _OtherRankFailed(RuntimeError):
    """The error of another rank."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _exchange(
    group: dist.ProcessGroup | None, value: Any, error: Exception | None = None
) -> list[Any]:
    """Return the values of all ranks. Raise _OtherRankFailed if one of them has an error.

    A rank with an error may be ahead of the others: whatever they exchange next, they receive it.
    """
    if group is None:
        return [value]
    # Messages instead of exceptions, of which not all can be pickled.
    failure = error and (isinstance(error, InputError), type(error).__name__, one_line(error))
    rows: list[Any] = [None] * group.size()
    try:
        dist.all_gather_object(rows, (value, failure), group=group)
    except RuntimeError as gone:
        raise _OtherRankFailed(RuntimeError(f"another rank is gone: {one_line(gone)}")) from gone
    failed = next((rank for rank, (_, failure) in enumerate(rows) if failure is not None), None)
    if failed is None:
        return [value for value, _ in rows]
    with contextlib.suppress(RuntimeError):
        dist.barrier(group)  # no rank ends before all have read the message
    is_input, kind, text = rows[failed][1]
    raise _OtherRankFailed(
        InputError(text) if is_input else RuntimeError(f"rank {failed}: {kind}: {text}")
    )


def _find_sharers(folder: Path, group: dist.ProcessGroup) -> tuple[int, ...]:
    """Return the ranks that see the same folder as this one, in ascending order."""
    marker = temporary_path(folder / "rank")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        markers = _exchange(group, marker.name)
        first = next(rank for rank, name in enumerate(markers) if (folder / name).exists())
        firsts = _exchange(group, first)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()
    return tuple(rank for rank, other in enumerate(firsts) if other == first)
