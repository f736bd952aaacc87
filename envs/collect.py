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

from envs import BUILTIN, catalog, check_builtin
from envs.episodes import EpisodeWriter
from envs.errors import InputError
from envs.player import GameError, Played, Player, Session, play_episode, policy_id
from envs.runs import Bar, console
from envs.runs import progress as progress_bar

__all__ = ["CollectSummary", "Session", "collect", "play_episode"]

ATTEMPTS = 3
COMMIT_SECONDS = 5.0


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
    epsilon: float = 0.0,
    temperature: float = 1.0,
    progress: bool = True,
) -> CollectSummary:
    """Play `episodes` episodes of at most `steps` steps of each game, and keep them in the folder `out`.

    `policy` is "random" or "checkpoint:<folder>" with `epsilon` and `temperature`. Sessions that the folder has are not
    played again. Needs Ray; starts and stops a local one where none is connected. A game without ROM, or one whose
    emulator keeps dying, is reported and left out. Raises InputError for unknown games, numbers out of range, no
    playable game at all, or a folder that cannot be used.
    """
    if min(episodes, steps, workers) < 1:
        raise InputError(f"episodes {episodes}, steps {steps} and workers {workers} must be at least 1")
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
                _Crew(writer, options, min(workers, len(open_sessions)), summary, bar).play(open_sessions)
        wanted = {session.id for session in sessions}
        records = [record for session_id, record in writer.sessions.items() if session_id in wanted]
    if not records:
        raise InputError(f"no episode could be played: {'; '.join(f'{g}: {r}' for g, r in summary.skipped.items())}")
    summary.episodes, summary.frames = len(records), sum(record.num_frames for record in records)
    summary.seconds = time.monotonic() - started
    return summary


class _Crew:
    """The actors at work: hands out sessions, replaces actors that die, and keeps the manifest up to date."""

    def __init__(
        self, writer: EpisodeWriter, options: tuple[Any, ...], workers: int, summary: CollectSummary, bar: Bar | None
    ) -> None:
        self._writer, self._options, self._summary, self._bar = writer, options, summary, bar
        available = int(ray.cluster_resources().get("CPU", 1))
        self._workers = max(1, min(workers, available))
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Session]] = {}
        self._deaths: Counter[Session] = Counter()
        self._started = self._committed = time.monotonic()

    def play(self, sessions: list[Session]) -> None:
        """Play all sessions. On any way out the actors are gone, and what they finished is in the manifest."""
        waiting = deque(sessions)
        try:
            self._idle = [self._hire() for _ in range(self._workers)]
            while waiting or self._running:
                while waiting and self._idle:
                    session = waiting.popleft()
                    if session.game not in self._summary.skipped:
                        actor = self._idle.pop()
                        self._running[actor.play.remote(session)] = (actor, session)
                if self._running:
                    ready, _ = ray.wait(list(self._running), num_returns=1)
                    for reference in ready:
                        self._take(reference, waiting)
                if time.monotonic() - self._committed > COMMIT_SECONDS:
                    self._writer.commit()
                    self._committed = time.monotonic()
        finally:
            for actor in [*self._idle, *(actor for actor, _ in self._running.values())]:
                ray.kill(actor)
            self._writer.commit()

    def _hire(self) -> Any:
        return ray.remote(num_cpus=1)(Player).remote(*self._options)

    def _take(self, reference: Any, waiting: deque[Session]) -> None:
        """Take one actor's report, or deal with its death."""
        actor, session = self._running.pop(reference)
        try:
            played: Played = ray.get(reference)
        except RayActorError as error:
            if "creation task" in str(error):  # it could not even start: no game's fault
                raise
            self._deaths[session] += 1
            self._idle.append(self._hire())
            if self._deaths[session] < ATTEMPTS:
                waiting.appendleft(session)
            else:
                self._set_aside(session.game, f"its player died {ATTEMPTS} times in episode {session.episode}")
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
    known = [check_builtin(game) or catalog.canonical(game) for game in games]
    names = [game for game in dict.fromkeys(known) if game in BUILTIN or catalog.has_rom(game)]
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
