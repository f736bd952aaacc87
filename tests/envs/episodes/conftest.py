"""One small data set for the tests that damage or compact it."""

import shutil
from pathlib import Path

import pytest

from tests.fixtures.datasets import TWO_GAMES, record


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of 40 to 43 steps of two games. Tests must not change it."""
    folder = tmp_path_factory.mktemp("recorded") / "data"
    return Path(record(folder, games=TWO_GAMES, episodes=4, steps=40))


@pytest.fixture
def data(recorded: Path, tmp_path: Path) -> Path:
    """A copy of `recorded` that a test may damage."""
    return Path(shutil.copytree(recorded, tmp_path / "data"))
