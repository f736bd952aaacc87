"""`explore --watch`: the agent's newest screen in the terminal, in colour, with the model's doubts and the figures.

A character shows two pixels, one above the other: the upper half block in one colour on a ground of another. What is
drawn comes from `exploration.rollout.snapshots`, once an epoch.
"""

import time
from types import TracebackType
from typing import Any

import numpy as np
from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from envs.utils.images import Frames
from exploration.rollout.snapshots import SnapshotPair

HALF = "\N{UPPER HALF BLOCK}"
BARS = "\N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\N{LOWER HALF BLOCK}"
BARS += "\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
WIDE = 132
"""Columns of a terminal that has room for two pictures of 64 pixels."""
FIGURES = 36
"""Columns that the figures need; where there are fewer beside the pictures they stand below."""
HISTORY = 30
"""Epochs that a line of bars shows."""


def blocks(frame_HWC: Frames) -> Text:
    """A frame uint8 (H, W, 3), H even, as W x H/2 characters."""
    text = Text(no_wrap=True)
    for above_WC, below_WC in zip(frame_HWC[::2].tolist(), frame_HWC[1::2].tolist(), strict=True):
        for above, below in zip(above_WC, below_WC, strict=True):
            text.append(HALF, Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def smaller(frame_HWC: Frames, factor: int) -> Frames:
    """Means of squares of factor x factor pixels."""
    height, width, colours = frame_HWC.shape
    squares = frame_HWC.reshape(height // factor, factor, width // factor, factor, colours)
    return squares.mean((1, 3)).round().astype(np.uint8)


def bars(values: list[float]) -> str:
    """Values as a line of bars, from the lowest of them to the highest."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


class Watch:
    """Use as a context: `show` after every epoch. It stands in for a progress bar, and draws only when told to."""

    def __init__(self, console: Console, games: list[str], epochs: int, done: int = 0) -> None:
        self.console, self.games, self.epochs, self.done = console, games, epochs, done
        self._started, self._first = time.monotonic(), done
        self._glimpses: SnapshotPair | None = None
        self._metrics: dict[str, float] = {}
        self._rewards: list[float] = []
        self._live = Live(self, console=console, refresh_per_second=2, transient=False)

    def __enter__(self) -> "Watch":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """As `envs.utils.progress.Bar`; the figures stand beside the pictures anyway."""
        self.done += units

    def show(self, metrics: dict[str, float], glimpses: SnapshotPair | None) -> None:
        """What the epoch that has just ended brought."""
        self._metrics = metrics
        self._glimpses = glimpses or self._glimpses
        self._rewards = [*self._rewards, metrics["explore/reward"]][-HISTORY:]

    def __rich__(self) -> Any:
        """The whole view: a bar of epochs, the pictures, the figures."""
        passed = time.monotonic() - self._started
        head = Table.grid(padding=(0, 2))
        left = passed / max(self.done - self._first, 1) * (self.epochs - self.done)
        words = f"{left:.0f} s left" if self.done > self._first else "first epoch"
        bar = ProgressBar(total=self.epochs, completed=self.done, width=30)
        head.add_row(f"[bold]epoch {self.done}/{self.epochs}[/]", bar, f"{passed:.0f} s, {words}")
        if self._glimpses is None:
            return Group(head, Text("the first screens appear at the end of the first epoch", style="dim"))
        pictures, figures = self._pictures(self._glimpses), self._figures(self._glimpses)
        width = self._glimpses.newest.frame_HWC.shape[1] // self._factor
        body = Table.grid(padding=(0, 2))
        for _ in pictures:  # a picture never gives way to the figures
            body.add_column(width=width, no_wrap=True)
        if self.console.width - len(pictures) * (width + 2) < FIGURES:
            body.add_row(*pictures)
            return Group(head, body, figures)
        body.add_row(*pictures, figures)
        return Group(head, body)

    @property
    def _factor(self) -> int:
        """Pixels of a frame, across and down, that become one."""
        return 1 if self.console.width >= WIDE else 2

    def _pictures(self, glimpses: SnapshotPair) -> list[Any]:
        factor = self._factor
        newest = glimpses.newest
        shown = [Group(Text(newest.game, style="bold"), blocks(smaller(newest.frame_HWC, factor)))]
        unsure = newest.map()
        if unsure is not None:
            words = Text(f"uncertainty, reward {newest.reward:.3f}", style="bold")
            shown.append(Group(words, blocks(smaller(unsure, factor))))
        return shown

    def _figures(self, glimpses: SnapshotPair) -> Table:
        m = self._metrics
        figures = Table.grid(padding=(0, 1))
        figures.add_row("reward", f"{m['explore/reward']:.3f} {bars(self._rewards)}")
        figures.add_row("highest", f"{glimpses.peak.reward:.3f}")
        figures.add_row("epsilon", f"{m['explore/epsilon']:.3f}")
        figures.add_row("policy entropy", f"{m['explore/entropy']:.2f}")
        figures.add_row("steps a second", f"{m['explore/env_steps_per_second']:.0f}")
        for game in self.games[:6]:
            played, judged = (m.get(f"{kind}/intrinsic_return/{game}") for kind in ("explore", "evaluation"))
            told = f"return {played:.2f}" if played is not None else "no return"
            told += f", evaluated {judged:.2f}" if judged is not None else ""
            figures.add_row(game.rsplit("-", 1)[0], f"{told}, {m.get(f'explore/screens/{game}', 0):.0f} screens")
        return figures
