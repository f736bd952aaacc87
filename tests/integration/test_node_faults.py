"""Loss of nodes: of three simulated ones, one is removed during exploration, one in training.

They are processes of this machine with their own Ray, apart from the one of the other tests.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.utils.run_dir import read_metrics
from exploration.config import explore_preset
from tests.fixtures.datasets import record
from worldmodel.checkpoint import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.integration]

EPOCHS = 20
STEPS = 10
"""Optimizer steps of the training; a checkpoint every 2."""

SCRIPT = """
import json, os, sys, threading, time
from envs.utils.ray_session import prepare_ray_environment, quiet_ray
prepare_ray_environment(local=True)
# A machine counts as dead after 2 seconds of silence, in place of half a minute.
os.environ.update(RAY_health_check_period_ms="500", RAY_health_check_failure_threshold="3")
import ray
import torch
from ray.cluster_utils import Cluster
torch.set_num_threads(1)
quiet_ray()

from envs.utils.run_dir import read_metrics
from exploration.config import explore_preset
from exploration.train import ExploreLoop, explore
from worldmodel.config import preset
from worldmodel.training.train import TrainingRun, train, train_preset

model, data, out, epochs, steps = *sys.argv[1:4], *map(int, sys.argv[4:])
shape = {"num_cpus": 1, "object_store_memory": 100_000_000}
head = {**shape, "include_dashboard": False}
cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
cluster.add_node(**shape)
cluster.add_node(**shape)

def busy():
    "A machine, not the head, on which something runs."
    free = ray._private.state.available_resources_per_node()
    return [node for node in cluster.worker_nodes if free.get(node.node_id, {}).get("CPU", 0) < 1]

def alive():
    return sum(node["Alive"] for node in ray.nodes())

def remove_one_after(run, step, results):
    while not (rows := read_metrics(run)) or rows[-1]["step"] < step:
        time.sleep(0.1)
    while not (nodes := busy()):
        time.sleep(0.1)
    results["at"] = read_metrics(run)[-1]["step"]
    cluster.remove_node(nodes[0], allow_graceful=False)

def while_one_goes(run, step, work):
    results = {"machines": alive()}
    thread = threading.Thread(target=remove_one_after, args=(run, step, results))
    thread.start()
    work()
    thread.join()
    deadline = time.monotonic() + 30
    while alive() == results["machines"] and time.monotonic() < deadline:
        time.sleep(0.2)
    return {**results, "left": alive()}

def save(run, epoch, save=ExploreLoop._save):
    save(run, epoch)
    if alive() < 3:
        time.sleep(1.0)  # an epoch of this size takes less time than a process to start elsewhere
ExploreLoop._save = save

explored, trained = out + "/explore", out + "/tokenizer"
results = {"explore": while_one_goes(explored, 3, lambda: explore(
    ["Counting"], model, explored,
    config=explore_preset("debug", runners=3, envs_per_runner=1, epochs=epochs)))}
cluster.add_node(**shape)
changes = {"batch_size": 2, "log_every": 1, "checkpoint_every": 2, "keep_last": 99}
settings = train_preset("tokenizer", "debug", iterations=steps, **changes)
run = TrainingRun("tokenizer", preset("debug"), settings, [data], trained)
results["train"] = while_one_goes(trained, 5, lambda: train(run, workers=2))
print("RESULTS " + json.dumps(results))
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def results(
    tiny_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """Folder of both runs, numbers of nodes before and after, and the output."""
    out = tmp_path_factory.mktemp("faults")
    data = record(out / "data", episodes=4, steps=40)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(tiny_world),
        data,
        str(out),
        str(EPOCHS),
        str(STEPS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout[-3000:] + done.stderr[-5000:]
    return out, json.loads(lines[0].removeprefix("RESULTS ")), done.stdout


def test_exploring_goes_on_when_a_machine_is_lost(
    results: tuple[Path, dict[str, Any], str],
) -> None:
    """No epoch is lost: until lost runners restart elsewhere, epochs hold what the others bring."""
    out, machines, _ = results
    assert (machines["explore"]["machines"], machines["explore"]["left"]) == (3, 2)
    rows = read_metrics(out / "explore")
    assert [row["step"] for row in rows] == list(range(1, EPOCHS + 1))
    played = np.diff([0, *(row["explore/env_steps"] for row in rows)])
    whole = 3 * explore_preset("debug").steps_per_epoch
    assert all(played[: machines["explore"]["at"]] == whole)
    assert min(played) >= explore_preset("debug").steps_per_epoch
    assert min(played) < whole
    assert played[-1] == whole
    assert all(np.isfinite(row["explore/total_loss"]) for row in rows)


def test_training_goes_on_from_the_last_checkpoint_when_a_machine_is_lost(
    results: tuple[Path, dict[str, Any], str],
) -> None:
    out, machines, printed = results
    assert (machines["train"]["machines"], machines["train"]["left"]) == (3, 2)
    resumed = re.search(r"a training worker died: continuing from step-0*(\d+)", printed)
    assert resumed
    assert (
        int(resumed[1]) >= machines["train"]["at"] - 2
    )  # not more than the steps of one checkpoint
    assert open_checkpoint(out / "tokenizer").step == STEPS
    assert [row["step"] for row in read_metrics(out / "tokenizer") if "train/loss" in row] == list(
        range(1, STEPS + 1)
    )
