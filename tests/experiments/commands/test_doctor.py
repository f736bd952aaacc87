"""Cluster file as Ray reads it, offline, and the node checks of doctor."""

import copy
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private import command_runner
from ray.autoscaler._private.constants import AUTOSCALER_UTILIZATION_SCORER_KEY
from ray.autoscaler._private.loader import load_function_or_class
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
)
from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from envs.roms import FOLDER_VARIABLE
from envs.utils.ray_session import KINDS, LABEL, SHARE
from experiments.commands.doctor import Args, findings, nodes
from experiments.diagnosis.cluster_file import FALLBACK

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert set(types) == {"head", *KINDS, *(FALLBACK + kind for kind in KINDS)}
    assert all(item["resources"]["CPU"] > 0 for item in types.values())
    # The head's labels name what the cluster can start: processes request nothing else.
    labels = {LABEL + name: "gpu" if types[name]["resources"]["GPU"] else "cpu" for name in KINDS}
    assert types["head"]["labels"] == labels
    assert all(
        types[name]["resources"][name] >= types[name]["resources"]["CPU"] * SHARE for name in KINDS
    )
    spot = [name for name, item in types.items() if "InstanceMarketOptions" in item["node_config"]]
    assert spot == ["rollout", "fallback-rollout"]
    # Machines with a GPU run the image with CUDA.
    gpu = [name for name, item in types.items() if item["resources"]["GPU"]]
    assert gpu == [name for name, item in types.items() if "docker" in item]
    assert sum(types[name]["max_workers"] for name in KINDS) == prepared["max_workers"]


def test_a_fallback_differs_in_the_instance_type_alone(config: dict[str, Any]) -> None:
    types = prepare_config(copy.deepcopy(config))["available_node_types"]
    for kind in KINDS:
        first, second = types[kind], types[FALLBACK + kind]
        own = first["node_config"].pop("InstanceType"), second["node_config"].pop("InstanceType")
        assert own[0] != own[1]
        assert first == second


PLAYERS, REPLICAS, WORKERS = (
    {"CPU": 1, "rollout": SHARE},
    {"CPU": 1, "GPU": 1, "serve": SHARE},
    {"GPU": 1, "train": SHARE},
)


@pytest.mark.parametrize(
    ("request_", "count", "expected"),
    [(PLAYERS, 40, {"rollout": 3}), (REPLICAS, 3, {"serve": 3}), (WORKERS, 16, {"train": 2})],
)
def test_requests_of_processes_start_machines_of_their_kind(
    config: dict[str, Any], request_: dict[str, float], count: int, expected: dict[str, int]
) -> None:
    """Run Ray's scheduler of machines offline, for a cluster of which only the head runs."""
    types = prepare_config(copy.deepcopy(config))["available_node_types"]
    start = config["head_start_ray_commands"][-1]
    scorer = load_function_or_class(
        re.search(rf"{AUTOSCALER_UTILIZATION_SCORER_KEY}=([\w.]+);", start)[1]
    )
    refused = {
        kind: NodeAvailabilityRecord(kind, False, 0.0, None)  # what AWS refused a moment ago
        for kind in KINDS
    }
    for records, prefix in (({}, ""), (refused, FALLBACK)):
        summary = NodeAvailabilitySummary(records)
        score = partial(scorer, node_availability_summary=summary)
        asked = [request_] * count
        started, unmet = get_nodes_for(types, {"head": 1}, "head", 66, asked, score)
        assert (started, unmet) == ({prefix + kind: n for kind, n in expected.items()}, [])


def test_the_file_is_closed_and_holds_no_secret(config: dict[str, Any]) -> None:
    # The group is one of your own, so that Ray adds no rule; see scripts/prepare_aws.py.
    assert "security_group" not in config["provider"]
    types = config["available_node_types"].values()
    assert all(item["node_config"]["SecurityGroupIds"] == ["SECURITY_GROUP"] for item in types)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "RAY_AUTH_TOKEN=" not in FILE.read_text()
    assert not any(name in FILE.read_text() for name in ("AWS_SECRET", "aws_secret", "KeyMaterial"))


def test_machines_run_the_image(config: dict[str, Any]) -> None:
    """Compare what Ray does in the container with what Dockerfile makes."""
    recipe = (ROOT / "Dockerfile").read_text()
    assert "--entrypoint=" in config["docker"]["run_options"]  # Ray starts a shell
    # Ray mounts files below HOME, and needs these programs in the image.
    assert re.search(r"^ENV HOME=/home/player ", recipe, re.M)
    assert {"openssh-client", "rsync", "wget"} <= set(recipe.split())
    assert "pip" not in " ".join(config["setup_commands"] + config["initialization_commands"])
    # ROMs are imported when a machine starts, from the folder that all machines see.
    assert f"-e {FOLDER_VARIABLE}=/mnt/autoexplore/roms" in config["docker"]["run_options"]
    assert "python -m envs.roms" in config["setup_commands"]
    assert "/mnt/autoexplore/roms" in config["initialization_commands"][-1]
    # Ray's launcher would give every process of a machine one thread.
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all(line.startswith("unset OMP_NUM_THREADS; ") for line in starts)
    assert "OMP_NUM_THREADS=1" in command_runner._with_interactive("true")[-1]


def test_doctor_checks_a_cluster_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    *_, file, account = findings(Args(start_ray=False, cluster=FILE))
    assert file.result == "IMAGE, SECURITY_GROUP, FILE_SYSTEM to be filled in"
    assert (account.result, account.serious) == ("AWS not asked", False)


def test_doctor_asks_every_machine(ray_cluster: None, tmp_path: Path) -> None:
    findings = nodes(tmp_path / "runs")
    assert [finding.what for finding in findings] == ["machines", "shared storage", "same software"]
    assert [finding.fix for finding in findings] == [""] * 3
    assert findings[0].result.startswith("1: 8 CPUs")
    assert findings[0].result.endswith("processes run anywhere")
    assert not list((tmp_path / "runs").iterdir())
