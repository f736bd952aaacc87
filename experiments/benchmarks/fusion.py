"""Kernels of recorded operations: one for each, or those that a compiler makes of them."""

from collections import defaultdict
from dataclasses import dataclass, field

from experiments.benchmarks.kernels import Kernel, Key, Operation


def eager_kernels(operations: list[Operation]) -> list[Kernel]:
    """Return a kernel for every operation."""
    return [operation.kernel() for operation in operations]


@dataclass
class _Group:
    """Neighbouring operations of a sub-block that are compiled into one kernel."""

    operations: list[Operation] = field(default_factory=list)
    reads: dict[Key, int] = field(default_factory=dict)
    writes: dict[Key, int] = field(default_factory=dict)
    made: dict[int, Operation] = field(default_factory=dict)
    """Storage -> operation that made it."""
    backward: bool = False


def compiled_kernels(operations: list[Operation]) -> list[Kernel]:
    """Return the kernels after each sub-block was compiled.

    Neighbours between two kernels that stand apart become one, which reads what others made and
    writes what others read. A backward pass computes elementwise results of the forward pass again
    where that moves fewer bytes than to store them, as torch's partitioner does.
    """
    steps = _group(operations)
    groups = [step for step in steps if isinstance(step, _Group)]
    readers: dict[int, list[Operation | _Group]] = defaultdict(list)
    for step in steps:
        of_step = [step] if isinstance(step, Operation) else step.operations
        for storage in {key[0] for operation in of_step for key in operation.reads}:
            readers[storage].append(step)
    for group in groups:
        _find_traffic(group, readers)
    again: dict[int, dict[Key, int]] = {}
    for group in groups:
        if not group.backward:
            _recompute(group, readers, again)
    kernels = []
    for step in steps:
        if isinstance(step, Operation):
            kernels.append(step.kernel())
        else:
            moved = sum(step.reads.values()) + sum(step.writes.values())
            kernels.append(Kernel("fused elementwise", 0.0, moved))
    return kernels


def _group(operations: list[Operation]) -> list[Operation | _Group]:
    steps: list[Operation | _Group] = []
    place: tuple[int | None, bool] | None = None
    for operation in operations:
        if not operation.fusible:
            steps.append(operation)
            place = None
            continue
        if place != (operation.call, operation.backward):
            steps.append(_Group(backward=operation.backward))
            place = operation.call, operation.backward
        group = steps[-1]
        assert isinstance(group, _Group)
        group.operations.append(operation)
    return steps


def _find_traffic(group: _Group, readers: dict[int, list[Operation | _Group]]) -> None:
    """Fill in what a group reads and writes."""
    for operation in group.operations:
        for key, size in operation.reads.items():
            if key[0] not in group.made:
                group.reads[key] = size
        for key, size in operation.writes.items():
            group.made[key[0]] = operation
            if any(reader is not group for reader in readers[key[0]]):
                group.writes[key] = size


def _recompute(
    group: _Group,
    readers: dict[int, list[Operation | _Group]],
    again: dict[int, dict[Key, int]],
) -> None:
    """Compute results of a forward pass again, in the backward passes that alone read them.

    `again` holds what such results of all groups so far are computed from.
    """
    for key, size in list(group.writes.items()):
        others = [reader for reader in readers[key[0]] if reader is not group]
        later = [reader for reader in others if isinstance(reader, _Group) and reader.backward]
        if len(later) < len(others):
            continue
        sources = _sources(key[0], group, again)
        if sources is None:
            continue
        added = sum(
            size for reader in later for part, size in sources.items() if part not in reader.reads
        )
        if added > size * (1 + len(later)):
            continue
        del group.writes[key]
        again[key[0]] = sources
        for reader in later:
            reader.reads = {k: v for k, v in reader.reads.items() if k[0] != key[0]}
            reader.reads |= sources


def _sources(
    storage: int, group: _Group, again: dict[int, dict[Key, int]]
) -> dict[Key, int] | None:
    """Return what an elementwise result is computed from; None for the result of a sum."""
    if storage in again:
        return again[storage]
    operation = group.made.get(storage)
    if operation is None:
        return None
    largest = max(operation.writes.values())
    own = sum(size for key, size in operation.writes.items() if key[0] == storage)
    if operation.kind == "sums and norms" or own < largest:
        return None
    # Sums that the operation made itself are stored.
    found = {key: size for key, size in operation.writes.items() if key[0] != storage}
    for key, size in operation.reads.items():
        deeper = _sources(key[0], group, again)
        found |= {key: size} if deeper is None else deeper
    return found
