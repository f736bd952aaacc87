"""Resumed runs reach the same weights: killed, interrupted, moved, on one worker or two."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from tests.fixtures.datasets import record
from tests.worldmodel.training.conftest import CONFIG, DYNAMICS, SHORT
from worldmodel import checkpoint
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train

# Re-seeding draws codes with the noise of a rank, so that one and two workers would differ.
STEADY = dataclasses.replace(
    CONFIG,
    tokenizer=dataclasses.replace(CONFIG.tokenizer, reseed_below=0.0),
    lam=dataclasses.replace(CONFIG.lam, reseed_below=0.0),
)


def assert_same_checkpoint(run: Path, other: Path) -> None:
    """Check that the newest checkpoints of two runs are equal bit for bit."""
    a, b = checkpoint.open_checkpoint(run), checkpoint.open_checkpoint(other)
    assert (a.step, a.state["data_state"]) == (b.step, b.state["data_state"])
    for mine, theirs in (
        (a.weights(), b.weights()),
        (a.optimizer_tensors(), b.optimizer_tensors()),
    ):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("component", ["tokenizer", "dynamics"])
def test_a_resumed_run_equals_one_that_never_stopped(
    component: str, data: str, tokenizer_run: Path, dynamics_run: Path, tmp_path: Path
) -> None:
    straight = tokenizer_run if component == "tokenizer" else dynamics_run
    resumed = tmp_path / "resumed"
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints/step-00000008")
    torch.manual_seed(99)  # other draws of the process must not matter
    np.random.seed(99)
    options: dict[str, Any] = {"recipe": SHORT}
    if component == "dynamics":
        options = {"recipe": DYNAMICS, "tokenizer": tokenizer_run}
    newest = train(
        TrainingRun(component, config=CONFIG, data=[data], out=resumed, **options), resume=True
    )
    assert newest == resumed / "checkpoints/step-00000008"
    assert_same_checkpoint(resumed, straight)
    logged = [
        [row["step"] for row in read_metrics(run) if "train/loss" in row]
        for run in (resumed, straight)
    ]
    assert logged[0] == logged[1] == [2, 4, 6, 8]
    losses = [
        [row["train/loss"] for row in read_metrics(run) if "train/loss" in row]
        for run in (resumed, straight)
    ]
    assert losses[0] == losses[1]


def test_a_complete_run_is_left_as_it_is_by_resume(data: str, tokenizer_run: Path) -> None:
    before = (tokenizer_run / "metrics.jsonl").stat().st_mtime_ns
    newest = train(TrainingRun("tokenizer", CONFIG, SHORT, [data], tokenizer_run), resume=True)
    assert newest.name == "step-00000008"
    assert (tokenizer_run / "metrics.jsonl").stat().st_mtime_ns == before


INTERRUPTED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from worldmodel.config import preset
from worldmodel.training.train import TrainingRun, train, train_preset
from worldmodel.training.trainer import Trainer
settings = train_preset(
    "tokenizer", "debug", iterations=8, checkpoint_every=4, validate_every=4, log_every=2
)
train_step = Trainer.train_step
def interrupted_step(self, batch):
    if self.step == step:
        os.kill(os.getpid(), number)
    return train_step(self, batch)
Trainer.train_step = interrupted_step
for step, number, out in ((6, signal.SIGKILL, "killed"), (5, signal.SIGINT, "interrupted")):
    child = os.fork()
    if child == 0:
        try:
            train(TrainingRun("tokenizer", preset("debug"), settings, [sys.argv[1]], out))
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(1)
    print(out, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_to_what_an_undisturbed_one_reaches(
    data: str, tokenizer_run: Path, tmp_path: Path
) -> None:
    """SIGKILL in step 7 loses the steps since the last checkpoint; Ctrl+C in step 6 saves one."""
    command = [sys.executable, "-c", INTERRUPTED, data]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "killed -9" in process.stdout, process.stderr
    assert "interrupted 130" in process.stdout, process.stderr
    assert "continue with --resume" in process.stdout
    for name, step in (("killed", 4), ("interrupted", 6)):
        assert checkpoint.open_checkpoint(tmp_path / name).step == step
        train(TrainingRun("tokenizer", CONFIG, SHORT, [data], tmp_path / name), resume=True)
        assert_same_checkpoint(tmp_path / name, tokenizer_run)
        steps = [row["step"] for row in read_metrics(tmp_path / name) if "train/loss" in row]
        assert steps == [2, 4, 6, 8]


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process or one of its descendants started."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            yield child
            yield from descendants(child)


def kill_a_worker_after(step: int, run: Path) -> None:
    while not any(row["step"] >= step for row in read_metrics(run)):
        time.sleep(0.02)
    for pid in descendants(os.getpid()):
        if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
            return


@pytest.mark.slow
def test_two_gloo_workers_one_of_them_killed_learn_what_one_process_learns(
    ray_cluster: None, data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Batches, gradients and code statistics agree: weights differ by the order of additions only.

    The two workers continue the run of one process. After one of them is killed, two new workers
    continue from its checkpoint.
    """
    settings = train_preset(
        "tokenizer",
        "debug",
        iterations=16,
        batch_size=4,
        log_every=1,
        checkpoint_every=2,
        keep_last=99,
    )
    options: dict[str, Any] = {
        "config": STEADY,
        "recipe": settings,
        "data": [data],
        "cache_dir": tmp_path / "cache",
    }
    train(TrainingRun("tokenizer", out=tmp_path / "one", **options))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for step in range(4, 17, 2):
        shutil.rmtree(tmp_path / f"two/checkpoints/step-{step:08d}")
    (tmp_path / "two/metrics.jsonl").write_text("")
    killer = threading.Thread(target=kill_a_worker_after, args=(5, tmp_path / "two"))
    killer.start()
    train(TrainingRun("tokenizer", out=tmp_path / "two", **options), workers=2, resume=True)
    killer.join()
    assert "a training worker died: continuing from step-000000" in capfd.readouterr().out
    one, two = (checkpoint.open_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one.state["data_state"] == two.state["data_state"]
    assert one.weights().keys() == two.weights().keys()
    for name, value in one.weights().items():
        torch.testing.assert_close(two.weights()[name], value, atol=1e-4, rtol=1e-3, msg=name)
    logs = [read_metrics(tmp_path / name) for name in ("one", "two")]
    rows = [{row["step"]: row for row in log if "train/loss" in row} for log in logs]
    assert [row["step"] for row in logs[1] if "train/loss" in row] == list(range(3, 17))
    for step, row in rows[1].items():
        for name in (
            "train/loss",
            "train/grad_norm",
            "train/lr",
            "train/perplexity",
            "train/epoch",
        ):
            assert row[name] == pytest.approx(rows[0][step][name], rel=1e-3), (step, name)
    checks = [[row for row in log if "validation/psnr" in row] for log in logs]
    assert checks[1][-1]["validation/psnr"] == pytest.approx(
        checks[0][-1]["validation/psnr"], rel=1e-3
    )


@pytest.mark.slow
def test_a_latent_action_model_on_two_workers_is_that_of_one(
    ray_cluster: None, data: str, tmp_path: Path
) -> None:
    """Weights, their EMA, and the codebook, which both workers update alike."""
    settings = train_preset("lam", "debug", iterations=4, batch_size=4, validate_every=4, ema=0.9)
    options: dict[str, Any] = {
        "config": STEADY,
        "recipe": settings,
        "data": [data],
        "cache_dir": tmp_path / "cache",
    }
    for workers in (0, 2):
        train(TrainingRun("lam", out=tmp_path / str(workers), **options), workers=workers)
    one, two = (checkpoint.open_checkpoint(tmp_path / str(workers)) for workers in (0, 2))
    assert one.state["data_state"] == two.state["data_state"]
    for mine, theirs in ((one.weights(), two.weights()), (one.average(), two.average())):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_a_damaged_newest_checkpoint_stops_resume_and_offers_the_one_before(
    data: str, tokenizer_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_run, tmp_path / "run")
    with (tmp_path / "run/checkpoints/step-00000008/model.safetensors").open("r+b") as file:
        file.truncate(100)
    options: dict[str, Any] = {
        "config": CONFIG,
        "recipe": SHORT,
        "data": [data],
        "out": tmp_path / "run",
    }
    with pytest.raises(
        InputError, match=r"step-00000008.*damaged.*step-00000004, delete this folder"
    ):
        train(TrainingRun("tokenizer", **options), resume=True)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    train(
        TrainingRun("tokenizer", cache_dir=tokenizer_run.parent / "cache", **options), resume=True
    )
    assert_same_checkpoint(tmp_path / "run", tokenizer_run)


def test_a_run_may_move_but_not_change_its_data_or_tokenizer(
    data: str, tokenizer_run: Path, dynamics_run: Path, tmp_path: Path
) -> None:
    for source, name in ((dynamics_run, "run"), (Path(data), "data"), (tokenizer_run, "tokenizer")):
        shutil.copytree(source, tmp_path / name)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    other_data = record(tmp_path / "other", episodes=4, steps=40, seed=5)
    other = tmp_path / "other-tokenizer"
    train(TrainingRun("tokenizer", CONFIG, train_preset("tokenizer", "debug"), [data], other))
    run = TrainingRun("dynamics", CONFIG, DYNAMICS, [tmp_path / "data"], tmp_path / "run")
    run = dataclasses.replace(run, tokenizer=tmp_path / "tokenizer")
    with pytest.raises(InputError, match="tokenizer_sha256 was another"):
        train(dataclasses.replace(run, tokenizer=other), resume=True)
    with pytest.raises(InputError, match="trained on other data"):
        train(dataclasses.replace(run, data=[other_data]), resume=True)
    train(run, resume=True)
    assert_same_checkpoint(tmp_path / "run", dynamics_run)
