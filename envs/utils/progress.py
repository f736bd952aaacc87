"""Console output: the shared console, progress bars and durations in words."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
PLAIN_SECONDS = 15
"""Interval between two lines of progress if no terminal is attached."""


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
    """The progress of one task, as a bar on a terminal or as plain lines in a log file."""

    def __init__(self, bar: Progress, description: str, total: int, done: int, shown: bool) -> None:
        self._bar, self._shown = bar, shown
        self._id = bar.add_task(description, total=total, completed=done, note="")
        self._units = 0
        self._started = self._printed = time.monotonic()

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """Count finished units and, if given, show `note` next to the bar."""
        self._units += units
        fields = {} if note is None else {"note": note}
        self._bar.update(self._id, advance=units, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        if self._shown and not console.is_terminal and now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            (task,) = self._bar.tasks
            left = (now - self._started) / max(self._units, 1) * (task.remaining or 0)
            count = f"{task.completed:.0f}/{task.total:.0f}"
            console.print(f"{task.description}: {count}, {left:.0f} s left {note or ''}")


@contextmanager
def progress(description: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Bar]:
    """Show a progress bar with the time left; plain lines without a terminal.

    `total` and `done` count the same units; `done` is the part that an earlier run had finished.
    Nothing is shown unless `shown`.
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
        yield Bar(bar, description, total, done, shown)


def format_duration(seconds: float) -> str:
    """Return a duration in one or two units: 7.5 -> `7.5 s`, 95 -> `1 min 35 s`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    if seconds < 3_600:
        return f"{round(seconds / 60)} min"
    if seconds < 2 * 86_400:
        return f"{seconds / 3_600:,.1f} h"
    return f"{seconds / 86_400:,.1f} days"
