"""GenieRedux-G as a Ray Serve app that answers one question: how unsure are you of these windows?

Requests hold some windows each and are put together to batches on the replica. New weights are swapped in while it
answers: `swap` tells every replica, and one that starts later reads which weights are the newest.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayTaskError
from ray.experimental import internal_kv
from ray.serve.schema import LoggingConfig

from envs.errors import InputError
from worldmodel.uncertainty import load_model, score_windows

APP_NAME = "autoexplore-reward"
BATCH_WINDOWS = 256
BATCH_WAIT_S = 0.005
START_SECONDS = 120

Request = tuple[NDArray[np.uint8], NDArray[np.integer]]


def _windows(requests: list[Request]) -> int:
    """Windows in some requests: what a batch is measured by."""
    return sum(len(frames_B5HWC) for frames_B5HWC, _ in requests)


class UncertaintyService:
    """A replica. `entropies` is the service, `load` swaps weights."""

    def __init__(self, app_name: str, context: int, steps: int, batch: int, device: str, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._options: dict[str, Any] = {"context": context, "steps": steps, "batch": batch}
        self._device, self._weights = device, newest_weights(app_name)
        self._model = load_model(self._weights, device)

    async def entropies(self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]) -> NDArray[np.float32]:
        """Windows uint8 and their actions -> entropies (B, N) in [0, 1]."""
        answer: NDArray[np.float32] = await self._batched((frames_B5HWC, actions_B4))
        return answer

    @serve.batch(max_batch_size=BATCH_WINDOWS, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_windows)
    async def _batched(self, requests: list[Request]) -> list[NDArray[np.float32]]:
        """Requests put together, scored as one, and taken apart again."""
        frames_B5HWC = np.concatenate([frames for frames, _ in requests])
        actions_B4 = np.concatenate([actions for _, actions in requests])
        # In a thread, so that the replica goes on answering health checks and taking requests.
        entropy_BN = await asyncio.to_thread(score_windows, self._model, frames_B5HWC, actions_B4, **self._options)
        return np.split(entropy_BN, np.cumsum([len(frames) for frames, _ in requests])[:-1])

    async def load(self, path: str) -> str:
        """Swap in the weights of another folder; requests that are being answered keep the old ones."""
        self._model, self._weights = await asyncio.to_thread(load_model, path, self._device), path
        return path

    async def describe(self) -> dict[str, Any]:
        """Process id, folder of the weights, torch threads: to find out who answers, and with what."""
        return {"pid": os.getpid(), "weights": self._weights, "threads": torch.get_num_threads()}


def _key(app_name: str) -> bytes:
    return f"autoexplore/serve/{app_name}/weights".encode()


def newest_weights(app_name: str) -> str:
    """The folder that the app's replicas are meant to answer from, as the cluster knows it."""
    path: bytes | None = internal_kv._internal_kv_get(_key(app_name))
    if path is None:
        raise InputError(f"no weights are set for the app {app_name!r}: start it with worldmodel.serve.run")
    return path.decode()


def _set_newest_weights(app_name: str, path: Path | str) -> str:
    """Note a folder, after a look whether it is one, as that of all replicas that start from now on."""
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
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    threads: int = 1,
    context: int = 2,
    steps: int = 1,
    batch: int = 0,
) -> str:
    """Start the app, without any HTTP port, on the Ray that this process is connected to, and return its name.

    `replicas` with `num_cpus`, `num_gpus` and `threads` (torch's) each; `batch`: windows in a forward pass,
    0 for what suits the device. Raises InputError for a folder that is no world model.
    """
    _set_newest_weights(app_name, model_path)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(enable_access_log=False, log_level="ERROR")
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment: Any = serve.deployment(
        UncertaintyService,
        name="UncertaintyService",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=16,
        graceful_shutdown_timeout_s=2,
        health_check_period_s=5,
        logging_config=quiet,
    )
    device = "cuda" if num_gpus else "cpu"
    serve.run(deployment.bind(app_name, context, steps, batch, device, threads), name=app_name, route_prefix=None)
    return app_name


def swap(app_name: str, model_path: Path | str) -> int:
    """Put other weights behind a running app, without dropping a request -> the number of replicas that took them.

    Raises InputError for a folder that is no world model, or a damaged one; then the old weights stay.
    """
    old = newest_weights(app_name)
    folder = _set_newest_weights(app_name, model_path)  # first, so that a replica that starts meanwhile has them too
    handle = serve.get_app_handle(app_name)
    try:
        return len(handle.broadcast("load", folder).results())
    except RayTaskError as error:
        _set_newest_weights(app_name, old)
        handle.broadcast("load", old).results()
        raise InputError(f"{model_path}: the replicas cannot load it ({error.cause}); they keep {old}") from error


def describe(app_name: str = APP_NAME) -> list[dict[str, Any]]:
    """What each replica of a running app says of itself."""
    answers: list[dict[str, Any]] = serve.get_app_handle(app_name).broadcast("describe").results()
    return answers


def stop(app_name: str = APP_NAME) -> None:
    """End the app. Serve itself goes on until `serve.shutdown()`."""
    serve.delete(app_name)
    internal_kv._internal_kv_del(_key(app_name))
