"""Scorers of token entropies: a world model in the process, or the replicas of a Ray Serve app.

Both have one method and give the same numbers. This is the only place where the agent meets the
world model.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.utils.errors import InputError
from exploration.reward.token_entropy import CONTEXT

Entropies = NDArray[np.float32]
Request = tuple[NDArray[np.uint8], NDArray[np.integer]]
TOLERANCE = 1e-4
"""Largest rounding error by which an entropy may leave [0, 1]."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
"""Pauses before a full service is asked again; they double each time."""


class ScoringError(RuntimeError):
    """Windows that could not be scored, after all retries.

    Their fragment must not be learnt from.
    """


class Scorer(Protocol):
    """Protocol of all rewards: windows in, token entropies out."""

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Entropies]:
        """Begin to score windows; calling what is returned waits for the entropies (B, N) in [0,
        1].

        That call raises ScoringError where no score can be had.
        """


def checked(entropy_BN: Any, windows: int) -> Entropies:
    """Return the entropies of `windows` windows as float32 in [0, 1].

    Raises ScoringError for anything else.
    """
    array = np.asarray(entropy_BN, np.float32)
    if array.ndim != 2 or len(array) != windows or array.shape[1] == 0:
        raise ScoringError(f"the reward service answered shape {array.shape} for {windows} windows")
    if not np.isfinite(array).all():
        raise ScoringError("the reward service answered entropies that are not finite")
    if array.min() < -TOLERANCE or array.max() > 1 + TOLERANCE:
        raise ScoringError(
            f"the reward service answered entropies from {array.min()} to {array.max()}, "
            "not in [0, 1]"
        )
    return array.clip(0.0, 1.0)


class LocalScorer:
    """Scorer with a saved world model, loaded into this process at the first window."""

    def __init__(
        self, model_path: Path | str, *, steps: int = 1, batch: int = 0, device: str = "cpu"
    ) -> None:
        """`steps`: MaskGIT passes (1 as published); `batch`: windows in a forward pass, 0 for what
        suits the device."""
        self._path, self._steps, self._batch, self._device = model_path, steps, batch, device
        self._model: Any = None

    def load(self) -> Any:
        """Return the model, loaded at the first call.

        Raises InputError for a folder that holds none, or a damaged one.
        """
        from worldmodel.uncertainty import load_model

        if self._model is None:
            self._model = load_model(self._path, self._device)
        return self._model

    def entropies(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Entropies:
        """Windows uint8 and their actions -> entropies (B, N) in [0, 1]."""
        from worldmodel.uncertainty import window_entropies

        entropy_BN = window_entropies(
            self.load(),
            frames_B5HWC,
            actions_B4,
            context=CONTEXT,
            steps=self._steps,
            batch=self._batch,
        )
        return checked(entropy_BN, len(frames_B5HWC))

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Entropies]:
        """`entropies` when its result is asked for."""
        return lambda: self.entropies(frames_B5HWC, actions_B4)


class ServeScorer:
    """Scorer that asks the app of `worldmodel.serve.run`, with all requests in flight at once."""

    def __init__(
        self,
        app_name: str,
        *,
        windows: int = 64,
        timeout_s: float = 300.0,
        retries: int = 1,
        ahead: int = 64,
    ) -> None:
        """`windows`: in one request; `timeout_s`: for one answer; `retries`: of a request that
        failed.

        `ahead`: windows of an env that are sent off while it plays on, 0 to send everything at the
        end. All requests of all runners wait for their turn, so the time-out is that of a queue,
        not of a calculation. A replica that dies is noticed at once, whatever the time-out; a full
        service is asked again within the time-out, and that is no retry.
        """
        from worldmodel.serve import BATCH_WINDOWS

        if not 1 <= windows <= BATCH_WINDOWS:
            raise InputError(f"windows {windows}: a request holds 1 to {BATCH_WINDOWS}")
        self._app_name, self._windows, self._timeout_s, self._retries = (
            app_name,
            windows,
            timeout_s,
            retries,
        )
        self.ahead = ahead
        self._handle: Any = None

    def entropies(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Entropies:
        """Windows uint8 and their actions -> entropies (B, N) in [0, 1].

        Raises ScoringError after the last retry.
        """
        return self.submit(frames_B5HWC, actions_B4)()

    def submit(
        self, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.integer]
    ) -> Callable[[], Entropies]:
        """Send all requests now; the returned call waits for them."""
        spans = [slice(at, at + self._windows) for at in range(0, len(frames_B5HWC), self._windows)]
        requests = [(_sendable(frames_B5HWC[span]), actions_B4[span]) for span in spans]
        deadline = time.monotonic() + self._timeout_s
        sent = [self._send(request) for request in requests]
        return lambda: np.concatenate(
            [self._wait(*pair, deadline) for pair in zip(sent, requests, strict=True)]
        )

    def _send(self, request: Request) -> Any:
        """Send a request; return its future response, or the exception that kept it from being
        sent."""
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(self._app_name)
            return self._handle.entropies.remote(*request)
        except RayServeException as error:  # no such app, or it is being replaced
            return error

    def _wait(self, response: Any, request: Request, deadline: float) -> Entropies:
        """Await the answer to a request, which is sent again if the replica died or was too late.

        Raises ScoringError after the last retry, and InputError for what the service says it can
        never score.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        for attempt in range(self._retries + 1):
            if attempt:
                response, deadline = self._send(request), time.monotonic() + self._timeout_s
            try:
                return checked(self._answer(response, request, deadline), len(request[1]))
            except TimeoutError:
                error: Exception = ScoringError(
                    f"no answer from app {self._app_name!r} in {self._timeout_s} s"
                )
            except InputError as refused:
                # Ray raises a subclass of the cause's class, with a traceback as its message.
                raise InputError(str(getattr(refused, "cause", refused))) from refused
            except (RayError, RayServeException) as failure:
                error = failure
        raise ScoringError(f"{len(request[1])} windows without a score: {error}") from error

    def _answer(self, response: Any, request: Request, deadline: float) -> Any:
        """Await one response; the request is sent again, after a pause, as long as the service is
        full.

        Raises TimeoutError after the deadline, and the request is called off.
        """
        from ray.serve.exceptions import BackPressureError

        pause = FIRST_PAUSE_S
        while True:
            try:
                if isinstance(response, Exception):
                    raise response
                return response.result(timeout_s=max(deadline - time.monotonic(), 0.0))
            except BackPressureError:
                if time.monotonic() + pause > deadline:
                    raise TimeoutError from None
            except TimeoutError:
                response.cancel()
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            response = self._send(request)


def _sendable(frames_B5HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy overlapping windows (B, 5, H, W, C) for a request.

    Windows of consecutive frames become these frames, (B + 4, H, W, C): a fifth of the bytes.
    """
    from worldmodel.uncertainty import to_consecutive_frames

    film = to_consecutive_frames(frames_B5HWC)
    return np.ascontiguousarray(frames_B5HWC) if film is None else film
