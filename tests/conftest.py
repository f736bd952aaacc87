"""Fixtures that all tests share. One Ray session serves all: starting one takes long."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# The models of the tests are too small for threads. Set before torch is loaded, for children too.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from envs.utils.ray_session import prepare_ray_environment

prepare_ray_environment(local=True)  # before any test imports Ray, which reads it then
# Keys of the S3 server on loopback, set before Ray starts because its workers inherit them.
os.environ.update(
    AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1"
)
torch.set_num_threads(1)

EVERYTHING = "AUTOEXPLORE_TEST_EVERYTHING" in os.environ
"""True where tests that need a system package must fail instead of being skipped without it."""

LONGEST = (
    "integration/test_paper_pipeline.py",
    "exploration/reward/test_noisy_tv.py",
    "exploration/test_learning.py",
    "worldmodel/test_serve.py",
    "integration/test_node_faults.py",
    "experiments/pipeline/test_runner.py",
    "worldmodel/training/test_resume.py",
    "integration/test_driver_faults.py",
)
"""Files of slow tests that begin first, so that no process is left alone with one at the end."""

MARKED_BY_FIXTURE = {"ray_cluster": "ray", "finished_run": "slow"}
"""Fixture -> marker of every test that uses it."""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    # Sorting is stable, and every process of `pytest -n` must have the same order.
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    """Return the place of a file in LONGEST, or a later one."""
    name = path.relative_to(Path(__file__).parent).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray with 8 logical CPUs, which the machine need not have."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    if "ray.serve" in sys.modules:
        from ray import serve

        serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained `debug` world model: enough for everything that only asks one."""
    from tests.fixtures.worlds import save_untrained_world

    return save_untrained_world(tmp_path_factory.mktemp("world") / "model")


@pytest.fixture(scope="session")
def finished_run(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> tuple[Path, str]:
    """Folder and output of a whole pipeline of preset debug. Tests must not change the folder.

    The first process that needs it makes it for all processes of `pytest -n`.
    """
    from envs.utils.progress import console
    from experiments.commands import pipeline
    from experiments.pipeline.config import PRESETS

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "pipeline"
    output = folder / "output.txt"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not output.exists():
            with console.capture() as printed:
                pipeline.run(pipeline.Args(out=folder / "run", pipeline=PRESETS["debug"]))
            output.write_text(printed.get())
    return folder / "run", output.read_text()
