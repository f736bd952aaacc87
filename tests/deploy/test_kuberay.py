"""KubeRay manifests, offline: the fields they use, what Ray makes of them, and the Serve app.

No Kubernetes is started. FIELDS names those fields of KubeRay's custom resources (v1.7.0) that the
manifests use, with their types: that finds a misspelt field and a value of another type, not what
the operator makes of them. KUBERAY_CRDS may name a folder with KubeRay's own schemas of them, its
`helm-chart/kuberay-operator/crds`, by which the manifests are validated too.
"""

import copy
import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import (
    _default_utilization_scorer,
    get_nodes_for,
)
from ray.serve.schema import ServeDeploySchema

from envs.roms import FOLDER_VARIABLE
from envs.utils.ray_session import KINDS, LABEL, SHARE
from experiments.__main__ import parse
from worldmodel.serve import APP_NAME, ServeConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
CRDS = os.environ.get("KUBERAY_CRDS")
"""Folder with `ray.io_rayclusters.yaml` and those of the other two kinds."""
AMOUNTS = {"*": (int, str)}
TEXTS = {"*": str}
POD = {
    "securityContext": {"fsGroup": int},
    "containers!": [
        {
            "name!": str,
            "image": str,
            "args": [str],
            "env": [{"name!": str, "value": str}],
            "volumeMounts": [{"name!": str, "mountPath!": str}],
            "resources": {"requests": AMOUNTS, "limits": AMOUNTS},
        }
    ],
    "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}}],
}
GROUP = {"labels": TEXTS, "resources": TEXTS, "rayStartParams": TEXTS, "template!": {"spec": POD}}
WORKERS = {"groupName!": str, "minReplicas!": int, "maxReplicas!": int}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": {"disabled", "token"}},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": {"v1", "v2"}, "idleTimeoutSeconds": int},
    "headGroupSpec!": GROUP,
    "workerGroupSpecs": [WORKERS | GROUP],
}
FIELDS = {
    "RayCluster": CLUSTER,
    "RayJob": {"entrypoint": str, "clusterSelector": TEXTS},
    "RayService": {"serveConfigV2": str, "rayClusterConfig!": CLUSTER},
}
"""Fields of the specs by kind: a type, a set of values, a list of one form, or fields; ! marks what
is required, * any name."""


def check_fields(content: Any, form: Any, where: str) -> None:
    """Assert that content has a form of FIELDS."""
    if isinstance(form, dict):
        names = {name.rstrip("!"): name for name in form}
        required = {name for name, key in names.items() if key.endswith("!")}
        assert isinstance(content, dict), where
        assert required <= content.keys(), where
        for name, value in content.items():
            assert name in names or "*" in names, f"{where}: no field {name}"
            check_fields(value, form[names.get(name, "*")], f"{where}.{name}")
    elif isinstance(form, list):
        assert isinstance(content, list), where
        for item in content:
            check_fields(item, form[0], f"{where}[]")
    elif isinstance(form, set):
        assert content in form, where
    else:
        assert isinstance(content, form), where
        assert form is bool or not isinstance(content, bool), where


def manifest(kind: str) -> dict[str, Any]:
    """Return the manifest of a kind."""
    documents = yaml.safe_load_all((FOLDER / f"{kind.lower()}.yaml").read_text())
    return next(document for document in documents if document["kind"] == kind)


def cluster_specs() -> list[dict[str, Any]]:
    """Return the specs of all clusters."""
    return [manifest("RayCluster")["spec"], manifest("RayService")["spec"]["rayClusterConfig"]]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_fields_are_those_of_the_custom_resource(kind: str) -> None:
    content = manifest(kind)
    assert content["apiVersion"] == "ray.io/v1"
    check_fields(content["spec"], FIELDS[kind], kind)
    wrong = copy.deepcopy(content["spec"])
    wrong["rayVersoin"] = "2.60.0"
    with pytest.raises(AssertionError, match="no field rayVersoin"):
        check_fields(wrong, FIELDS[kind], kind)


def without_other_fields(schema: Any) -> Any:
    """Return an OpenAPI schema that refuses unknown fields, which Kubernetes would drop."""
    if isinstance(schema, list):
        return [without_other_fields(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: without_other_fields(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict):
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        closed.setdefault("additionalProperties", open_ended)
    return closed


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder of KubeRay's schemas")
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_manifests_are_valid_by_the_schemas_of_kuberay(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert CRDS is not None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # half a minute faster
    definition = yaml.load(
        (Path(CRDS) / f"ray.io_{kind.lower()}s.yaml").read_text(),
        Loader=loader,
    )
    content = manifest(kind)
    version = content["apiVersion"].removeprefix("ray.io/")
    (schema,) = [
        item["schema"]["openAPIV3Schema"]
        for item in definition["spec"]["versions"]
        if item["name"] == version
    ]
    validator = jsonschema.Draft202012Validator(without_other_fields(schema))
    faults = [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(content)]
    assert faults == []
    for wrong in ({"rayVersoin": "2.60.0"}, {"suspend": "no", "rayClusterConfig": []}):
        changed = {**content, "spec": {**content["spec"], **wrong}}
        assert list(validator.iter_errors(changed)), wrong


@pytest.mark.parametrize("spec", cluster_specs(), ids=["RayCluster", "RayService"])
def test_every_pod_runs_the_image_with_roms_and_storage(spec: dict[str, Any]) -> None:
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        is_gpu = "GPU" in group["resources"]
        assert container["image"] == ("IMAGE:cuda" if is_gpu else "IMAGE:cpu")
        assert container["resources"]["limits"].get("nvidia.com/gpu") == group["resources"].get(
            "GPU"
        )
        assert container["args"][0].endswith("python -m envs.roms")
        assert [item["name"] for item in container["env"]] == [FOLDER_VARIABLE]
        assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    groups = {item["groupName"] for item in spec["workerGroupSpecs"]}
    labels = spec["headGroupSpec"]["labels"]
    assert set(labels) == {LABEL + group for group in groups} <= {LABEL + kind for kind in KINDS}
    assert not any("labels" in group for group in spec["workerGroupSpecs"])


def test_requests_of_processes_start_pods_of_their_kind() -> None:
    """Run what Ray's autoscaler makes of the manifest through its scheduler."""
    content = manifest("RayCluster")
    content["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(content)
    types = config["available_node_types"]
    assert types["headgroup"]["labels"] == {
        LABEL + kind: "gpu" if types[kind]["resources"].get("GPU") else "cpu" for kind in KINDS
    }
    summary = NodeAvailabilitySummary({})
    score = partial(_default_utilization_scorer, node_availability_summary=summary)
    for request, count, expected in (
        ({"CPU": 1, "rollout": SHARE}, 40, {"rollout": 3}),
        ({"CPU": 1, "GPU": 1, "serve": SHARE}, 3, {"serve": 3}),
        ({"GPU": 1, "train": SHARE}, 16, {"train": 2}),
    ):
        asked = [request] * count
        started, unmet = get_nodes_for(types, {"headgroup": 1}, "headgroup", 66, asked, score)
        assert (started, unmet) == (expected, [])


def test_the_job_is_a_command_of_the_cluster() -> None:
    spec = manifest("RayJob")["spec"]
    name = manifest("RayCluster")["metadata"]["name"]
    assert spec["clusterSelector"] == {"ray.io/cluster": name}
    program, *words = spec["entrypoint"].split()
    assert program == "autoexplore"
    parse(words)


def test_the_service_is_an_app_of_this_package() -> None:
    content = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    (app,) = ServeDeploySchema(**content).applications
    module, _, name = app.import_path.partition(":")
    assert callable(getattr(import_module(module), name))
    settings = {name: value for name, value in app.args.items() if name != "model"}
    assert ServeConfig(**settings).app_name == app.name == APP_NAME
