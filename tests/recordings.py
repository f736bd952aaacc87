"""Small data sets for the tests, played in this process or by players, and what they consist of."""

from pathlib import Path
from typing import Any

import envs
from envs.collect import CollectSummary, collect
from envs.episodes import EpisodeWriter
from envs.player import RandomPolicy, Session, play_episode


def record(folder: Path, *, games: tuple[str, ...] = ("Counting",), episodes: int, steps: int, seed: int = 0) -> str:
    """Play random episodes into a data set and return its folder. Episode e has e steps more than the first."""
    with EpisodeWriter(folder) as writer:
        for game in games:
            env = envs.make(game)
            for episode in range(episodes):
                session = Session(game, "random", seed, episode)
                writer.add(play_episode(env, RandomPolicy(), session, steps=steps + episode))
            env.close()
    return str(folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a data set, by name, without the lock."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def run(games: list[str], out: Path, **options: Any) -> CollectSummary:
    """A short `collect`, with options in place of its own."""
    return collect(games, out, **{"episodes": 3, "steps": 40, "progress": False, **options})
