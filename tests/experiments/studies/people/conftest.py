"""A small study of two untrained models, made once; tests copy it before they answer."""

import shutil
from pathlib import Path

import pytest

from experiments.__main__ import execute
from tests.fixtures.datasets import record
from tests.fixtures.worlds import save_untrained_world

SAMPLES, STARTS, FRAMES = 2, 2, 5
COUNTS = {"quality": 2 * 3 * SAMPLES, "action": 3 * STARTS}
"""Samples of each study: two games x two models and the recording; three actions."""


@pytest.fixture(scope="session")
def other_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a second untrained model, with other weights than `tiny_world`."""
    return save_untrained_world(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture(scope="session")
def people_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of two games. Counting counts as jumping: its lower half shows the action."""
    folder = tmp_path_factory.mktemp("people") / "data"
    record(folder, games=("Counting", "Corridor"), episodes=3, steps=40)
    return folder


@pytest.fixture(scope="session")
def make_argv(tiny_world: Path, other_world: Path, people_data: Path) -> list[str]:
    """The words that make the study, without --out."""
    argv = f"study people make --models random={tiny_world} explored={other_world} "
    argv += f"--data {people_data} --samples {SAMPLES} --starts {STARTS} --frames {FRAMES} "
    argv += "--action-games Counting --most-motion 0.6 --sampling-steps 1"
    return argv.split()


@pytest.fixture(scope="session")
def made_study(make_argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as `make` left it. Tests must not change it."""
    folder = tmp_path_factory.mktemp("made") / "study"
    assert execute([*make_argv, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def study(made_study: Path, tmp_path: Path) -> Path:
    """A copy of the study, to answer."""
    return Path(shutil.copytree(made_study, tmp_path / "study"))
