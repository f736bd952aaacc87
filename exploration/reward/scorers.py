"""Scorers: rewards of clips from a world model in the process or behind Ray Serve.

A scorer is the only connection between agent and world model. `LocalScorer` and `ServeScorer` give
the same numbers. Shapes: T frames of a clip, B = T - 4 windows and rewards, N tokens.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.utils.errors import InputError
from exploration.reward.token_entropy import TOP_FRACTION, uncertainty_reward
from worldmodel.config import WINDOW
from worldmodel.uncertainty import (
    Actions,
    Frames,
    Windows,
    cut_windows,
    load_model,
    window_entropies,
)

TOLERANCE = 1e-4
"""Largest rounding error by which an entropy may leave [0, 1]."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
"""Pauses before a request to an overloaded service is repeated; they double each time."""


class ScoringError(RuntimeError):
    """Windows that could not be scored after all retries; their fragment must be dropped."""


class ClipRewards(NamedTuple):
    """Rewards of the last B steps of a clip."""

    rewards_B: NDArray[np.float32]
    tokens_BN: NDArray[np.float32] | None = None
    """Token entropies or disagreements in [0, 1]; None for rewards that have none."""


Pending = Callable[[], ClipRewards]
"""Call that waits for the rewards of a clip."""


class Scorer(Protocol):
    """Protocol of all intrinsic rewards."""

    def submit(self, frames_THWC: Frames, actions_T: Actions, top_fraction: float) -> Pending:
        """Start scoring T >= 5 consecutive frames with the T - 1 actions between them.

        The returned call waits for the rewards of the last T - 4 steps. It raises ScoringError if
        they cannot be computed. `top_fraction` is that of `uncertainty_reward`.
        """


def reward_tokens(tokens_BN: Any, windows: int, top_fraction: float) -> ClipRewards:
    """Compute the rewards of token entropies or disagreements (Eq. 3-4).

    Raises ScoringError unless they are of `windows` windows, finite and in [0, 1].
    """
    array = np.asarray(tokens_BN, np.float32)
    if array.ndim != 2 or len(array) != windows or array.shape[1] == 0:
        raise ScoringError(f"the reward model returned shape {array.shape} for {windows} windows")
    if not np.isfinite(array).all():
        raise ScoringError("the reward model returned values that are not finite")
    if array.min() < -TOLERANCE or array.max() > 1 + TOLERANCE:
        raise ScoringError(
            f"the reward model returned values from {array.min()} to {array.max()}, not in [0, 1]"
        )
    array = array.clip(0.0, 1.0)
    return ClipRewards(uncertainty_reward(array, top_fraction), array)


class ModelScorer(ABC):
    """Scorer with a saved world model in this process, which it loads for the first clip."""

    def __init__(
        self, model_path: Path | str, *, device: str = "auto", precision: str = "auto"
    ) -> None:
        self._model_path, self._place = model_path, (device, precision)
        self._model: Any = None

    def load(self) -> Any:
        """Return the model, loaded at the first call. Raises InputError for an invalid folder."""
        if self._model is None:
            model = load_model(self._model_path, *self._place)
            self.load_networks(model)
            self._model = model
        return self._model

    def load_networks(self, model: Any) -> None:  # noqa: B027  # optional
        """Load further networks of the reward; the default has none."""

    @abstractmethod
    def score_windows(self, windows: Windows, top_fraction: float = TOP_FRACTION) -> ClipRewards:
        """Compute the rewards of windows."""

    def submit(
        self, frames_THWC: Frames, actions_T: Actions, top_fraction: float = TOP_FRACTION
    ) -> Pending:
        """Return a call that scores the windows of a clip."""
        return lambda: self.score_windows(cut_windows(frames_THWC, actions_T), top_fraction)


class LocalScorer(ModelScorer):
    """Token entropy of a saved world model in this process."""

    def __init__(
        self, model_path: Path | str, *, steps: int = 1, batch: int = 0, **place: str
    ) -> None:
        """Initialise with the options of `window_entropies`, and with `device` and `precision`."""
        super().__init__(model_path, **place)
        self._steps, self._batch = steps, batch

    def score_windows(self, windows: Windows, top_fraction: float = TOP_FRACTION) -> ClipRewards:
        """Compute the rewards of windows (Eq. 2-4)."""
        entropy_BN = window_entropies(self.load(), *windows, steps=self._steps, batch=self._batch)
        return reward_tokens(entropy_BN, len(windows.actions_B4), top_fraction)


class ServeScorer:
    """Token entropy of a `worldmodel.serve` app, with all requests in flight at once."""

    def __init__(
        self,
        app_name: str,
        *,
        windows: int = 64,
        timeout_s: float = 300.0,
        retries: int = 1,
        ahead: int = 64,
    ) -> None:
        """Initialise the client of an app.

        `windows`: maximum per request. `timeout_s`: of a request, including its time in queues;
        within it, requests to an overloaded app are repeated. `retries`: repetitions of a request
        that timed out or whose replica died. `ahead`: steps of an env after which they are sent
        while it plays on, 0 to send everything at the end.
        """
        from worldmodel.serve import BATCH_WINDOWS

        if not 1 <= windows <= BATCH_WINDOWS:
            raise InputError(f"windows {windows}: a request holds 1 to {BATCH_WINDOWS}")
        self._app_name, self._windows = app_name, windows
        self._timeout_s, self._retries = timeout_s, retries
        self.ahead = ahead
        self._handle: Any = None

    def submit(
        self, frames_THWC: Frames, actions_T: Actions, top_fraction: float = TOP_FRACTION
    ) -> Pending:
        """Send all requests; the returned call waits for the answers.

        It raises ScoringError after the last retry, and InputError for a clip that the app refuses.
        """
        count, overlap = len(frames_THWC) - WINDOW + 1, WINDOW - 1
        requests = []
        for start in range(0, count, self._windows):
            end = start + self._windows + overlap
            requests.append((frames_THWC[start:end], actions_T[start : end - 1]))
        deadline = time.monotonic() + self._timeout_s
        responses = [self._send(request) for request in requests]

        def receive() -> ClipRewards:
            pairs = zip(responses, requests, strict=True)
            entropies = [self._receive(*pair, deadline) for pair in pairs]
            return reward_tokens(np.concatenate(entropies), count, top_fraction)

        return receive

    def _send(self, request: tuple[Frames, Actions]) -> Any:
        """Send a request; return its response or the exception that prevented it."""
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(self._app_name)
            return self._handle.entropies.remote(*request)
        except RayServeException as error:  # no such app, or it is being replaced
            return error

    def _receive(
        self, response: Any, request: tuple[Frames, Actions], deadline: float
    ) -> NDArray[np.float32]:
        """Wait for a response; repeat the request after a failure or if the app is overloaded."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import BackPressureError, RayServeException

        retries, pause = self._retries, FIRST_PAUSE_S
        while True:
            try:
                if isinstance(response, Exception):
                    raise response
                return response.result(timeout_s=max(deadline - time.monotonic(), 0.0))
            except InputError as error:
                # Ray raises a subclass of the cause's class, with a traceback as its message.
                raise InputError(str(getattr(error, "cause", error))) from error
            except TimeoutError:
                response.cancel()
                failure: Exception = TimeoutError(
                    f"no answer from app {self._app_name!r} in {self._timeout_s} s"
                )
            except (RayError, RayServeException) as error:
                failure = error
            if isinstance(failure, BackPressureError) and time.monotonic() + pause < deadline:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            elif retries:
                retries -= 1
                deadline = time.monotonic() + self._timeout_s
            else:
                raise ScoringError(f"request to the reward service: {failure}") from failure
            response = self._send(request)
