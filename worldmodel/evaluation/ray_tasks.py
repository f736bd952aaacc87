"""Run many calls of one function as Ray tasks, a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from envs.utils.ray_session import NodeResources


def map_ray_tasks(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    at_a_time: int,
    retries: int = 1,
    on: NodeResources | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the call, result) as calls end; `at_a_time` run in parallel.

    Each runs in a process of its own with one torch thread, which on a few cores is faster than one
    call after the other with all of them, and runs `on` the machines that are given, with a GPU
    where they have some. A call whose process dies is made again up to `retries` times. What a call
    raises is raised here, and those that still run are cancelled, as when the caller stops
    listening. A Ray session must be there.
    """
    import ray

    on = on or NodeResources()
    task = ray.remote(num_cpus=1, num_gpus=on.gpus, resources=on.resources, max_retries=retries)(
        _single_threaded
    )
    waiting = list(enumerate(calls))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                number, call = waiting.pop()
                running[task.remote(function, *call)] = number
            (done,), _ = ray.wait(list(running))
            number = running.pop(done)
            yield number, ray.get(done)
    finally:
        # Not by force: a training run that is asked to stop saves a checkpoint first.
        for left in running:
            ray.cancel(left)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=60)


def _single_threaded(function: Callable[..., Any], *call: Any) -> Any:
    torch.set_num_threads(1)
    return function(*call)
