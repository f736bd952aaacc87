"""Collecting: a queue of sessions, Ray actors that take, play and write them, one process that keeps the manifest.

Every session is identified before it is played, so a run that was killed goes on where it stopped, and the frames do
not depend on the number of workers.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from envs import BUILTIN, builtin_name, catalog
from envs.collect.policies import PolicySpec, builtin_policy
from envs.collect.worker import CollectWorker, EpisodeKey, play_episode
from envs.collect.worker_pool import CollectSummary, WorkerPool, episode_timeout, shown_bar
from envs.episodes.dataset import EpisodeWriter
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import ray_session

__all__ = ["CollectSummary", "EpisodeKey", "collect", "play_episode"]


def collect(
    games: Sequence[str],
    out: str | Path,
    *,
    episodes: int,
    steps: int,
    policy: str | PolicySpec = "random",
    workers: int = 2,
    seed: int = 0,
    timeout: float | None = None,
    progress: bool = True,
) -> CollectSummary:
    """Play `episodes` episodes of at most `steps` steps of each game, and keep them in the folder `out`.

    `policy` is "random", "sticky:P", or the spec of an agent (`exploration.agent.policy.policy_spec`). An episode that takes more than `timeout` seconds (by default 60 and a tenth
    for each step) counts as hung: its emulator is killed. Sessions that the folder has are not played again. Needs Ray;
    starts and stops a local one where none is connected. A game without ROM, or one whose emulator keeps dying or
    hanging, is reported and left out. Raises InputError for unknown games, numbers out of range, no
    playable game at all, or a folder that cannot be used.
    """
    if min(episodes, steps, workers) < 1:
        raise InputError(f"episodes {episodes}, steps {steps} and workers {workers} must be at least 1")
    if timeout is not None and timeout <= 0:
        raise InputError(f"timeout {timeout}: give seconds above 0")
    started = time.monotonic()
    spec = builtin_policy(policy) if isinstance(policy, str) else policy
    names, skipped = playable(games)
    summary = CollectSummary(skipped=skipped)
    sessions = [EpisodeKey(game, spec.name, seed, episode) for game in names for episode in range(episodes)]
    with EpisodeWriter(out) as writer:
        writer.plan(((s.game, s.id) for s in sessions), f"{spec.name} seed {seed}", {"steps": steps})
        for path in writer.damaged:
            console.print(f"{writer.root / path} is damaged or gone: its sessions are played again")
        held = writer.sessions
        open_sessions = [session for session in sessions if session.id not in held]
        # Validation sessions first: a run that is cut short can still be evaluated.
        open_sessions.sort(key=lambda s: (names.index(s.game), not writer.is_validation(s.game, s.id), s.episode))
        if open_sessions:
            options = (str(writer.root.resolve()), spec.build, steps)
            with ray_session(cpus=workers), shown_bar("collect", len(sessions), len(open_sessions), progress) as bar:
                crew = WorkerPool(
                    writer, CollectWorker, options, timeout=timeout or episode_timeout(steps), summary=summary, bar=bar
                )
                crew.play(open_sessions, min(workers, len(open_sessions)))
        wanted = {session.id for session in sessions}
        records = [record for session_id, record in writer.sessions.items() if session_id in wanted]
    if not records:
        raise InputError(f"no episode could be played: {'; '.join(f'{g}: {r}' for g, r in summary.skipped.items())}")
    summary.episodes, summary.frames = len(records), sum(record.num_frames for record in records)
    summary.seconds = time.monotonic() - started
    return summary


def playable(games: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The games that can be played, under their canonical names and each once, and the others with the reason.

    Raises InputError for a name that no game has, and where no game is left.
    """
    if not games:
        raise InputError("no game given: name one or more, e.g. Airstriker-Genesis (`autoexplore catalog` lists them)")
    known = [builtin_name(game) or catalog.canonical(game) for game in catalog.expand(games)]
    names = [game for game in dict.fromkeys(known) if game in BUILTIN or catalog.has_rom(game)]
    skipped = {game: "its ROM is not imported" for game in known if game not in names}
    if not names:
        some = ", ".join(list(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
        raise InputError(f"no ROM for {some}: import yours with `python -m envs.roms FOLDER`")
    for game, reason in skipped.items():
        console.print(f"{game} is left out: {reason}")
    return names, skipped
