"""The Slurm script, with stand-ins for Slurm's commands: two nodes that are this machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm.sh"
STAND_INS = {
    "scontrol": "echo here; echo there",
    # Options end where the command begins.
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "hostname": "echo 127.0.0.1 192.0.2.1",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a job on two nodes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (folder / name).chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here,there",
        "RAY_START_OPTIONS": "--num-cpus=4 --object-store-memory=100000000",
    }


def start_script(slurm: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """Start the script as the job does."""
    return subprocess.Popen(
        [str(SCRIPT), *words],
        env=slurm,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_nothing_is_left(slurm: dict[str, str]) -> None:
    """Find no process of the job's cluster, and remove its folder."""
    folder = f"/tmp/ray-{slurm['SLURM_JOB_ID']}"
    left = subprocess.run(["pgrep", "-f", folder], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    assert left.stdout == b""


def test_a_command_runs_on_all_nodes(slurm: dict[str, str], tmp_path: Path) -> None:
    address = f"127.0.0.1:{20000 + os.getpid() % 10000}"
    flags = ["--no-start-ray", "--ray-address", address, "--out", str(tmp_path / "runs")]
    output, _ = start_script(slurm, "doctor", *flags).communicate(timeout=300)
    assert "2: 8 CPUs" in output, output
    assert "games imported" in output
    assert_nothing_is_left(slurm)


def test_the_command_gets_ctrl_c_before_the_time_is_up(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "data"
    flags = ["--episodes", "100000", "--steps", "400", "--out", str(out)]
    script = start_script(slurm, "collect", "Counting", *flags)
    deadline = time.monotonic() + 240
    while not list(out.rglob("*.parquet")):
        assert script.poll() is None, script.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    script.send_signal(signal.SIGUSR1)
    output, _ = script.communicate(timeout=200)
    assert script.returncode == 130, output
    assert_nothing_is_left(slurm)
