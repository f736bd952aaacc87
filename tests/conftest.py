"""Fixtures that every test file shares. One Ray session for all of them: starting one takes longer than most tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Models of the tests are so small that threads only wait for each other. Before torch is loaded, and for every child.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from envs.utils.ray_session import prepare_ray_environment

prepare_ray_environment(local=True)  # before any test imports Ray, which reads it then
# Keys of the S3 server on loopback. Ray's workers inherit them, so they stand here before it starts.
os.environ.update(
    AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1"
)
torch.set_num_threads(1)

EVERYTHING = "AUTOEXPLORE_TEST_EVERYTHING" in os.environ
"""Whether tests that need a package of the system must run: without it they fail then, instead of being skipped."""


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
    import worldmodel

    torch.manual_seed(0)
    config = worldmodel.preset("debug")
    folder = tmp_path_factory.mktemp("world") / "model"
    worldmodel.GenieReduxG(worldmodel.Tokenizer(config), worldmodel.Dynamics(config)).save(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole pipeline of preset debug: its folder, and what it printed. Nobody may change the folder."""
    from envs.utils.progress import console
    from experiments.commands import pipeline
    from experiments.pipeline.config import PRESETS

    folder = tmp_path_factory.mktemp("pipeline") / "run"
    with console.capture() as printed:
        pipeline.run(pipeline.Args(out=folder, pipeline=PRESETS["debug"]))
    return folder, printed.get()
