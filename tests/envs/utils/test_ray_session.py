"""Placement on a simulated cluster: nodes of each kind, and kinds promised by the head's labels."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from envs.episodes.dataset import EpisodeReader
from envs.utils import ray_session
from envs.utils.errors import InputError
from envs.utils.ray_session import (
    JOIN_VARIABLE,
    LABEL,
    SHARE,
    NodeResources,
    _start_ray,
    cluster_autoscales,
    node_resources,
)
from tests.fixtures.datasets import record

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, threading, time
from envs.utils.ray_session import LABEL, prepare_ray_environment, quiet_ray
prepare_ray_environment(local=True)
import ray
import torch
from ray.cluster_utils import Cluster
torch.set_num_threads(1)
quiet_ray()

from envs.utils.ray_session import node_resources
from envs.collect import collect
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from exploration.train import explore
from worldmodel.config import preset
from worldmodel.training.config import train_preset
from worldmodel.training.ray_train import _scaling
from worldmodel.training.train import TrainingRun, train

model, data, out = sys.argv[1:]
memory = {"object_store_memory": 100_000_000}
# The head has more CPUs than all other nodes, so anything without a placement would run there.
head = {"num_cpus": 16, "include_dashboard": False, **memory}
head["labels"] = {LABEL + "rollout": "cpu", LABEL + "serve": "cpu", LABEL + "train": "cpu"}
cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
kinds, seen, over = {cluster.head_node.node_id: "head"}, set(), threading.Event()

def look():
    "Note the actors that run and their nodes."
    while not over.is_set():
        for actor in ray._private.state.actors().values():
            if actor["State"] == "ALIVE":
                seen.add((actor["ActorClassName"].split(".")[-1], actor["Address"]["NodeID"]))
        time.sleep(0.1)

def add(kind, **more):
    kinds[cluster.add_node(num_cpus=4, resources={kind: 4}, **memory, **more).node_id] = kind

watching = threading.Thread(target=look, daemon=True)
watching.start()
result = {}
played = {"episodes": 2, "steps": 20, "workers": 2, "progress": False}
playing = threading.Thread(target=collect, args=(["Counting"], out + "/data"), kwargs=played)
playing.start()
time.sleep(3)
result["before"] = sorted({name for name, _ in seen})
add("rollout")
playing.join()
add("train")
settings = train_preset("tokenizer", "debug", iterations=1, batch_size=2, checkpoint_every=1)
run = TrainingRun("tokenizer", preset("debug"), settings, [data], out + "/tokenizer")
train(run, workers=1)
add("serve", labels={LABEL + "train": "gpu"})
scaling = _scaling(99)
result["with gpus"] = [node_resources("train").gpus, scaling.use_gpu, scaling.resources_per_worker]
config = explore_preset("debug", learners=1, epochs=1)
explore(["Counting"], model, out + "/explore", config=config, reward=RewardConfig())
over.set()
watching.join()
result["actors"] = sorted({(name, kinds[node]) for name, node in seen})
print("RESULT " + json.dumps(result))
from ray import serve
serve.shutdown()
ray.shutdown()
cluster.shutdown()
"""


def test_processes_run_on_nodes_of_their_kind(tiny_world: Path, tmp_path: Path) -> None:
    """Nothing with a kind of its own runs on the head, even before such a node exists."""
    data = record(tmp_path / "recorded", episodes=4, steps=40)
    command = [sys.executable, "-c", SCRIPT, str(tiny_world), data, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-5000:]
    result = json.loads(lines[0].removeprefix("RESULT "))
    assert result["before"] == []
    assert len(EpisodeReader(tmp_path / "data")) == 2
    assert result["with gpus"] == [1.0, True, {"GPU": 1.0, "train": SHARE}]
    homes: dict[str, set[str]] = {}
    for name, home in result["actors"]:
        homes.setdefault(name, set()).add(home)
    assert homes["CollectWorker"] == homes["GameRunner"] == {"rollout"}
    assert homes["RayTrainWorker"] == {"train"}
    (replica,) = [name for name in homes if name.startswith("ServeReplica")]
    assert homes[replica] == homes["_WrappedExecutable"] == {"serve"}, (
        "replicas and RLlib's learners"
    )


LIBRARY = """
import os, sys
from envs.collect import collect
collect(["Counting"], sys.argv[1], episodes=1, steps=20, workers=1, progress=False)
print("mode", os.environ["RAY_AUTH_MODE"], "token", len(os.environ["RAY_AUTH_TOKEN"]))
"""


def test_a_library_call_starts_ray_as_the_commands_do(tmp_path: Path) -> None:
    """It requires a token that is in no file: Ray would write one to the home folder."""
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIBRARY, str(data)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.stdout.splitlines()[-1:] == ["mode token token 64"], done.stderr
    assert len(EpisodeReader(data)) == 1
    assert not (home / ".ray").exists()


WORKSTATION = """
import os, sys
from envs.utils.ray_session import DEVICE_VARIABLE, node_resources
from envs.utils.ray_session import prepare_ray_environment, quiet_ray
prepare_ray_environment(local=True)
import ray
from exploration.reward.factory import RewardConfig
from worldmodel.training.ray_train import _scaling
quiet_ray()
ray.init(address="local", num_cpus=2, num_gpus=int(sys.argv[1]), include_dashboard=False,
         object_store_memory=100_000_000)
print(*(node_resources(kind).gpus for kind in ("rollout", "serve", "train")),
      *(_scaling(workers).use_gpu for workers in (1, 2)),
      *(RewardConfig(name).is_served() for name in ("token-entropy", "random-features")))
os.environ[DEVICE_VARIABLE] = "cpu"
print(*(node_resources(kind).gpus for kind in ("rollout", "serve", "train")))
"""


@pytest.mark.parametrize(
    ("gpus", "shares"),
    [
        (0, "0.0 0.0 0.0 False False False False"),
        (1, "0.0 0.5 1.0 True False True False"),
        (2, "0.0 1.0 1.0 True True True False"),
    ],
)
def test_a_cluster_without_labels_uses_the_gpus_it_has(gpus: int, shares: str) -> None:
    command = [sys.executable, "-c", WORKSTATION, str(gpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout.splitlines()[-2:] == [shares, "0.0 0.0 0.0"], done.stderr


LABELLED = """
import json, sys, threading, time
from envs.utils import ray_session as session
session.prepare_ray_environment(local=True)
import ray
from ray.cluster_utils import Cluster
from envs.collect import collect
from envs.utils.errors import InputError
from experiments.commands.doctor import machine_kinds
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from exploration.train import configure
from worldmodel.config import preset
from worldmodel.serve import ServeConfig, _bind
from worldmodel.training.ray_train import _scaling
session.quiet_ray()
session.JOIN_SECONDS = 0.5

head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
head["labels"] = {session.LABEL + "rollout": "cpu", session.LABEL + "serve": "cpu"}
cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
uses = {
    "collect": lambda: collect(["Counting"], sys.argv[1], episodes=1, steps=20, progress=False),
    "explore": lambda: configure(explore_preset("debug"), ["Counting"], None),
    "replicas": lambda: _bind(ServeConfig()),
    "reward": RewardConfig().is_served,
    "train": lambda: _scaling(2).resources_per_worker,
}
result = {}
for name, use in uses.items():
    try:
        result[name] = use()
    except InputError as error:
        result[name] = str(error)
result["doctor"] = machine_kinds(1).fix
session.JOIN_SECONDS = 60.0
waiting = threading.Thread(
    target=lambda: result.update(joined=session.node_resources("serve").resources)
)
waiting.start()
time.sleep(2)
result["before"] = result.get("joined")
cluster.add_node(num_cpus=1, resources={"serve": 1}, object_store_memory=100_000_000)
waiting.join()
session.JOIN_SECONDS = 0.0
try:
    session.node_resources("rollout")
except InputError as error:
    result["others"] = str(error)
print("RESULT " + json.dumps(result))
ray.shutdown()
cluster.shutdown()
"""


def test_a_kind_that_a_labelled_cluster_lacks_is_an_error_and_no_endless_wait(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", LABELLED, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-5000:]
    result = json.loads(lines[0].removeprefix("RESULT "))
    for use, kind in (
        ("collect", "rollout"),
        ("explore", "rollout"),
        ("replicas", "serve"),
        ("reward", "serve"),
    ):
        assert result[use].startswith(f"the cluster has no machine of kind {kind} (it has: none)")
        assert f"`ray start --resources '{{\"{kind}\": 8}}'`" in result[use]
        assert f"leave the head's label autoexplore/{kind} out" in result[use]
    assert result["train"] == {"CPU": 1.0}, "a kind whose processes run anywhere"
    assert "start machines with the resource rollout and serve" in result["doctor"]
    assert result["before"] is None
    assert result["joined"] == {"serve": SHARE}, "a machine that joined in time"
    assert "kind rollout (it has: serve)" in result["others"]


@pytest.mark.parametrize(
    ("names", "types", "expected"),
    [
        ([""], {"node_625cc6f7": 1}, False),
        ([""], {"head": 1}, True),
        (["headgroup"], None, True),
        ([""], None, False),
    ],
    ids=["by hand", "first autoscaler", "KubeRay", "head that has not reported yet"],
)
def test_an_autoscaler_is_known_by_its_types_of_nodes(
    names: list[str],
    types: dict[str, int] | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = types and json.dumps({"autoscaler_report": {"active_nodes": types}}).encode()
    gcs = SimpleNamespace(internal_kv_get=lambda key, namespace: status)
    states = [SimpleNamespace(ray_node_type_name=name) for name in names]
    state = SimpleNamespace(node_states=states)
    monkeypatch.setattr("ray.experimental.internal_kv.internal_kv_get_gcs_client", lambda: gcs)
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_resource_state", lambda client: state)
    assert cluster_autoscales() is expected


def test_nodes_that_an_autoscaler_will_start_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = {"Alive": True, "Labels": {f"{LABEL}serve": "gpu"}, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [head])
    monkeypatch.setattr(ray_session, "cluster_autoscales", lambda: True)
    monkeypatch.setattr(ray_session, "JOIN_SECONDS", 0.0)
    assert node_resources("serve") == NodeResources({"serve": SHARE}, 1.0)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert node_resources("train") == NodeResources(), "a kind without a label runs anywhere"


def test_the_time_to_join_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"Alive": True, "Labels": {f"{LABEL}serve": "cpu"}, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [head])
    monkeypatch.setattr(ray_session, "cluster_autoscales", lambda: False)
    monkeypatch.setenv(JOIN_VARIABLE, "0.2")
    with pytest.raises(InputError, match=rf"none joined within 0.2 s \({JOIN_VARIABLE}\)"):
        node_resources("serve")
    for text in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv(JOIN_VARIABLE, text)
        with pytest.raises(InputError, match=f"{JOIN_VARIABLE} '{text}': must be a number"):
            node_resources("serve")


@pytest.mark.parametrize(("failures", "starts"), [(2, True), (3, False)])
def test_a_ray_that_starts_too_slowly_is_started_again(
    failures: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[dict[str, object]] = []

    def init(**settings: object) -> None:
        attempts.append(settings)
        if len(attempts) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with nullcontext() if starts else pytest.raises(InputError, match="the machine is too busy"):
        _start_ray(8, 1_000_000)
    assert len(attempts) == 3
    assert all(settings == attempts[0] for settings in attempts)


TWO_COMMANDS = """
import subprocess, sys
from envs.utils.ray_session import prepare_ray_environment, ray_session
prepare_ray_environment(local=True)
import ray
from ray import serve
if len(sys.argv) > 1:  # the other command, which looks for the service
    with ray_session(sys.argv[1]):
        print(serve.get_app_handle("service").remote().result())
    sys.exit()

from ray.cluster_utils import Cluster
head = {"num_cpus": 8, "include_dashboard": False, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=head)

@serve.deployment
def answer():
    return "answer"

with ray_session(cluster.address):
    serve.start(proxy_location="Disabled")
    serve.run(answer.bind(), name="service", route_prefix=None)
    command = [sys.executable, "-c", sys.orig_argv[2], cluster.address]
    print(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    print(serve.get_app_handle("service").remote().result(timeout_s=60))
    serve.delete("service")
ray.init(cluster.address, log_to_driver=False)
print(ray.util.list_named_actors(all_namespaces=True))
ray.shutdown()
cluster.shutdown()
"""


def test_a_command_leaves_the_services_of_others_running() -> None:
    """Serve itself ends with the last service."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_COMMANDS],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.stdout.splitlines()[-3:] == ["answer", "answer", "[]"], done.stderr[-3000:]
