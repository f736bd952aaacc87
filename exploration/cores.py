"""A core for each process that plays, and for its games, which wait for each other at every step. Linux only.

A core is claimed by a locked file, which the system unlocks when the claiming process ends, however it ends: runners of
several runs on one machine, and those that are started anew, keep out of each other's way.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from envs.utils.errors import InputError


def check_pinning(runners: int) -> None:
    """Raises InputError where processes cannot be held on cores, or none of their own would play."""
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("pin_runners needs Linux, whose scheduler can hold a process on a core: leave it out here")
    if runners < 1:
        raise InputError(
            f"pin_runners holds runners' processes on cores, and runners {runners} has none: give 1 or more"
        )


class Core:
    """A core for this process and the games that it started, claimed for as long as the process lives."""

    def __init__(self, runner: int) -> None:
        """Claims the first free one of the cores that this process may use. Where none is free, runners share them in
        turn; `runner` counts from 0."""
        cores = sorted(os.sched_getaffinity(0))
        folder = Path(tempfile.gettempdir()) / f"autoexplore-cores-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        self.number, self._claim = cores[runner % len(cores)], None
        for core in cores:
            if claim := _locked(folder / str(core)):
                self.number, self._claim = core, claim
                return

    def hold(self, processes: Iterable[int]) -> None:
        """Keep processes on the core with all their threads; those that they start later stay there too."""
        for process in processes:
            for _ in range(2):  # the second time for threads that one not held yet has started meanwhile
                with suppress(FileNotFoundError):  # it died: the next step says so, and asks for new games
                    self._hold(os.listdir(f"/proc/{process}/task"))

    def _hold(self, threads: Iterable[str]) -> None:
        for thread in threads:
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread), {self.number})


def _locked(path: Path) -> IO[str] | None:
    """The file, locked until it is closed; None where another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
