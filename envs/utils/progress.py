"""Console output: the shared console, progress bars and durations in words."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EXIT_SIGPIPE = 128 + 13
"""Exit code after stdout was closed, as by `| head`: the shell's code for SIGPIPE."""


class _Console(Console):
    """A rich console that ends the program quietly, with code 141, when stdout is closed."""

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(EXIT_SIGPIPE) from None


# Lines are not broken without a terminal: a path that is cut in two cannot be copied.
console = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


class Bar:
    """The progress of `progress`: `advance` by some units, `note` the metrics next to the bar."""

    def __init__(self, bar: Progress, task: Any, description: str, total: int, shown: bool) -> None:
        self._bar, self._task, self._description = bar, task, description
        self._total, self._shown = total, shown
        self._started = self._printed = time.monotonic()
        self.done = 0

    def advance(self, units: int = 1, note: str | None = None) -> None:
        self.done += units
        self._bar.update(self._task, advance=units)
        if note is not None:
            self._bar.update(self._task, note=note)
        self._plain(note or "")

    def _plain(self, note: str) -> None:
        """Print one plain line every 15 seconds if no terminal is attached (a log file, CI)."""
        now = time.monotonic()
        if not self._shown or console.is_terminal or now - self._printed < 15:
            return
        self._printed = now
        left = (now - self._started) / max(self.done, 1) * (self._total - self.done)
        console.print(f"{self._description}: {self.done}/{self._total}, {left:.0f} s left {note}")


@contextmanager
def progress(description: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Bar]:
    """Show a progress bar with the time left on a terminal, plain lines elsewhere, nothing unless
    `shown`.

    `total` and `done` count the same units; `done` is the part that an earlier run had finished.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")
        yield Bar(bar, task, description, total - done, shown)


def format_duration(seconds: float) -> str:
    """Return a duration in at most two units: 7.5 -> `7.5 s`, 95 -> `1 min 35 s`, 123456 -> `34.3
    h`.
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= (2 * size if unit == "days" else size):
            return f"{seconds / size:,.1f} {unit}"
    return f"{round(seconds / 60)} min"
