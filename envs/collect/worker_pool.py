"""The actors that play: handing out sessions, replacing the ones that die or hang, keeping the manifest up to date."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from envs.collect.worker import EpisodeResult, GameError
from envs.episodes.dataset import EpisodeWriter
from envs.utils.errors import InputError
from envs.utils.progress import Bar, console
from envs.utils.progress import progress as progress_bar
from envs.utils.ray_session import node_resources

ATTEMPTS = 3
COMMIT_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""How often to look for emulators that hang."""


class Task(Protocol):
    """What an actor can be given to play."""

    @property
    def game(self) -> str: ...

    @property
    def episode(self) -> int: ...


@dataclass
class CollectSummary:
    """What one call of `collect` did."""

    episodes: int = 0
    """Of this request that the folder holds now, those of earlier runs included."""
    frames: int = 0
    """In those episodes."""
    played_episodes: int = 0
    """By this call."""
    played_frames: int = 0
    seconds: float = 0.0
    """Wall time of this call."""
    cpu_seconds: float = 0.0
    """That the actors spent on playing, compressing and writing: played_frames / cpu_seconds is the rate of a core."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Game -> why it was left out."""


@dataclass(frozen=True)
class _Playing:
    """An actor and the session that it plays since `started`, in seconds of the monotonic clock."""

    actor: Any
    session: Task
    started: float


def episode_timeout(steps: int) -> float:
    """Seconds that an episode of so many steps may take where nobody says otherwise: many times what it does take."""
    return 60 + steps / 10


class WorkerPool:
    """The actors at work: hands out sessions, replaces actors that die, and keeps the manifest up to date."""

    def __init__(
        self,
        writer: EpisodeWriter,
        player: type[Any],
        options: tuple[Any, ...],
        *,
        timeout: float,
        summary: CollectSummary,
        bar: Bar | None,
    ) -> None:
        """`player(*options)` is made in each actor: it has `process()` and `play(session) -> EpisodeResult`. `timeout`:
        seconds that an episode may take."""
        self._writer, self._options = writer, options
        self._timeout, self._summary, self._bar = timeout, summary, bar
        self._remote: Any = ray.remote(num_cpus=1, resources=node_resources("rollout").resources)(player)
        self._starting: dict[Any, Any] = {}
        """Actors that have not said yet that they are there; where a cluster is full they wait for a free core."""
        self._idle: list[Any] = []
        self._running: dict[Any, _Playing] = {}
        self._deaths: Counter[Task] = Counter()
        self._false_starts = 0
        self._started = self._committed = time.monotonic()

    def play(self, sessions: Sequence[Task], workers: int) -> None:
        """Play all sessions, with so many actors as soon as there is room for them.

        On any way out the actors are gone, and what they finished is in the manifest.
        """
        waiting = deque(sessions)
        try:
            for _ in range(workers):
                self._start_worker()
            while waiting or self._running:
                while waiting and self._idle:
                    session = waiting.popleft()
                    if session.game not in self._summary.skipped:
                        actor = self._idle.pop()
                        self._running[actor.play.remote(session)] = _Playing(actor, session, time.monotonic())
                known = [*self._running, *self._starting]
                ready, _ = ray.wait(known, num_returns=1, timeout=WATCH_SECONDS)
                for reference in ready:
                    if reference in self._starting:
                        self._on_worker_ready(reference)
                    else:
                        self._take(reference, waiting)
                self._end_hung(waiting)
                if time.monotonic() - self._committed > COMMIT_SECONDS:
                    self._writer.commit()
                    self._committed = time.monotonic()
        finally:
            playing = (item.actor for item in self._running.values())
            for actor in [*self._idle, *self._starting.values(), *playing]:
                ray.kill(actor)
            self._writer.commit()

    def _start_worker(self) -> None:
        actor: Any = self._remote.remote(*self._options)
        self._starting[actor.process.remote()] = actor

    def _on_worker_ready(self, reference: Any) -> None:
        """An actor has started. Raises what it could not start of, where that happens again and again."""
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayActorError:
            self._false_starts += 1
            if self._false_starts == ATTEMPTS:
                raise
            self._start_worker()
        else:
            self._false_starts = 0
            self._idle.append(actor)

    def _end_hung(self, waiting: deque[Task]) -> None:
        """Kill the emulators whose episode takes too long, and play it again in another process."""
        for reference, playing in list(self._running.items()):
            if time.monotonic() - playing.started > self._timeout:
                del self._running[reference]
                ray.kill(playing.actor)
                self._lost(playing.session, f"hung for {self._timeout:g} s", waiting)

    def _lost(self, session: Task, what: str, waiting: deque[Task]) -> None:
        """An actor was lost over a session: hire another, and try again, or set the game aside."""
        self._deaths[session] += 1
        self._start_worker()
        if self._deaths[session] < ATTEMPTS:
            waiting.appendleft(session)
        else:
            self._skip_game(session.game, f"its player {what} {ATTEMPTS} times in episode {session.episode}")

    def _take(self, reference: Any, waiting: deque[Task]) -> None:
        """Take one actor's report, or deal with its death."""
        playing = self._running.pop(reference)
        actor, session = playing.actor, playing.session
        try:
            played: EpisodeResult = ray.get(reference)
        except RayActorError:
            self._lost(session, "died", waiting)
            return
        except RayTaskError as error:
            self._idle.append(actor)
            if not isinstance(error.cause, InputError):
                raise
            if not isinstance(error.cause, GameError):
                raise InputError(str(error.cause)) from None
            self._skip_game(session.game, str(error.cause))
            return
        self._idle.append(actor)
        self._writer.record(played.shard)
        frames = sum(record.num_frames for record in played.shard.sessions)
        self._summary.played_episodes += 1
        self._summary.played_frames += frames
        self._summary.cpu_seconds += played.cpu_seconds
        if self._bar is not None:
            rate = self._summary.played_frames / (time.monotonic() - self._started)
            self._bar.advance(1, f"{session.game} {rate:.0f} frames/s")

    def _skip_game(self, game: str, reason: str) -> None:
        """Leave a game out from now on."""
        if game not in self._summary.skipped:
            console.print(f"{game} is left out: {reason}")
            self._summary.skipped[game] = reason


@contextmanager
def shown_bar(what: str, total: int, left: int, shown: bool) -> Iterator[Bar | None]:
    """The progress bar over all episodes, or none."""
    if not shown:
        yield None
        return
    with progress_bar(what, total, total - left) as bar:
        yield bar
