"""Exploring with a reward service: one that is running, and one that may grow."""

import json
from pathlib import Path

import pytest

from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from exploration.reward.factory import RewardConfig
from tests.experiments.test_cli import complaint
from worldmodel.serve import ServeConfig

EXPLORE = ["explore", "Counting", "--preset", "debug", "--runners", "0", "--epochs", "1"]


def running_apps() -> set[str]:
    """Return the names of the apps of the connected Ray."""
    from ray import serve

    return set(serve.status().applications)


@pytest.mark.slow
def test_explore_uses_a_running_service_and_leaves_it_running(
    ray_cluster: None, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from worldmodel import serve

    out = ["--out", str(tmp_path / "run")]
    explore = [*EXPLORE, "--model", str(tiny_world), "--reward-app", "running", *out]
    line = complaint(capsys, *explore)
    assert f"`autoexplore serve {tiny_world} --name running`" in line
    assert not (tmp_path / "run").exists(), "refused before anything is started"

    serve.deploy(tiny_world, ServeConfig(app_name="running", num_cpus=0.5))
    try:
        assert execute(explore) == 0
        assert running_apps() == {"running"}, "no other service was started, this one runs on"
        (replica,) = serve.describe("running")
        (row,) = read_metrics(tmp_path / "run")
        # All but the first three steps of each of two envs, of training and of evaluation.
        assert replica["windows"] >= row["explore/env_steps"] - 2 * 3 + 10 - 3
        assert row["explore/fragments_dropped"] == 0
        record = json.loads((tmp_path / "run" / "config.json").read_text())
        assert record["reward"]["app"] == "running"

        other = tmp_path / "other"
        other.symlink_to(tiny_world)
        same = [*EXPLORE, "--model", str(other), "--reward-app", "running"]
        assert execute([*same, "--out", str(tmp_path / "same")]) == 0, "the same model"
        copy = tmp_path / "copy"
        copy.mkdir()
        for file in tiny_world.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        wrong = [*EXPLORE, "--model", str(copy), "--reward-app", "running"]
        line = complaint(capsys, *wrong, "--out", str(tmp_path / "wrong"))
        assert f"serves {tiny_world}, not {copy}" in line
    finally:
        serve.shutdown("running")


@pytest.mark.slow
def test_the_service_of_a_run_may_grow(ray_cluster: None, tiny_world: Path, tmp_path: Path) -> None:
    from ray.serve.context import _get_global_client

    reward = RewardConfig(scorer="serve", max_replicas=3)
    with reward.open(tiny_world, tmp_path, seed=0, replicas=1):
        (name,) = running_apps()
        details = _get_global_client().get_serve_details()["applications"][name]
        (deployment,) = details["deployments"].values()
        scaling = deployment["deployment_config"]["autoscaling_config"]
        assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 3)
    assert not running_apps()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--reward-max-replicas", "1", "--replicas", "2"], "--reward-max-replicas 1: give 2"),
        (["--reward-app", "a", "--reward-max-replicas", "4"], "its own replicas"),
        (["--reward-app", "a", "--reward-backend", "local"], "--reward-backend local"),
        (["--reward-app", "a", "--reward", "count-bonus"], "--reward-app"),
    ],
)
def test_contradicting_flags_are_one_line(
    flags: list[str],
    words: str,
    tiny_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [*EXPLORE, "--model", str(tiny_world), "--out", str(tmp_path / "run"), *flags]
    assert words in complaint(capsys, *argv)
    assert not (tmp_path / "run").exists()
