"""Preset `paper` as a job on labelled machines, of which one of each kind is lost and replaced.

The cluster is that of cluster.yaml on this machine: a head and a machine of each kind, with a
second one for emulators. It has no GPU, so that the head's labels promise none. The models have the
paper's sizes but one block, since the whole ones would take hours here.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from envs.episodes.dataset import EpisodeReader
from envs.utils.ray_session import JOIN_VARIABLE
from envs.utils.run_dir import read_metrics
from experiments.pipeline.config import pipeline_preset
from experiments.pipeline.stages import stage_table
from tests.fixtures.cluster import ROOT, Head, ray_head
from worldmodel.models.saved_model import read_model_config

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.rom]

STEPS = 3
"""Optimizer steps of each training, and epochs of the explorer."""
EPISODES = 8
SECONDS = 1_800
"""Longest duration of the pipeline: a machine that has other work to do is slow."""
TRAINING = {
    "iterations": STEPS,
    "batch_size": 2,
    "log_every": 1,
    "validation_clips": 2,
    "checkpoint_every": 1,
}
SETTINGS = {
    "preset": "paper",
    "games": ["Airstriker-Genesis"],
    "pretraining_games": ["Airstriker-Genesis"],
    "pretraining_episodes": 1,
    "base_games": [],
    "model": {
        "tokenizer": {"encoder_blocks": 1, "decoder_blocks": 1},
        "dynamics": {"blocks": 1},
    },
    "random_episodes": EPISODES,
    "explored_episodes": 1,
    "test_episodes": 1,
    "explored_steps": 60,
    "workers": 2,
    "train_workers": 2,
    "tokenizer": TRAINING,
    "dynamics": TRAINING,
    "decoder_finetune": TRAINING,
    "dynamics_finetune": TRAINING,
    "explore": {
        "epochs": STEPS,
        "runners": 2,
        "envs_per_runner": 1,
        "steps_per_epoch": 10,
        "updates_per_epoch": 1,
        "batch_size": 2,
        "evaluation_steps": 10,
        "evaluation_episodes": 1,
    },
    "evaluate": {"horizon": 2, "steps": 1, "limit": 1, "distance": False},
}
"""Settings of the pipeline; the others are those of preset `paper`."""


def machine_types() -> dict[str, dict[str, Any]]:
    """Return the machine types of cluster.yaml."""
    types: dict[str, dict[str, Any]]
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    return types


def add(head: Head, name: str) -> None:
    """Start a machine `rollout-2` of type `rollout` with two cores and the type's resources."""
    resources = dict(machine_types()[name.split("-")[0]]["resources"])
    del resources["CPU"], resources["GPU"]
    head.add(name, 2, json.dumps(resources))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head with the labels of cluster.yaml, without GPUs, and four machines."""
    labels = ",".join(f"{label}=cpu" for label in machine_types()["head"]["labels"])
    folder = tmp_path_factory.mktemp("cluster")
    # A machine counts as dead after some seconds of silence, in place of half a minute. The one
    # that replaces it may take minutes to join where the machine has other work to do.
    variables = {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
        JOIN_VARIABLE: "600",
    }
    with ray_head(folder, "--num-cpus=2", f"--labels={labels}", **variables) as running:
        # One at a time: on a busy machine several would each take longer than Ray waits.
        for name in ("rollout-1", "rollout-2", "serve-1", "train-1"):
            add(running, name)
            running.await_machine(name)
        yield running


def lose_and_replace(head: Head, kind: str, process: str) -> None:
    """Kill a machine of a kind on which a process runs, and start another one."""
    names = [name for name in head.machines if name.startswith(kind)]
    busy = [name for name in names if head.running(name, process)]
    assert busy, f"no {process} on {', '.join(names)}"
    head.lose(busy[0])
    add(head, f"{kind}-new")


@pytest.mark.timeout(SECONDS + 300)
def test_the_pipeline_of_the_paper_survives_the_loss_of_a_machine_of_each_kind(
    head: Head, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"pipeline": SETTINGS}))
    pipeline = f"{sys.executable} -m experiments pipeline --preset paper --config {settings}"
    command, environment = head.job_command("submit", "--", *f"{pipeline} --out {run}".split())

    def played() -> bool:
        return any((run / "data/random").rglob("*.parquet"))

    def trained() -> bool:
        return (run / "tokenizer/checkpoints/step-00000001/manifest.json").exists()

    def explored() -> bool:
        return len(read_metrics(run / "explore")) > 0

    deadline = time.monotonic() + SECONDS
    # Stage by stage: the moment, the machine to lose, and what runs there at that moment.
    losses: list[tuple[Callable[[], bool], str, str]] = [
        (played, "rollout", "CollectWorker"),
        (trained, "train", "RayTrainWorker"),
        (explored, "serve", "ServeReplica"),
    ]
    log = tmp_path / "log"
    with log.open("w") as output:
        job = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        for moment, kind, process in losses:
            while not moment():
                assert job.poll() is None, log.read_text()[-5000:]
                assert time.monotonic() < deadline, log.read_text()[-5000:]
                time.sleep(0.1)
            lose_and_replace(head, kind, process)
        assert job.wait(timeout=deadline - time.monotonic()) == 0, log.read_text()[-5000:]
    finally:
        job.kill()
        print(log.read_text())
    check_run(run, log.read_text())


def check_run(run: Path, printed: str) -> None:
    """Assert that a pipeline is whole although machines were lost."""
    assert "Report: " in printed
    config = pipeline_preset("paper")
    timings = json.loads((run / "timings.json").read_text())
    assert list(timings["seconds"]) == [stage.name for stage in stage_table(config)]
    # Every episode is there, and every step once, those after the lost checkpoint trained again.
    assert len(EpisodeReader(run / "data/random").records) == EPISODES
    assert "a training worker died: continuing from step-" in printed
    for part in ("tokenizer", "dynamics", "finetune/agent/dynamics", "explore"):
        rows = [row for row in read_metrics(run / part) if "validation/loss" not in row]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), part
        losses = [row.get("train/loss", row.get("explore/total_loss")) for row in rows]
        assert np.isfinite(np.array(losses, float)).all(), part
    # The models have the paper's sizes but for their blocks.
    model = read_model_config(run / "models/agent")
    assert (model.dynamics.dim, model.dynamics.blocks, model.tokenizer.codes) == (512, 1, 1024)
    for name in ("base", "random", "agent"):
        result = json.loads((run / f"evaluation/{name}-random.json").read_text())
        assert np.isfinite(result["overall"]["prediction"]["mean"]["psnr"])
