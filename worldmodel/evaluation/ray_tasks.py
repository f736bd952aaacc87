"""Many calls of one function as Ray tasks, a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from envs.utils.ray_session import NodeResources


def map_ray_tasks(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    at_a_time: int,
    on: NodeResources | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the call, result) as calls end, with `at_a_time` of them in parallel.

    Each call runs in a process with one torch thread, on the nodes and the GPUs of `on`. A call
    whose process dies is repeated once. An exception is raised here and cancels the running calls,
    as closing this generator does. Needs a Ray session.
    """
    import ray

    on = on or NodeResources()
    task = ray.remote(num_cpus=1, num_gpus=on.gpus, resources=on.resources, max_retries=1)(
        _single_threaded
    )
    waiting = list(enumerate(calls))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                number, call = waiting.pop()
                running[task.remote(function, *call)] = number
            (finished,), _ = ray.wait(list(running))
            number = running.pop(finished)
            yield number, ray.get(finished)
    finally:
        # Not by force: a cancelled training run saves a checkpoint first.
        for remaining in running:
            ray.cancel(remaining)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=60)


def _single_threaded(function: Callable[..., Any], *call: Any) -> Any:
    torch.set_num_threads(1)
    return function(*call)
