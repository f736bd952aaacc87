"""The command `explore` itself is killed, and stopped with Ctrl+C: what is lost, and where it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envs.runs import read_metrics
from exploration.checkpoint import complete_checkpoints, load_checkpoint
from exploration.policy import load_policy


def start(out: Path, model: Path, *more: str) -> Any:
    """The command in a process group of its own, as a terminal's foreground job is."""
    sizes = ["--preset", "debug", "--runners", "0", "--envs-per-runner", "2", "--epochs", "1000"]
    argv = [sys.executable, "-m", "experiments", "explore", "Counting", "--model", str(model), "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [*argv, *sizes, *more], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def wait_for_epoch(out: Path, epoch: int, process: Any) -> None:
    end = time.monotonic() + 200
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
    told = command.communicate(timeout=60)[1]
    record_property("seconds from Ctrl+C to the end", time.monotonic() - pressed)
    assert command.returncode == 130
    assert "--resume" in told
    assert time.monotonic() - pressed <= 10

    rows = read_metrics(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "no epoch twice, none left out"
    assert rows[0]["explore/epsilon"] == 0.1
    rest = [row["explore/epsilon"] for row in rows[1:]]
    assert rest == pytest.approx([0.01] * len(rest)), "the schedule goes on where it was"
    steps = sum(stretch["steps"] for stretch in state["replay"]["stretches"])
    kept = min(1_000, steps + rows[epoch]["explore/env_steps"] - rows[epoch - 1]["explore/env_steps"])
    assert rows[epoch]["explore/replay_steps"] == kept, "the replay went on from what was in the checkpoint"
    newest = complete_checkpoints(out)[-1]
    load_checkpoint(newest)
    load_policy(newest)
    assert json.loads((newest / "config.json").read_text())["about"]["env_steps"] > 0
