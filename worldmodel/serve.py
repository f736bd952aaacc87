"""World model as a Ray Serve app, which answers with the token entropies of windows.

The windows of several requests form a batch on the replica. New weights are swapped in while it
answers: `swap` tells every replica, and one that starts later reads which weights are the newest.
Where more is asked than can be answered, callers get Serve's BackPressureError instead of a longer
queue.
"""

import asyncio
import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayTaskError
from ray.experimental import internal_kv
from ray.serve import metrics
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from envs.utils.errors import InputError
from envs.utils.ray_session import node_resources
from worldmodel.uncertainty import load_model, validate_windows, window_entropies

APP_NAME = "autoexplore-reward"
BATCH_WINDOWS = 256
"""Windows in a batch, and the most that one request may hold."""
BATCH_WAIT_S = 0.005
ONGOING = 16
"""Requests that a replica holds; more wait at their callers."""
QUEUED = 64
"""Requests that may wait at one caller; more are refused (back-pressure)."""
STUCK_S = 600.0
"""Seconds after which a forward pass that has not come back makes a replica unhealthy, so that
Serve replaces it."""
FAILURES = 3
"""Batches in a row that fail before a replica says that it is unhealthy."""
TARGET_ONGOING = 4.0
"""Requests, waiting ones included, that autoscaling wants there to be for each replica."""
LOOK_BACK_S = 12.0
"""Seconds that autoscaling averages the queue over, more than the 10 between callers' reports of it
to Serve: an epoch's requests come all at once, and then none for a while."""
UPSCALE_DELAY_S = 5.0
"""Seconds that the queue must be too long before there are more replicas."""
DOWNSCALE_DELAY_S = 120.0
"""Seconds that it must be short before there are fewer: longer than an agent learns between two
epochs' play."""
RECENT_S = 10.0
"""Seconds that a rate is taken over."""
KEPT = 4096
"""Requests and batches that percentiles are taken over, at most."""
LATENCIES_MS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0]
BATCHES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


class _Windows(NamedTuple):
    """Checked windows of one request."""

    frames_B5HWC: NDArray[np.uint8]
    actions_B4: NDArray[np.integer]


def _count(requests: list[_Windows]) -> int:
    """Count the windows of some requests, which a batch is measured by."""
    return sum(len(request.actions_B4) for request in requests)


class UncertaintyService:
    """Replica of the app. `entropies` answers requests, `load` swaps weights."""

    def __init__(
        self, app_name: str, context: int, steps: int, batch: int, device: str, threads: int
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._options: dict[str, Any] = {"context": context, "steps": steps, "batch": batch}
        self._app_name, self._device = app_name, device
        self._weights = newest_weights(app_name)
        self._model = load_model(self._weights, device)
        self._meter = ServiceMetrics()
        self._turn = asyncio.Lock()
        self._busy_since: float | None = None
        self._failures, self._fault = 0, ""

    async def entropies(
        self, frames: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return the token entropies (B, N) in [0, 1] of windows.

        `frames` are windows (B, 5, H, W, C), or consecutive frames (B + 4, H, W, C) that hold B of
        them, uint8. Raises InputError for what this model cannot score.
        """
        came = time.monotonic()
        request = _Windows(validate_windows(self._model, frames, actions_B4), actions_B4)
        count = len(actions_B4)
        self._meter.waiting += count
        try:
            answer: NDArray[np.float32] = await self._batched(request)
        finally:
            self._meter.waiting -= count
        self._meter.answered(count, time.monotonic() - came)
        return answer

    @serve.batch(
        max_batch_size=BATCH_WINDOWS, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_count
    )
    async def _batched(self, requests: list[_Windows]) -> list[NDArray[np.float32]]:
        """Score requests as one batch, and split the entropies again."""
        entropy_BN = await self._score(requests)
        ends = np.cumsum([len(request.actions_B4) for request in requests])
        return np.split(entropy_BN, ends[:-1])

    async def _score(self, requests: list[_Windows]) -> NDArray[np.float32]:
        """Compute the entropies of all windows of some requests; one such pass runs at a time."""
        async with self._turn:
            # Windows are views that overlap: only the frames that the model is given are copied.
            context = self._options["context"]
            given_BPHWC = np.concatenate(
                [request.frames_B5HWC[:, :context] for request in requests]
            )
            actions_B4 = np.concatenate([request.actions_B4 for request in requests])
            self._busy_since = time.monotonic()
            try:
                # In a thread, so that the replica goes on answering health checks and taking
                # requests.
                entropy_BN = await asyncio.to_thread(
                    window_entropies, self._model, given_BPHWC, actions_B4, **self._options
                )
            except Exception as error:
                self._meter.failed()
                self._failures, self._fault = self._failures + 1, repr(error)
                raise
            finally:
                self._busy_since = None
        self._failures = 0
        self._meter.scored(len(actions_B4))
        return entropy_BN

    async def load(self, path: str) -> str:
        """Swap in the weights of another folder; a batch in progress keeps the old ones."""
        self._model, self._weights = await asyncio.to_thread(load_model, path, self._device), path
        return path

    async def check_health(self) -> None:
        """Raise RuntimeError where Serve, which asks regularly, should replace this replica.

        Also takes over weights that were swapped in while this replica started.
        """
        busy = time.monotonic() - self._busy_since if self._busy_since is not None else 0.0
        if busy > STUCK_S:
            raise RuntimeError(f"a forward pass has not come back for {busy:.0f} s")
        if self._failures >= FAILURES:
            raise RuntimeError(
                f"{self._failures} batches in a row failed, the last with {self._fault}"
            )
        newest = await asyncio.to_thread(_newest_weights, self._app_name)
        if newest is not None and newest != self._weights:
            try:
                await self.load(newest)
            except InputError as error:  # `swap` is about to find that too, and to take it back
                logging.getLogger("ray.serve").warning("cannot load the newest weights: %s", error)

    async def describe(self) -> dict[str, Any]:
        """Return who answers (process id, torch threads), with which weights, and how fast."""
        who = {"pid": os.getpid(), "weights": self._weights, "threads": torch.get_num_threads()}
        return {**who, **self._meter.summary()}


def _key(app_name: str) -> bytes:
    return f"autoexplore/serve/{app_name}/weights".encode()


def _newest_weights(app_name: str) -> str | None:
    path: bytes | None = internal_kv._internal_kv_get(_key(app_name))
    return None if path is None else path.decode()


def newest_weights(app_name: str) -> str:
    """Return the folder of the app's newest weights, as the cluster knows it."""
    path = _newest_weights(app_name)
    if path is None:
        raise InputError(
            f"no weights are set for the app {app_name!r}: start it with worldmodel.serve.run"
        )
    return path


def _set_newest_weights(app_name: str, path: Path | str) -> str:
    """Store the folder of the weights for all replicas that start from now on.

    Raises InputError where it holds no world model.
    """
    folder = Path(path).absolute()
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{path}: no world model here: give a saved one")
    internal_kv._internal_kv_put(_key(app_name), str(folder).encode(), overwrite=True)
    return str(folder)


def run(
    model_path: Path | str,
    *,
    app_name: str = APP_NAME,
    replicas: int = 1,
    max_replicas: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    threads: int = 1,
    context: int = 2,
    steps: int = 1,
    batch: int = 0,
    max_queued_requests: int = QUEUED,
) -> str:
    """Start the app on the connected Ray, without any HTTP port, and return its name.

    `replicas` with `num_cpus`, `num_gpus` (a share of one is possible; None for a whole one where
    the cluster has machines with GPUs for this, otherwise none) and `threads` (torch's) each; up to
    `max_replicas` where they have more than TARGET_ONGOING requests each to answer. `steps`:
    MaskGIT passes of an answer; `batch`: windows in a forward pass, 0 for what suits the device;
    `max_queued_requests`: requests that may wait at one caller. Raises InputError for a folder that
    is no world model, and for invalid numbers.
    """
    if (
        replicas < 1
        or (max_replicas is not None and max_replicas < replicas)
        or steps < 1
        or max_queued_requests < 1
    ):
        raise InputError(
            f"replicas {replicas}, steps {steps} and max_queued_requests {max_queued_requests} "
            f"must be 1 or more, and max_replicas {max_replicas} at least replicas"
        )
    _set_newest_weights(app_name, model_path)
    place = node_resources("serve")
    num_gpus = place.gpus if num_gpus is None else num_gpus
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(enable_access_log=False, log_level="ERROR")
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment: Any = serve.deployment(
        UncertaintyService,
        name="UncertaintyService",
        ray_actor_options={
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": place.resources,
        },
        max_ongoing_requests=ONGOING,
        max_queued_requests=max_queued_requests,
        health_check_period_s=5,
        logging_config=quiet,
        **_scale(replicas, max_replicas),
    )
    device = "cuda" if num_gpus else "cpu"
    serve.run(
        deployment.bind(app_name, context, steps, batch, device, threads),
        name=app_name,
        route_prefix=None,
    )
    return app_name


def _scale(replicas: int, max_replicas: int | None) -> dict[str, Any]:
    """Return Serve's settings for a fixed number of replicas, or for one that follows the queue."""
    if max_replicas is None or max_replicas == replicas:
        return {"num_replicas": replicas, "graceful_shutdown_timeout_s": 2}
    autoscaling = AutoscalingConfig(
        min_replicas=replicas,
        max_replicas=max_replicas,
        target_ongoing_requests=TARGET_ONGOING,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=DOWNSCALE_DELAY_S,
    )
    # A replica that is no longer needed answers what it has taken on.
    return {"autoscaling_config": autoscaling, "graceful_shutdown_timeout_s": 20}


def swap(app_name: str, model_path: Path | str) -> int:
    """Put other weights behind a running app, without dropping a request -> the number of replicas
    that took them.

    Raises InputError for a folder that is no world model, or a damaged one; then the old weights
    stay.
    """
    old = newest_weights(app_name)
    # First, so that a replica that starts meanwhile has them too.
    folder = _set_newest_weights(app_name, model_path)
    handle = serve.get_app_handle(app_name)
    try:
        return len(handle.broadcast("load", folder).results())
    except RayTaskError as error:
        _set_newest_weights(app_name, old)
        handle.broadcast("load", old).results()
        raise InputError(
            f"{model_path}: the replicas cannot load it ({error.cause}); they keep {old}"
        ) from error


def describe(app_name: str = APP_NAME) -> list[dict[str, Any]]:
    """Ask each replica of a running app to describe itself."""
    answers: list[dict[str, Any]] = serve.get_app_handle(app_name).broadcast("describe").results()
    return answers


def stop(app_name: str = APP_NAME) -> None:
    """End the app. Serve itself goes on until `serve.shutdown()`."""
    serve.delete(app_name)
    internal_kv._internal_kv_del(_key(app_name))


class ServiceMetrics:
    """Counts requests, windows and batches.

    To be made inside a replica, on whose event loop alone it is used.
    """

    def __init__(self) -> None:
        self._counts = {
            name: metrics.Counter(
                f"autoexplore_reward_{name}", description=f"Reward service: {about}."
            )
            for name, about in (
                ("windows", "windows scored"),
                ("requests", "requests answered"),
                ("failures", "batches that failed"),
            )
        }
        self._latency = metrics.Histogram(
            "autoexplore_reward_latency_ms",
            description="From arrival to answer.",
            boundaries=LATENCIES_MS,
        )
        self._batch = metrics.Histogram(
            "autoexplore_reward_batch_windows",
            description="Windows in a forward pass.",
            boundaries=BATCHES,
        )
        self._totals = dict.fromkeys(self._counts, 0)
        self._answers: deque[tuple[float, int, float]] = deque(maxlen=KEPT)
        self._batches: deque[int] = deque(maxlen=KEPT)
        self._started = time.monotonic()
        self.waiting = 0
        """Windows that have come and are not answered yet."""

    def answered(self, windows: int, seconds: float) -> None:
        """Record the answer to a request, `seconds` after it came."""
        self._count("requests", 1)
        self._count("windows", windows)
        self._latency.observe(1_000 * seconds)
        self._answers.append((time.monotonic(), windows, seconds))

    def scored(self, windows: int) -> None:
        """Record the windows of one forward pass."""
        self._batch.observe(windows)
        self._batches.append(windows)

    def failed(self) -> None:
        """Record a batch that failed."""
        self._count("failures", 1)

    def summary(self) -> dict[str, Any]:
        """Return totals, windows/s of the last 10 s, mean batch size, latency percentiles in ms."""
        now = time.monotonic()
        recent = sum(windows for when, windows, _ in self._answers if now - when <= RECENT_S)
        latencies = [1_000 * seconds for _, _, seconds in self._answers]
        percentiles = (
            np.percentile(latencies, [50, 95, 99]).tolist() if latencies else [float("nan")] * 3
        )
        return {
            **self._totals,
            "waiting": self.waiting,
            "windows_per_second": recent / max(min(RECENT_S, now - self._started), 1e-9),
            "batch_windows": float(np.mean(self._batches)) if self._batches else float("nan"),
            "latency_ms": dict(zip(("p50", "p95", "p99"), percentiles, strict=True)),
        }

    def _count(self, name: str, number: int) -> None:
        self._totals[name] += number
        self._counts[name].inc(number)
