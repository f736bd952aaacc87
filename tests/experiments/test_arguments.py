"""Threads of a command, on a machine of your own and as a job."""

import json
import os

import pytest

from experiments.arguments import JOB_VARIABLE, NO_RESOURCES_VARIABLE, default_threads

CORES = len(os.sched_getaffinity(0))
JOB = json.dumps({"runtime_env": {"env_vars": {}}})
CHOSEN = json.dumps({"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, CORES),
        ({"OMP_NUM_THREADS": "nonsense"}, CORES),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", JOB_VARIABLE: JOB, NO_RESOURCES_VARIABLE: "1"}, CORES),
        ({"OMP_NUM_THREADS": "1", JOB_VARIABLE: CHOSEN, NO_RESOURCES_VARIABLE: "1"}, 1),
        ({"OMP_NUM_THREADS": "1", JOB_VARIABLE: JOB}, 1),
        ({"OMP_NUM_THREADS": "7", JOB_VARIABLE: JOB, NO_RESOURCES_VARIABLE: "1"}, 7),
    ],
)
def test_the_one_thread_that_ray_gives_a_job_is_ignored(
    variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", JOB_VARIABLE, NO_RESOURCES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_threads() == expected
