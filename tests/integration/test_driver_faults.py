"""Kill `explore` or one of its learners, or stop it with Ctrl+C, and resume the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envs.utils.run_dir import read_metrics
from exploration.agent.checkpoint import complete_checkpoints, load_checkpoint
from exploration.agent.policy import load_policy

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def start(out: Path, model: Path, *more: str) -> Any:
    """The command in a process group of its own, as a terminal's foreground job is."""
    sizes = ["--preset", "debug", "--runners", "0", "--envs-per-runner", "2", "--epochs", "1000"]
    argv = [
        sys.executable,
        "-m",
        "experiments",
        "explore",
        "Counting",
        "--model",
        str(model),
        "--out",
        str(out),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [*argv, *sizes, *more],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def learners(root: int) -> list[int]:
    """Processes of RLlib's learners in the session that a command leads."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                session = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3])
                ours = (folder / "cmdline").read_bytes().startswith(b"ray::_WrappedExecutable")
            except (OSError, IndexError):
                continue  # it ended meanwhile
            if ours and session == root:
                found.append(int(folder.name))
    return found


def wait_for_epoch(out: Path, epoch: int, process: Any) -> None:
    end = time.monotonic() + 400
    while not any(int(path.name[-8:]) >= epoch for path in complete_checkpoints(out)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_killed_command_loses_an_epoch_at_most_and_ctrl_c_ends_it_at_once(
    tiny_world: Path, tmp_path: Path, record_property: Any
) -> None:
    out = tmp_path / "run"
    command = start(out, tiny_world)
    wait_for_epoch(out, 3, command)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    epoch, state, _ = load_checkpoint(complete_checkpoints(out)[-1])
    done = [row["step"] for row in read_metrics(out)]
    assert done[-1] - epoch <= 1, "the epoch that was logged and not saved is all that is lost"

    command = start(out, tiny_world, "--resume")
    wait_for_epoch(out, epoch + 2, command)
    pressed = time.monotonic()
    os.killpg(command.pid, signal.SIGINT)
    stderr = command.communicate(timeout=60)[1]
    record_property("seconds from Ctrl+C to the end", time.monotonic() - pressed)
    assert command.returncode == 130
    assert "--resume" in stderr
    assert time.monotonic() - pressed <= 10

    rows = read_metrics(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), (
        "no epoch twice, none left out"
    )
    assert rows[0]["explore/epsilon"] == 0.1
    rest = [row["explore/epsilon"] for row in rows[1:]]
    assert rest == pytest.approx([0.01] * len(rest)), "the schedule goes on where it was"
    steps = sum(stretch["steps"] for stretch in state["replay"]["stretches"])
    kept = min(
        1_000, steps + rows[epoch]["explore/env_steps"] - rows[epoch - 1]["explore/env_steps"]
    )
    assert rows[epoch]["explore/replay_steps"] == kept, (
        "the replay went on from what was in the checkpoint"
    )
    newest = complete_checkpoints(out)[-1]
    load_checkpoint(newest)
    load_policy(newest)
    assert json.loads((newest / "config.json").read_text())["about"]["env_steps"] > 0


def test_a_killed_learner_ends_the_command_with_what_to_do(
    tiny_world: Path, tmp_path: Path
) -> None:
    """Killing one of two learners ends with one line and code 2; --resume continues the run."""
    out = tmp_path / "run"
    command = start(out, tiny_world, "--learners", "2")
    wait_for_epoch(out, 3, command)
    both = learners(command.pid)
    assert len(both) == 2
    os.kill(both[0], signal.SIGKILL)
    stderr = command.communicate(timeout=100)[1]
    assert command.returncode == 2, stderr
    assert stderr.splitlines() == [
        f"autoexplore: {out}: a learner process died; continue from the newest checkpoint "
        "with --resume"
    ]
    epoch = int(complete_checkpoints(out)[-1].name.removeprefix("step-"))
    assert read_metrics(out)[-1]["step"] - epoch <= 1, (
        "the epoch that was logged and not saved is all that is lost"
    )

    command = start(out, tiny_world, "--learners", "2", "--resume", "--epochs", str(epoch + 2))
    stderr = command.communicate(timeout=200)[1]
    assert command.returncode == 0, stderr
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == list(range(1, epoch + 3)), (
        "no epoch twice, none left out"
    )
