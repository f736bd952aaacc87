"""The world model on a device other than the CPU, without a GPU: runs the checks of the device."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import stand_in_device

CHECKS = Path(stand_in_device.__file__).with_name("checks.py")


@pytest.mark.slow
def test_the_checks_pass_in_a_process_of_their_own() -> None:
    """Torch accepts a new device only before the first backward pass of a process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    process = subprocess.run(command, cwd=CHECKS.parents[3], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="compiler, and there is no no-such-compiler"):
        stand_in_device.compile_device(tmp_path / "device.so")
