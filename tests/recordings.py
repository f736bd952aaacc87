"""Small data sets for the tests, played in this process."""

from pathlib import Path

import envs
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
