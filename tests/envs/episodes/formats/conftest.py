"""One small data set for the tests of all formats."""

from pathlib import Path

import pytest

from envs.episodes.formats.convert import export_episodes
from tests.fixtures.datasets import TWO_GAMES, record


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three episodes of 30 to 32 steps of two games."""
    return record(
        tmp_path_factory.mktemp("recorded") / "data", games=TWO_GAMES, episodes=3, steps=30
    )


@pytest.fixture(scope="session")
def published(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set in the published layout. Tests must not change it."""
    folder = tmp_path_factory.mktemp("published") / "set"
    assert export_episodes(data, folder, "genieredux") == 6
    return folder
