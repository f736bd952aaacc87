"""A pipeline submitted as a job to a Ray head that asks for a token, and refused without it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.pipeline.config import PRESETS
from experiments.pipeline.stages import stage_table

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
TOKEN = "a" * 64


@dataclass
class Head:
    """A Ray head of this test's own."""

    dashboard: str
    environment: dict[str, str]

    def job(self, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """Run `ray job ...` with a token in the environment, as on another machine."""
        environment = {**self.environment, "RAY_AUTH_TOKEN": token, "RAY_ADDRESS": self.dashboard}
        environment.pop("RAY_AUTH_TOKEN_PATH")
        command = [str(RAY), "job", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )


def free_ports(count: int) -> list[str]:
    """Return free ports of the loopback device."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a Ray head with a token in a file and its own ports and folder; end its processes."""
    token = tmp_path_factory.mktemp("secret") / "auth_token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    # Without OMP_NUM_THREADS, as on a machine of a cluster: Ray itself sets it for each process.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name != "OMP_NUM_THREADS"
    }
    environment = {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "PYTHONPATH": str(ROOT),
    }
    # Paths of Ray's sockets may have 107 characters: pytest's folders are too deep.
    folder = Path(f"/tmp/ray-head-{os.getpid()}")
    names = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "dashboard-agent-listen-port",
        "node-manager-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=8", "--include-dashboard=true"]
    command += [
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        "--disable-usage-stats",
    ]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=200000000"]
    command += [f"--temp-dir={folder}", *(f"--{name}={port}" for name, port in ports.items())]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    running = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    try:
        deadline = time.monotonic() + 120
        while (listed := running.job("list")).returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, listed.stderr
            time.sleep(1)
        yield running
    finally:
        process.terminate()  # ends all of Ray's processes of this head, and no others
        process.wait(timeout=60)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


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
