"""Clips of what each button does in a game, recorded from the emulator for the annotation page.

A clip is one PNG with all its frames side by side, row by row: the page draws the frames of all clips by one clock, so
that two clips show the same moment of two futures. Every clip of a set begins at the same state of the emulator and
differs only in the button that is held. A process holds one emulator, so each game is recorded in a process of its own
(`experiments.catalog_tools.record`), which the recorder here watches.
"""

import math
import multiprocessing
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError
from experiments.catalog_tools.clip_format import read_clips


@dataclass(frozen=True)
class Progress:
    """How far a game's clips are. status: waiting, recording, ready, failed. reason: why it failed, else empty."""

    status: str
    reason: str = ""


class Recorder:
    """Records games one after the other in the background; the one that was asked for last comes first.

    folder: one folder a game. seconds: how long one game may take. What is there already is not recorded again.
    """

    def __init__(self, games: Sequence[str], folder: Path, seconds: float = 120.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._waiting = [game for game in games if read_clips(folder / game) is None]
        waiting = set(self._waiting)
        self._progress = {game: Progress("waiting" if game in waiting else "ready") for game in games}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the recording that is under way, whose clips are then not kept, and begin no other."""
        self._stopping.set()
        self._thread.join()

    def progress(self, game: str) -> Progress:
        """How far the game's clips are."""
        return self._progress[game]

    def hurry(self, game: str) -> None:
        """Record this game next."""
        with self._lock:
            if game in self._waiting:
                self._waiting.remove(game)
                self._waiting.insert(0, game)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                if not self._waiting:
                    return
                game = self._waiting.pop(0)
            self._progress[game] = Progress("recording")
            reason = self._record(game)
            self._progress[game] = Progress("failed", reason) if reason else Progress("ready")

    def _record(self, game: str) -> str:
        """Record in a process of its own. Returns why it failed, or an empty string."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(game, self._folder / game, there), daemon=True)
        process.start()
        there.close()
        reason = None
        for _ in range(math.ceil(self._seconds * 10)):
            if self._stopping.is_set() or here.poll(0.1):
                break
        else:
            reason = f"{game}: the recording took more than {self._seconds:g} s and was ended"
        if reason is None and not self._stopping.is_set():
            try:
                reason = here.recv()
            except EOFError:
                process.join()
                reason = f"{game}: the emulator's process ended with exit code {process.exitcode}"
        process.kill()
        process.join()
        here.close()
        for left in self._folder.glob(f".{game}.*.tmp"):  # of a recording that was cut short
            shutil.rmtree(left)
        return reason or ("the page was stopped" if self._stopping.is_set() else "")


def _child(game: str, folder: Path, answer: Connection) -> None:
    """What the recording process does. Sends an empty string, or what went wrong as one line."""
    from experiments.catalog_tools.record import record

    try:
        record(game, folder)
        answer.send("")
    except InputError as error:
        answer.send(str(error))
    except Exception as error:  # whatever a core does to one game, the person goes on with the next
        answer.send(f"{game}: {type(error).__name__}: {error}")
