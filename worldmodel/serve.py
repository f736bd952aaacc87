"""Reward service: a world model as a Ray Serve app that returns the token entropies of clips.

A replica batches the windows of several requests. `update_weights` replaces the weights of all
replicas while they serve; a replica that starts later reads the newest ones. Callers of an
overloaded app get Serve's BackPressureError.
"""

import asyncio
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.uncertainty import (
    Actions,
    Frames,
    Windows,
    check_clip,
    cut_windows,
    load_model,
    window_entropies,
)

APP_NAME = "autoexplore-reward"
BATCH_WINDOWS = 256
"""Maximum number of windows of a batch and of a request."""
BATCH_WAIT_S = 0.005
ONGOING = 16
"""Requests that a replica holds; more queue at their callers."""
STUCK_S = 600.0
"""Duration of a forward pass after which a replica reports that it is unhealthy."""
FAILURES = 3
"""Failed batches in a row after which a replica reports that it is unhealthy."""
TARGET_ONGOING = 4.0
"""Requests per replica, queued ones included, that autoscaling aims at."""
LOOK_BACK_S = 12.0
"""Seconds over which autoscaling averages the queue. Callers report it every 10 s, and the requests
of an epoch arrive in a burst."""
UPSCALE_DELAY_S = 5.0
DOWNSCALE_DELAY_S = 120.0
"""Longer than an agent learns between two epochs of sampling."""
RATE_WINDOW_S = 10.0
HISTORY = 4096
"""Maximum number of requests and batches that the statistics cover."""
LATENCIES_MS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0]
BATCHES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the app."""

    app_name: str = APP_NAME
    replicas: int = 1
    """Number of replicas, or the minimum if `max_replicas` is larger."""
    max_replicas: int | None = None
    """Maximum number of replicas while requests queue. None: `replicas`."""
    num_cpus: float = 1.0
    """Logical CPUs of each replica."""
    num_gpus: float | None = None
    """GPUs of each replica; fractions are possible. None: those of `node_resources("serve")`."""
    threads: int = 1
    """Torch threads of each replica; 0 keeps torch's default."""
    precision: str = "auto"
    """Precision of the passes: bf16 (autocast), fp32, or auto (bf16 on GPUs that compute it)."""
    compile: bool | None = None
    """Compile the model; None: on NVIDIA GPUs."""
    cuda_graphs: bool = False
    """Replay passes of few windows as CUDA graphs, see `WorldModel.use_cuda_graphs`."""
    steps: int = 1
    """MaskGIT passes."""
    batch: int = 0
    """Windows in a forward pass; 0 selects a number that suits the device."""
    max_queued_requests: int = 64
    """Requests that may queue at one caller; more are refused (back-pressure)."""

    def __post_init__(self) -> None:
        for name in ("replicas", "steps", "max_queued_requests"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise InputError(
                f"max_replicas = {self.max_replicas}: must be at least replicas = {self.replicas}"
            )


def _count_windows(requests: list[Windows]) -> int:
    """Return the size of a batch."""
    return sum(len(request.actions_B4) for request in requests)


class UncertaintyService:
    """Replica of the app."""

    def __init__(self, config: ServeConfig, device: str) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self._config, self._device = config, device
        self._weights = newest_weights(config.app_name)
        self._model = self._load(self._weights)
        self._warm_up()
        self._statistics = ServiceStatistics()
        self._lock = asyncio.Lock()
        self._pass_started: float | None = None
        self._failures, self._last_error = 0, ""

    async def entropies(self, frames_THWC: Frames, actions_T: Actions) -> NDArray[np.float32]:
        """Return the token entropies (T - 4, N) in [0, 1] of the windows of a clip.

        Raises InputError for a clip that this model cannot score.
        """
        arrived = time.monotonic()
        check_clip(self._model, frames_THWC, actions_T)
        count = len(frames_THWC) - WINDOW + 1
        self._statistics.waiting += count
        try:
            windows = cut_windows(frames_THWC, actions_T)
            entropy_BN: NDArray[np.float32] = await self._score_batch(windows)
        finally:
            self._statistics.waiting -= count
        self._statistics.record_answer(count, time.monotonic() - arrived)
        return entropy_BN

    @serve.batch(
        max_batch_size=BATCH_WINDOWS,
        batch_wait_timeout_s=BATCH_WAIT_S,
        batch_size_fn=_count_windows,
    )
    async def _score_batch(self, requests: list[Windows]) -> list[NDArray[np.float32]]:
        """Score the windows of several requests; one forward pass runs at a time."""
        async with self._lock:
            # Copies only the frames that the model sees: windows are overlapping views.
            frames = np.concatenate([request.frames_B5HWC[:, :CONTEXT] for request in requests])
            actions = np.concatenate([request.actions_B4 for request in requests])
            self._pass_started = time.monotonic()
            try:
                # In a thread, so that health checks and new requests do not wait.
                entropy_BN = await asyncio.to_thread(
                    window_entropies,
                    self._model,
                    frames,
                    actions,
                    steps=self._config.steps,
                    batch=self._config.batch,
                )
            except Exception as error:
                self._statistics.record_failure()
                self._failures, self._last_error = self._failures + 1, repr(error)
                raise
            finally:
                self._pass_started = None
        self._failures = 0
        self._statistics.record_batch(len(actions))
        ends = np.cumsum([len(request.actions_B4) for request in requests])
        return np.split(entropy_BN, ends[:-1])

    async def update_weights(self, path: str) -> None:
        """Load the weights of another folder; a batch in progress keeps the old ones."""
        self._model, self._weights = await asyncio.to_thread(self._load, path), path

    def _load(self, path: str) -> Any:
        config = self._config
        model = load_model(path, self._device, config.precision, compile=config.compile)
        return model.use_cuda_graphs() if config.cuda_graphs else model

    def _warm_up(self) -> None:
        """Score empty frames on a GPU, so that the first clips do not wait for compilation."""
        if self._model.device.type == "cpu":
            return  # nothing is compiled there
        size = self._model.cfg.size
        for count in (1, 2):  # one graph is for one window, another for several
            frames = np.zeros((count, CONTEXT, size, size, 3), np.uint8)
            actions = np.zeros((count, WINDOW - 1), np.int64)
            window_entropies(self._model, frames, actions, steps=self._config.steps)

    async def check_health(self) -> None:
        """Raise RuntimeError if Serve, which calls this regularly, should replace this replica.

        Also load weights that were updated while this replica started.
        """
        seconds = time.monotonic() - self._pass_started if self._pass_started is not None else 0.0
        if seconds > STUCK_S:
            raise RuntimeError(f"a forward pass has been running for {seconds:.0f} s")
        if self._failures >= FAILURES:
            raise RuntimeError(
                f"{self._failures} batches in a row failed, the last with {self._last_error}"
            )
        try:
            newest = await asyncio.to_thread(newest_weights, self._config.app_name)
            if newest != self._weights:
                await self.update_weights(newest)
        except InputError as error:  # the caller of `update_weights` gets it too, and reverts them
            logging.getLogger("ray.serve").warning("cannot load the newest weights: %s", error)

    async def describe(self) -> dict[str, Any]:
        """Return process id, folder of the weights, torch threads and statistics."""
        replica = {"pid": os.getpid(), "weights": self._weights, "threads": torch.get_num_threads()}
        return {**replica, **self._statistics.summary()}


def _key(app_name: str) -> bytes:
    return f"autoexplore/serve/{app_name}/weights".encode()


def newest_weights(app_name: str) -> str:
    """Return the folder of the app's newest weights, which the cluster stores."""
    path: bytes | None = internal_kv._internal_kv_get(_key(app_name))
    if path is None:
        raise InputError(f"no app {app_name!r} is running: start it with worldmodel.serve.deploy")
    return path.decode()


def _set_newest_weights(app_name: str, path: Path | str) -> str:
    """Store the folder of the weights of all replicas that start from now on; return its path."""
    folder = Path(path).absolute()
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{path}: no world model here: give a saved one")
    internal_kv._internal_kv_put(_key(app_name), str(folder).encode(), overwrite=True)
    return str(folder)


def application(args: dict[str, Any]) -> serve.Application:
    """Return the app for a config file of Ray Serve, as KubeRay's RayService has one.

    args: `model`, the folder of a world model, and fields of ServeConfig. `app_name` must be the
    name of the app in the file. Raises InputError for a folder without a world model.
    """
    config = ServeConfig(**{name: value for name, value in args.items() if name != "model"})
    _set_newest_weights(config.app_name, args["model"])
    return _bind(config)


def deploy(model_path: Path | str, config: ServeConfig | None = None) -> str:
    """Start the app on the connected Ray, without an HTTP port; return its name.

    Raises InputError for a folder without a world model.
    """
    config = config or ServeConfig()
    _set_newest_weights(config.app_name, model_path)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=_quiet())
    serve.run(_bind(config), name=config.app_name, route_prefix=None)
    return config.app_name


def _quiet() -> LoggingConfig:
    return LoggingConfig(enable_access_log=False, log_level="ERROR")


def _bind(config: ServeConfig) -> serve.Application:
    """Return the app, whose replicas run on the machines of their kind."""
    node = node_resources("serve")
    num_gpus = node.gpus if config.num_gpus is None else config.num_gpus
    deployment: Any = serve.deployment(
        UncertaintyService,
        name="UncertaintyService",
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": num_gpus,
            "resources": node.resources,
        },
        max_ongoing_requests=ONGOING,
        max_queued_requests=config.max_queued_requests,
        health_check_period_s=5,
        logging_config=_quiet(),
        **_scaling_options(config),
    )
    app: serve.Application = deployment.bind(config, "cuda" if num_gpus else "cpu")
    return app


def _scaling_options(config: ServeConfig) -> dict[str, Any]:
    """Return Serve's options for a fixed number of replicas or for autoscaling."""
    if config.max_replicas in (None, config.replicas):
        return {"num_replicas": config.replicas, "graceful_shutdown_timeout_s": 2}
    autoscaling = AutoscalingConfig(
        min_replicas=config.replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=TARGET_ONGOING,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=DOWNSCALE_DELAY_S,
    )
    # A replica that is no longer needed finishes its requests.
    return {"autoscaling_config": autoscaling, "graceful_shutdown_timeout_s": 20}


def update_weights(app_name: str, model_path: Path | str) -> int:
    """Replace the weights of a running app, which drops no request; return the number of replicas.

    Raises InputError for a folder without a valid world model; the app then keeps its weights.
    """
    old = newest_weights(app_name)
    # First, so that a replica that is just starting gets them too.
    folder = _set_newest_weights(app_name, model_path)
    handle = serve.get_app_handle(app_name)
    try:
        return len(handle.broadcast("update_weights", folder).results())
    except RayTaskError as error:
        _set_newest_weights(app_name, old)
        handle.broadcast("update_weights", old).results()
        raise InputError(
            f"{model_path}: the replicas cannot load it ({error.cause}); they keep {old}"
        ) from error


def describe(app_name: str = APP_NAME) -> list[dict[str, Any]]:
    """Return the description of each replica of a running app."""
    replicas: list[dict[str, Any]] = serve.get_app_handle(app_name).broadcast("describe").results()
    return replicas


def shutdown(app_name: str = APP_NAME) -> None:
    """Stop the app; Serve itself runs until `ray.serve.shutdown()`."""
    serve.delete(app_name)
    internal_kv._internal_kv_del(_key(app_name))


class ServiceStatistics:
    """Statistics of a replica, also exported as Ray metrics. Use them on its event loop only."""

    def __init__(self) -> None:
        descriptions = {
            "windows": "windows scored",
            "requests": "requests answered",
            "failures": "batches that failed",
        }
        self._counters = {
            name: metrics.Counter(f"autoexplore_reward_{name}", f"Reward service: {text}.")
            for name, text in descriptions.items()
        }
        self._latency = metrics.Histogram(
            "autoexplore_reward_latency_ms", "From arrival to answer.", LATENCIES_MS
        )
        self._batch_size = metrics.Histogram(
            "autoexplore_reward_batch_windows", "Windows in a forward pass.", BATCHES
        )
        self._totals = dict.fromkeys(descriptions, 0)
        self._answers: deque[tuple[float, int, float]] = deque(maxlen=HISTORY)
        self._batches: deque[int] = deque(maxlen=HISTORY)
        self._started = time.monotonic()
        self.waiting = 0
        """Windows that have arrived and are not answered yet."""

    def record_answer(self, windows: int, seconds: float) -> None:
        """Record the answer to a request, `seconds` after its arrival."""
        self._add("requests", 1)
        self._add("windows", windows)
        self._latency.observe(1_000 * seconds)
        self._answers.append((time.monotonic(), windows, seconds))

    def record_batch(self, windows: int) -> None:
        """Record a batch of windows."""
        self._batch_size.observe(windows)
        self._batches.append(windows)

    def record_failure(self) -> None:
        """Record a batch that failed."""
        self._add("failures", 1)

    def summary(self) -> dict[str, Any]:
        """Return totals, windows/s of the last 10 s, mean batch size, latency percentiles in ms."""
        now = time.monotonic()
        recent = sum(windows for end, windows, _ in self._answers if now - end <= RATE_WINDOW_S)
        latencies = [1_000 * seconds for _, _, seconds in self._answers] or [np.nan]
        percentiles = np.percentile(latencies, [50, 95, 99]).tolist()
        return {
            **self._totals,
            "waiting": self.waiting,
            "windows_per_second": recent / max(min(RATE_WINDOW_S, now - self._started), 1e-9),
            "batch_windows": float(np.mean(self._batches or [np.nan])),
            "latency_ms": dict(zip(("p50", "p95", "p99"), percentiles, strict=True)),
        }

    def _add(self, name: str, number: int) -> None:
        self._totals[name] += number
        self._counters[name].inc(number)
