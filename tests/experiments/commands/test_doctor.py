"""Cluster file as Ray reads it, offline, and the node checks of doctor."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import (
    _default_utilization_scorer,
    get_nodes_for,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from envs.utils.ray_session import KINDS, LABEL, SHARE
from experiments.commands.doctor import nodes

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    kinds = prepared["available_node_types"]
    assert set(kinds) == {"head", "rollout", "serve", "train"}
    assert all(kind["resources"]["CPU"] > 0 for kind in kinds.values())
    assert [name for name, kind in kinds.items() if kind["resources"]["GPU"]] == ["serve", "train"]
    # The head's labels name what the cluster can start: processes request nothing else.
    labels = {LABEL + name: "gpu" if kinds[name]["resources"]["GPU"] else "cpu" for name in KINDS}
    assert kinds["head"]["labels"] == labels
    assert all(
        kinds[name]["resources"][name] >= kinds[name]["resources"]["CPU"] * SHARE for name in KINDS
    )
    spot = [name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]]
    assert spot == ["rollout"]
    assert (
        sum(kind["max_workers"] for name, kind in kinds.items() if name != "head")
        == prepared["max_workers"]
    )


def test_requests_of_processes_start_machines_of_their_kind(config: dict[str, Any]) -> None:
    """Run Ray's scheduler of machines offline, for a cluster of which only the head runs."""
    kinds = prepare_config(copy.deepcopy(config))["available_node_types"]
    players, replicas, workers = (
        {"CPU": 1, "rollout": SHARE},
        {"CPU": 1, "GPU": 1, "serve": SHARE},
        {"GPU": 1},
    )
    score = partial(
        _default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({})
    )
    for ask, count, expected in (
        (players, 40, {"rollout": 3}),
        (replicas, 3, {"serve": 3}),
        (workers | {"train": SHARE}, 16, {"train": 2}),
    ):
        started, unmet = get_nodes_for(kinds, {"head": 1}, "head", 66, [ask] * count, score)
        assert (started, unmet) == (expected, [])


def test_the_file_is_closed_and_holds_no_secret(config: dict[str, Any]) -> None:
    # Ray itself adds SSH and the traffic within the group.
    assert "IpPermissions" not in config["provider"]["security_group"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "RAY_AUTH_TOKEN=" not in FILE.read_text()
    assert not any(name in FILE.read_text() for name in ("AWS_SECRET", "aws_secret", "KeyMaterial"))


def test_the_set_up_installs_from_the_lock_file(config: dict[str, Any]) -> None:
    lines = " ".join(config["setup_commands"])
    assert "-r ~/autoexplore/requirements.lock" in lines
    # The CPU build of the same version.
    assert "$(grep ^torch== ~/autoexplore/requirements.lock)" in lines
    assert (ROOT / "requirements.lock").read_text().count("\ntorch==") == 1
    assert any("/mnt/autoexplore" in line for line in config["initialization_commands"])


def test_doctor_asks_every_machine(ray_cluster: None, tmp_path: Path) -> None:
    findings = nodes(tmp_path / "runs")
    assert [finding.what for finding in findings] == ["machines", "shared storage", "same software"]
    assert [finding.fix for finding in findings] == [""] * 3
    assert findings[0].result.startswith("1: 8 CPUs")
    assert findings[0].result.endswith("processes run anywhere")
    assert not list((tmp_path / "runs").iterdir())
