"""Stop requests: Ctrl+C in the own process, a file for workers elsewhere."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from envs.utils.progress import console


class GracefulInterrupt:
    """Context in which the first Ctrl+C requests a stop after the current step; the second stops at
    once.

    With `at_once` the first Ctrl+C stops at once too and is remembered: Python drops a
    KeyboardInterrupt raised inside a finaliser, so that only `asked` reports it.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._asked, self._at_once = False, at_once
        self._before: Any = None

    def asked(self) -> bool:
        """Return True after Ctrl+C was pressed."""
        return self._asked

    def __enter__(self) -> "GracefulInterrupt":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # elsewhere Python allows no handlers
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked or self._at_once:
            self._asked = True
            raise KeyboardInterrupt
        self._asked = True
        line = "stopping after this step with a checkpoint; press Ctrl+C again to stop at once"
        console.print(f"{line} without one", soft_wrap=True)


class StopFile:
    """A file in the run's folder that asks workers on any node to stop; read at most twice a
    second.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / ".stop"
        self._looked = 0.0

    def ask(self) -> None:
        """Ask all workers of the run to stop after their current step."""
        self._path.touch()

    def clear(self) -> None:
        """Withdraw the request."""
        self._path.unlink(missing_ok=True)

    def asked(self) -> bool:
        """Return True if a stop is requested."""
        now = time.monotonic()
        if now - self._looked < 0.5:
            return False
        self._looked = now
        return self._path.exists()
