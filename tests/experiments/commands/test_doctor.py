"""The cluster's file as Ray reads it, offline, and what doctor says of it and of the machines."""

import copy
import stat
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from envs.utils.errors import InputError
from envs.utils.ray_session import KINDS, LABEL, SHARE
from experiments.commands.doctor import closed, file_checks, nodes, storage, token

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
    # What the head says the cluster can start is what it can start: processes ask for nothing else.
    told = {LABEL + name: "gpu" if kinds[name]["resources"]["GPU"] else "cpu" for name in KINDS}
    assert kinds["head"]["labels"] == told
    assert all(kinds[name]["resources"][name] >= kinds[name]["resources"]["CPU"] * SHARE for name in KINDS)
    spot = [name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]]
    assert spot == ["rollout"]
    assert sum(kind["max_workers"] for name, kind in kinds.items() if name != "head") == prepared["max_workers"]


def test_what_processes_ask_for_starts_machines_of_their_kind(config: dict[str, Any]) -> None:
    """Ray's own scheduler of machines, offline, on a cluster of which only the head runs."""
    kinds = prepare_config(copy.deepcopy(config))["available_node_types"]
    players, replicas, workers = ({"CPU": 1, "rollout": SHARE}, {"CPU": 1, "GPU": 1, "serve": SHARE}, {"GPU": 1})
    score = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    for ask, count, expected in (
        (players, 40, {"rollout": 3}),
        (replicas, 3, {"serve": 3}),
        (workers | {"train": SHARE}, 16, {"train": 2}),
    ):
        started, unmet = get_nodes_for(kinds, {"head": 1}, "head", 66, [ask] * count, score)
        assert (started, unmet) == (expected, [])


def test_the_file_is_closed_and_holds_no_secret(config: dict[str, Any]) -> None:
    assert (
        "IpPermissions" not in config["provider"]["security_group"]
    )  # Ray itself adds SSH and the group's own traffic
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "RAY_AUTH_TOKEN=" not in FILE.read_text()
    assert not any(name in FILE.read_text() for name in ("AWS_SECRET", "aws_secret", "KeyMaterial"))


def test_the_set_up_installs_from_the_lock_file(config: dict[str, Any]) -> None:
    lines = " ".join(config["setup_commands"])
    assert "-r ~/autoexplore/requirements.lock" in lines
    assert "$(grep ^torch== ~/autoexplore/requirements.lock)" in lines  # the CPU build of the same version
    assert (ROOT / "requirements.lock").read_text().count("\ntorch==") == 1
    assert any("/mnt/autoexplore" in line for line in config["initialization_commands"])


def changed(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_doctor_names_what_is_missing(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    (tmp_path / ".ray").mkdir()
    secret = tmp_path / ".ray" / "auth_token"
    assert "FILE_SYSTEM" in storage(FILE).fix
    assert "get-auth-token" in token(FILE).fix
    secret.write_text("secret")
    secret.chmod(0o644)
    assert "chmod 600" in token(FILE).fix
    secret.chmod(stat.S_IRUSR | stat.S_IWUSR)
    whole = tmp_path / "whole.yaml"
    whole.write_text(FILE.read_text().replace("FILE_SYSTEM.efs", "fs-0123.efs"))
    assert [check().fix for check in file_checks(whole)] == [""] * 5
    config["provider"]["security_group"]["IpPermissions"] = [{"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp"}]
    assert not closed(whole).fix
    assert closed(changed(tmp_path, config)).fix
    del config["provider"]["security_group"]["IpPermissions"]
    config["head_start_ray_commands"][-1] = "ray start --head --dashboard-host=0.0.0.0"
    assert "all interfaces" in closed(changed(tmp_path, config)).found
    assert "RAY_AUTH_MODE" in token(changed(tmp_path, config)).fix
    del config["file_mounts"]["~/.ray/auth_token"]
    assert "file_mounts" in token(changed(tmp_path, config)).fix
    config["head_node_type"] = "nobody"
    assert "Ray refuses it" in file_checks(changed(tmp_path, config))[0]().fix


@pytest.mark.parametrize("text", ["- a list", "a: [", None])
def test_what_is_no_cluster_file_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"--cluster .*file\.yaml"):
        storage(path)


def test_doctor_asks_every_machine(ray_cluster: None, tmp_path: Path) -> None:
    findings = nodes(tmp_path / "runs")
    assert [finding.what for finding in findings] == ["machines", "shared storage", "same software"]
    assert [finding.fix for finding in findings] == [""] * 3
    assert findings[0].found.startswith("1: 8 CPUs")
    assert findings[0].found.endswith("processes run anywhere")
    assert not list((tmp_path / "runs").iterdir())
