"""A pipeline submitted as a job to a Ray head that asks for a token, and refused without it."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.pipeline.config import PRESETS
from experiments.pipeline.stages import stage_table
from tests.fixtures.cluster import Head, ray_head

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a Ray head of this module's own."""
    with ray_head(tmp_path_factory.mktemp("head"), "--num-cpus=8") as running:
        yield running


def test_a_job_with_a_wrong_token_is_refused(head: Head, tmp_path: Path) -> None:
    touch = ["submit", "--", "touch", str(tmp_path / "was-here")]
    refused = head.job(*touch, token="b" * 64)
    assert refused.returncode != 0
    assert re.search("401|403|[Uu]nauthenticated|[Ii]nvalid", refused.stdout + refused.stderr)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], len(os.sched_getaffinity(0))),
        (["--entrypoint-num-cpus=3"], 3),
        (['--runtime-env-json={"env_vars": {"OMP_NUM_THREADS": "1"}}'], 1),
    ],
)
def test_a_job_uses_the_cores_of_the_machine_unless_told_otherwise(
    head: Head, flags: list[str], expected: int
) -> None:
    code = "from experiments.arguments import default_threads; print(default_threads(), 'threads')"
    done = head.job("submit", *flags, "--", sys.executable, "-c", code)
    assert f"{expected} threads" in done.stdout, done.stdout + done.stderr


def test_a_whole_pipeline_runs_as_a_job(head: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipeline = f"{sys.executable} -m experiments pipeline --preset debug --out {run}"
    done = head.job("submit", "--submission-id", "whole", "--", *pipeline.split())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Report: " in done.stdout
    assert (run / "report/index.html").is_file()
    timings = json.loads((run / "timings.json").read_text())
    assert list(timings["seconds"]) == [stage.name for stage in stage_table(PRESETS["debug"])]
    assert "Job 'whole' succeeded" in done.stdout
