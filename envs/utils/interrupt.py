"""Stop requests: Ctrl+C in this process, the end of its parent, a file for workers elsewhere."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from envs.utils.progress import console


class GracefulInterrupt:
    """Context in which the first Ctrl+C requests a stop and the second stops at once.

    With `at_once` the first Ctrl+C stops at once too and is remembered: Python drops a
    KeyboardInterrupt raised inside a finaliser, so that only `requested` reports it.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._requested, self._at_once = False, at_once
        self._handler_before: Any = None

    def requested(self) -> bool:
        """Return True after Ctrl+C was pressed."""
        return self._requested

    def __enter__(self) -> "GracefulInterrupt":
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        stop_now = self._requested or self._at_once
        self._requested = True
        if stop_now:
            raise KeyboardInterrupt
        console.print(
            "stopping after this step with a checkpoint; press Ctrl+C again to stop at once "
            "without one",
            soft_wrap=True,
        )


PARENT_VARIABLE = "AUTOEXPLORE_PARENT"
"""Environment variable with the id of the process whose end `follow_parent` waits for."""
_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Let this process get Ctrl+C when its parent ends, however that happens, if it asked for it.

    A parent asks with `PARENT_VARIABLE` in the environment. It is for Linux alone: elsewhere a
    killed parent leaves this process running.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None or sys.platform != "linux":
        return
    # A command that a shell started in the background, and its children, ignore Ctrl+C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != int(parent):  # it ended before the call
        raise KeyboardInterrupt


class StopFile:
    """A file in the run's folder that requests workers on any node to stop."""

    POLL_SECONDS = 0.5
    """Shortest interval between two looks at the file."""

    def __init__(self, run: Path) -> None:
        self._path = run / ".stop"
        self._last_look = 0.0

    def request(self) -> None:
        """Request all workers of the run to stop after their current step."""
        self._path.touch()

    def clear(self) -> None:
        """Withdraw the request."""
        self._path.unlink(missing_ok=True)

    def requested(self) -> bool:
        """Return True if a stop is requested."""
        now = time.monotonic()
        if now - self._last_look < self.POLL_SECONDS:
            return False
        self._last_look = now
        return self._path.exists()
