"""Collecting: a queue of sessions, Ray actors that take, play and write them, one process that keeps the manifest.

Every session is identified before it is played, so a run that was killed goes on where it stopped, and the frames do
not depend on the number of workers.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from envs import COUNTING, catalog
from envs.episodes import EpisodeWriter
from envs.errors import InputError
from envs.player import EXPERT_EPSILON, GameError, Played, Player, Session, play_episode, policy_id
from envs.runs import Bar, console
from envs.runs import progress as progress_bar

__all__ = ["CollectSummary", "Session", "collect", "play_episode"]

ATTEMPTS = 3
COMMIT_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""How often to look for emulators that hang."""


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


def collect(
    games: Sequence[str],
    out: str | Path,
    *,
    episodes: int,
    steps: int,
    policy: str = "random",
    workers: int = 2,
    seed: int = 0,
    epsilon: float | None = None,
    temperature: float = 1.0,
    timeout: float | None = None,
    progress: bool = True,
) -> CollectSummary:
    """Play `episodes` episodes of at most `steps` steps of each game, and keep them in the folder `out`.

    `policy` is "random", "sticky:P", or "checkpoint:<folder>" or "expert:<folder>" with `epsilon` (by default 0, and
    0.15 for an expert) and `temperature`. An episode that takes more than `timeout` seconds (by default 60 and a tenth
    for each step) counts as hung: its emulator is killed. Sessions that the folder has are not played again. Needs Ray;
    starts and stops a local one where none is connected. A game without ROM, or one whose emulator keeps dying or
    hanging, is reported and left out. Raises InputError for unknown games, numbers out of range, no
    playable game at all, or a folder that cannot be used.
    """
    if min(episodes, steps, workers) < 1:
        raise InputError(f"episodes {episodes}, steps {steps} and workers {workers} must be at least 1")
    if timeout is not None and timeout <= 0:
        raise InputError(f"timeout {timeout}: give seconds above 0")
    if epsilon is None:
        epsilon = EXPERT_EPSILON if policy.startswith("expert:") else 0.0
    started = time.monotonic()
    playing = policy_id(policy, epsilon=epsilon, temperature=temperature)
    names, skipped = _playable(games)
    summary = CollectSummary(skipped=skipped)
    sessions = [Session(game, playing, seed, episode) for game in names for episode in range(episodes)]
    with EpisodeWriter(out) as writer:
        writer.plan(((s.game, s.id) for s in sessions), f"{playing} seed {seed}", {"steps": steps})
        for path in writer.damaged:
            console.print(f"{writer.root / path} is damaged or gone: its sessions are played again")
        held = writer.sessions
        open_sessions = [session for session in sessions if session.id not in held]
        # Validation sessions first: a run that is cut short can still be evaluated.
        open_sessions.sort(key=lambda s: (names.index(s.game), not writer.is_validation(s.game, s.id), s.episode))
        if open_sessions:
            options = (str(writer.root.resolve()), _absolute(policy), epsilon, temperature, steps)
            with _connected(workers), _bar(len(sessions), len(open_sessions), progress) as bar:
                crew = _Crew(writer, options, min(workers, len(open_sessions)), summary, bar)
                crew.timeout = 60 + steps / 10 if timeout is None else timeout
                crew.play(open_sessions)
        wanted = {session.id for session in sessions}
        records = [record for session_id, record in writer.sessions.items() if session_id in wanted]
    if not records:
        raise InputError(f"no episode could be played: {'; '.join(f'{g}: {r}' for g, r in summary.skipped.items())}")
    summary.episodes, summary.frames = len(records), sum(record.num_frames for record in records)
    summary.seconds = time.monotonic() - started
    return summary


@dataclass(frozen=True)
class _Playing:
    """An actor and the session that it plays since `started`, in seconds of the monotonic clock."""

    actor: Any
    session: Session
    started: float


class _Crew:
    """The actors at work: hands out sessions, replaces actors that die, and keeps the manifest up to date."""

    def __init__(
        self, writer: EpisodeWriter, options: tuple[Any, ...], workers: int, summary: CollectSummary, bar: Bar | None
    ) -> None:
        self._writer, self._options, self._summary, self._bar = writer, options, summary, bar
        self._workers = workers
        self.timeout = float("inf")
        """Seconds that an episode may take."""
        self._starting: dict[Any, Any] = {}
        """Actors that have not said yet that they are there; where a cluster is full they wait for a free core."""
        self._idle: list[Any] = []
        self._running: dict[Any, _Playing] = {}
        self._deaths: Counter[Session] = Counter()
        self._false_starts = 0
        self._started = self._committed = time.monotonic()

    def play(self, sessions: list[Session]) -> None:
        """Play all sessions. On any way out the actors are gone, and what they finished is in the manifest."""
        waiting = deque(sessions)
        try:
            for _ in range(self._workers):
                self._hire()
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
                        self._welcome(reference)
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

    def _hire(self) -> None:
        actor: Any = ray.remote(num_cpus=1)(Player).remote(*self._options)
        self._starting[actor.process.remote()] = actor

    def _welcome(self, reference: Any) -> None:
        """An actor has started. Raises what it could not start of, where that happens again and again."""
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayActorError:
            self._false_starts += 1
            if self._false_starts == ATTEMPTS:
                raise
            self._hire()
        else:
            self._false_starts = 0
            self._idle.append(actor)

    def _end_hung(self, waiting: deque[Session]) -> None:
        """Kill the emulators whose episode takes too long, and play it again in another process."""
        for reference, playing in list(self._running.items()):
            if time.monotonic() - playing.started > self.timeout:
                del self._running[reference]
                ray.kill(playing.actor)
                self._lost(playing.session, f"hung for {self.timeout:g} s", waiting)

    def _lost(self, session: Session, what: str, waiting: deque[Session]) -> None:
        """An actor was lost over a session: hire another, and try again, or set the game aside."""
        self._deaths[session] += 1
        self._hire()
        if self._deaths[session] < ATTEMPTS:
            waiting.appendleft(session)
        else:
            self._set_aside(session.game, f"its player {what} {ATTEMPTS} times in episode {session.episode}")

    def _take(self, reference: Any, waiting: deque[Session]) -> None:
        """Take one actor's report, or deal with its death."""
        playing = self._running.pop(reference)
        actor, session = playing.actor, playing.session
        try:
            played: Played = ray.get(reference)
        except RayActorError:
            self._lost(session, "died", waiting)
            return
        except RayTaskError as error:
            self._idle.append(actor)
            if not isinstance(error.cause, InputError):
                raise
            if not isinstance(error.cause, GameError):
                raise InputError(str(error.cause)) from None
            self._set_aside(session.game, str(error.cause))
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

    def _set_aside(self, game: str, reason: str) -> None:
        if game not in self._summary.skipped:
            console.print(f"{game} is left out: {reason}")
            self._summary.skipped[game] = reason


@contextmanager
def _connected(workers: int) -> Iterator[None]:
    """Use the Ray that is connected, or a local one for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=max(workers, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _bar(total: int, left: int, shown: bool) -> Iterator[Bar | None]:
    """The progress bar over all episodes, or none."""
    if not shown:
        yield None
        return
    with progress_bar("collect", total, total - left) as bar:
        yield bar


def _playable(games: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The games that can be played, under their canonical names and each once, and the others with the reason.

    Raises InputError for a name that no game has, and where no game is left.
    """
    if not games:
        raise InputError("no game given: name one or more, e.g. Airstriker-Genesis (`autoexplore catalog` lists them)")
    known = [COUNTING if game.removesuffix("-v0") == COUNTING else catalog.canonical(game) for game in games]
    names = [game for game in dict.fromkeys(known) if game == COUNTING or catalog.has_rom(game)]
    skipped = {game: "its ROM is not imported" for game in known if game not in names}
    if not names:
        some = ", ".join(list(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
        raise InputError(f"no ROM for {some}: import yours with `python -m envs.roms FOLDER`")
    for game, reason in skipped.items():
        console.print(f"{game} is left out: {reason}")
    return names, skipped


def _absolute(policy: str) -> str:
    """A checkpoint's folder as an actor finds it, which may run in another folder."""
    kind, _, path = policy.partition(":")
    return f"{kind}:{Path(path).resolve()}" if path else policy
