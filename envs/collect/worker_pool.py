"""A pool of Ray actors that play episodes: it assigns tasks and replaces dead or hung workers."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from envs.collect.worker import EpisodeResult, GameError
from envs.episodes.dataset import EpisodeWriter
from envs.episodes.shards import SessionRecord
from envs.utils.errors import InputError
from envs.utils.progress import Bar, console, progress
from envs.utils.ray_session import node_resources, ray_session

ATTEMPTS = 3
COMMIT_SECONDS = 5.0
POLL_SECONDS = 1.0
"""Interval between two checks for hung emulators."""


class Task(Protocol):
    """One episode to play."""

    @property
    def game(self) -> str:
        """Name of the game."""

    @property
    def id(self) -> str:
        """Session id."""

    @property
    def episode(self) -> int:
        """Number of the episode."""


@dataclass
class CollectSummary:
    """Result of one call of `collect` or `rerender`."""

    episodes: int = 0
    """Requested episodes that the folder holds now, including those of earlier runs."""
    frames: int = 0
    """Number of frames in these episodes."""
    played_episodes: int = 0
    """Episodes played by this call."""
    played_frames: int = 0
    """Frames played by this call."""
    seconds: float = 0.0
    """Wall time of playing."""
    cpu_seconds: float = 0.0
    """CPU time of the workers; played_frames / cpu_seconds is the frame rate of one core."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Game -> reason why it was skipped."""

    def count(self, held: Iterable[SessionRecord]) -> None:
        """Set the counts of the episodes that the folder holds now."""
        records = list(held)
        self.episodes = len(records)
        self.frames = sum(record.num_frames for record in records)


@dataclass(frozen=True)
class WorkerSpec:
    """Actors `worker_class(*arguments)`, which have the methods `process()` and `play(task)`."""

    worker_class: type[Any]
    arguments: tuple[Any, ...]
    count: int
    """Maximum number of actors."""
    timeout: float
    """Time in seconds after which an episode counts as hung."""


def default_timeout(steps: int) -> float:
    """Return the timeout of an episode in seconds: far longer than it should take."""
    return 60 + steps / 10


def play_missing(
    writer: EpisodeWriter, tasks: Sequence[Task], workers: WorkerSpec, *, title: str, shown: bool
) -> CollectSummary:
    """Play the tasks whose episodes the folder of `writer` lacks.

    Uses the connected Ray cluster or a local one. `title` describes the progress bar, which appears
    only if `shown`.
    """
    started = time.monotonic()
    held = writer.sessions
    missing = [task for task in tasks if task.id not in held]
    summary = CollectSummary()
    if missing:
        done = len(tasks) - len(missing)
        with (
            ray_session(cpus=workers.count),
            progress(title, len(tasks), done, shown=shown) as bar,
            WorkerPool(writer, workers, bar) as pool,
        ):
            summary = pool.play(missing)
        held = writer.sessions
    summary.count(held[task.id] for task in tasks if task.id in held)
    summary.seconds = time.monotonic() - started
    return summary


@dataclass(frozen=True)
class _Assignment:
    """A task, the worker that plays it, and its start in seconds of the monotonic clock."""

    worker: Any
    task: Task
    started: float


class WorkerPool:
    """Ray actors that play tasks; dead or hung ones are replaced. Use it in a `with` block."""

    def __init__(self, writer: EpisodeWriter, workers: WorkerSpec, bar: Bar) -> None:
        """Create a pool without workers."""
        resources = node_resources("rollout").resources
        self._actor_class: Any = ray.remote(num_cpus=1, resources=resources)(workers.worker_class)
        self._writer, self._workers, self._bar = writer, workers, bar
        self.summary = CollectSummary()
        self.results: dict[str, EpisodeResult] = {}
        self._starting: dict[Any, Any] = {}
        """Workers that are not ready yet; on a full cluster they wait for a free core."""
        self._idle: list[Any] = []
        self._running: dict[Any, _Assignment] = {}
        self._waiting: deque[Task] = deque()
        self._failures: Counter[Task] = Counter()
        self._failed_starts = 0
        self._started = self._committed = time.monotonic()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the actors. However the block ends, all finished episodes are in the manifest."""
        busy = (assignment.worker for assignment in self._running.values())
        for worker in [*self._idle, *self._starting.values(), *busy]:
            ray.kill(worker)
        self._writer.commit()

    def play(self, tasks: Sequence[Task]) -> CollectSummary:
        """Play all tasks and return `summary`, the counts of what was played and skipped so far.

        `results` then holds their results, by session id.
        """
        self.results.clear()
        self._waiting.extend(tasks)
        while len(self._idle) + len(self._starting) < min(self._workers.count, len(tasks)):
            self._start_worker()
        while self._waiting or self._running:
            self._assign_tasks()
            pending = [*self._running, *self._starting]
            ready, _ = ray.wait(pending, num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                if reference in self._starting:
                    self._on_worker_ready(reference)
                else:
                    self._on_episode_done(reference)
            self._kill_hung_workers()
            if time.monotonic() - self._committed > COMMIT_SECONDS:
                self._writer.commit()
                self._committed = time.monotonic()
        return self.summary

    def _assign_tasks(self) -> None:
        """Give waiting tasks to idle workers, without those of skipped games."""
        while self._waiting and self._idle:
            task = self._waiting.popleft()
            if task.game not in self.summary.skipped:
                worker = self._idle.pop()
                assignment = _Assignment(worker, task, time.monotonic())
                self._running[worker.play.remote(task)] = assignment

    def _start_worker(self) -> None:
        worker: Any = self._actor_class.remote(*self._workers.arguments)
        self._starting[worker.process.remote()] = worker

    def _on_worker_ready(self, reference: Any) -> None:
        """Handle a started worker; re-raise its start-up error after ATTEMPTS failures in a row."""
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayActorError:
            self._failed_starts += 1
            if self._failed_starts == ATTEMPTS:
                raise
            self._start_worker()
        else:
            self._failed_starts = 0
            self._idle.append(worker)

    def _kill_hung_workers(self) -> None:
        """Kill the workers whose episode exceeds the timeout; the episodes are played again."""
        timeout = self._workers.timeout
        for reference, assignment in list(self._running.items()):
            if time.monotonic() - assignment.started > timeout:
                del self._running[reference]
                ray.kill(assignment.worker)
                self._on_worker_lost(assignment.task, f"hung for {timeout:g} s")

    def _on_worker_lost(self, task: Task, failure: str) -> None:
        """Replace the worker and retry its task, or skip the game after ATTEMPTS failures."""
        self._failures[task] += 1
        self._start_worker()
        if self._failures[task] < ATTEMPTS:
            self._waiting.appendleft(task)
        else:
            times = f"{ATTEMPTS} times in episode {task.episode}"
            self._skip_game(task.game, f"its worker {failure} {times}")

    def _on_episode_done(self, reference: Any) -> None:
        """Record a finished episode, or handle the error or death of its worker."""
        assignment = self._running.pop(reference)
        task = assignment.task
        try:
            result: EpisodeResult = ray.get(reference)
        except RayActorError:
            self._on_worker_lost(task, "died")
            return
        except RayTaskError as error:
            self._idle.append(assignment.worker)
            if isinstance(error.cause, GameError):
                self._skip_game(task.game, str(error.cause))
                return
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise
        self._idle.append(assignment.worker)
        self.results[task.id] = result
        if task.id not in self._writer:
            self._writer.record(result.shard)
        self.summary.played_episodes += 1
        self.summary.played_frames += sum(record.num_frames for record in result.shard.sessions)
        self.summary.cpu_seconds += result.cpu_seconds
        rate = self.summary.played_frames / (time.monotonic() - self._started)
        self._bar.advance(1, f"{task.game} {rate:.0f} frames/s")

    def _skip_game(self, game: str, reason: str) -> None:
        """Play no further episodes of a game."""
        if game not in self.summary.skipped:
            console.print(f"{game} is skipped: {reason}")
            self.summary.skipped[game] = reason
