"""The Ray session of a process: its start, its environment and the kinds of nodes."""

import json
import logging
import os
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from envs.utils.errors import InputError

LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 400_000_000
START_ATTEMPTS = 3
"""Attempts to start a local Ray, which gives up after 30 s: on a busy machine the next succeeds."""
KINDS = ("rollout", "serve", "train")
"""Nodes that play; that serve the world model or train the agent; that train the world model."""
LABEL = "autoexplore/"
"""Prefix of the head's labels. LABEL + kind is "gpu" or "cpu" if the cluster can have such nodes.
"""
DEVICE_VARIABLE = "AUTOEXPLORE_DEVICE"
"""Environment variable that is "cpu" under `--device cpu`: no process requests a GPU then."""
JOIN_SECONDS = 60.0
"""Time in which a machine that is started by hand may join a cluster that has none of its kind."""
JOIN_VARIABLE = "AUTOEXPLORE_JOIN_SECONDS"
"""Environment variable with another time, for machines that start slowly."""
SHARE = 0.001
"""Amount of the resource named like a kind that each process requests, only to place it."""


@dataclass(frozen=True)
class NodeResources:
    """Resources that place a process on nodes of its kind."""

    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources; empty if any node will do."""
    gpus: float = 0.0
    """GPUs of each process, which Ray gives only to those that request them: 1 if these nodes have
    GPUs. 0.5 of the only GPU of a cluster without labels, which reward and learner share."""


def node_resources(kind: str) -> NodeResources:
    """Return the resources for nodes of one of KINDS, or of any node if no label names the kind.

    An autoscaling cluster may have no node of a kind yet. The head is therefore labelled with the
    kinds, and each node of a kind has a resource of that name (see cluster.yaml). Without the
    label, as on a workstation, training and serving use the GPUs that there are.

    Raises: InputError if a label names the kind, the cluster has no such node, no autoscaler starts
    one, and none joins in time (see JOIN_SECONDS). A request would wait for ever.
    """
    import ray

    hidden = os.environ.get(DEVICE_VARIABLE) == "cpu"
    labels = _kind_labels()
    if kind in labels:
        _await_kind(kind)
        return NodeResources({kind: SHARE}, float("gpu" in labels[kind] and not hidden))
    gpus = 0.0 if hidden else ray.cluster_resources().get("GPU", 0.0)
    if kind == "rollout" or not gpus:
        return NodeResources()
    return NodeResources(gpus=0.5 if kind == "serve" and gpus < 2 else 1.0)


def placed_kinds() -> dict[str, int]:
    """Return the kinds that have nodes of their own, with the number of these; {} without labels.

    A number is 0 if the cluster has no such node now.
    """
    labels = _kind_labels()
    return {kind: len(_nodes_of(kind)) for kind in KINDS if kind in labels}


def cluster_autoscales() -> bool:
    """Return True if an autoscaler starts nodes of this cluster: `ray up`'s or KubeRay's."""
    import ray
    from ray.util import client

    if client.ray.is_connected():  # a ray:// address: only processes of the cluster can ask it
        return bool(ray.get(ray.remote(num_cpus=0)(_has_autoscaler).remote()))
    return _has_autoscaler()


def _has_autoscaler() -> bool:
    """Return True if the head reports node types: those of an autoscaler have names."""
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    gcs = internal_kv_get_gcs_client()
    # Ray's second autoscaler and KubeRay give each node the name of its type.
    if any(node.ray_node_type_name for node in get_cluster_resource_state(gcs).node_states):
        return True
    # The first one reports names. It also runs where nodes are started by hand, and numbers them.
    status = json.loads(gcs.internal_kv_get(b"__autoscaling_status", None) or "{}")
    names = (status.get("autoscaler_report") or {}).get("active_nodes", {})
    return any(not name.startswith("node_") for name in names)


def _kind_labels() -> dict[str, set[str]]:
    """Return the kinds that labels of the cluster name, with the values of the labels."""
    import ray

    labels: dict[str, set[str]] = {}
    for node in ray.nodes():
        for name, value in node["Labels"].items():
            if node["Alive"] and name.startswith(LABEL):
                labels.setdefault(name.removeprefix(LABEL), set()).add(value)
    return labels


def _nodes_of(kind: str) -> list[dict[str, Any]]:
    """Return the nodes of a kind that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]


def _await_kind(kind: str) -> None:
    """Wait until a node of a kind joins, unless an autoscaler starts it when it is requested."""
    seconds = _join_seconds()
    deadline = time.monotonic() + seconds
    while not _nodes_of(kind):
        if cluster_autoscales():
            return
        if time.monotonic() > deadline:
            there = ", ".join(name for name, count in placed_kinds().items() if count)
            raise InputError(
                f"the cluster has no machine of kind {kind} (it has: {there or 'none'}), and none "
                f"joined within {seconds:g} s ({JOIN_VARIABLE}): start one with `ray start "
                f"--resources '{{\"{kind}\": 8}}'`, or leave the head's label {LABEL}{kind} out to "
                "use any"
            )
        time.sleep(min(1.0, seconds / 10))


def _join_seconds() -> float:
    """Return the time in which a machine may join. Raises: InputError for an invalid setting."""
    text = os.environ.get(JOIN_VARIABLE, "")
    try:
        seconds = float(text or JOIN_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{JOIN_VARIABLE} {text!r}: must be a number of seconds, 0 or more")
    return seconds


@contextmanager
def ray_session(
    address: str | None = None, cpus: int = 0, store_bytes: int = OBJECT_STORE_BYTES
) -> Iterator[None]:
    """Hold one Ray session for the block or decorated function; reuse a connected one.

    `address` of a cluster defaults to RAY_ADDRESS, and without it to a local session, which counts
    at least `cpus` CPUs and has an object store of `store_bytes`. It may count more CPUs than the
    machine has: emulators, a learner and a scorer that wait for each other share two cores well,
    and Ray would otherwise refuse to start them.

    Raises: InputError if no cluster answers.
    """
    if ray_is_connected():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    prepare_ray_environment(local=address == "local")
    import ray

    quiet_ray()
    try:
        if address == "local":
            _start_ray(max(LOGICAL_CPUS, cpus, os.cpu_count() or 1), store_bytes)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        if address != "local" and isinstance(error, ConnectionError | ValueError):
            raise InputError(
                f"--ray-address {address}: no Ray cluster answers there ({error}); start one or "
                "leave it out"
            ) from None
        raise
    try:
        yield
    finally:
        # Ray reports calls to Serve's controller that the shutdown cuts off as errors.
        with captured_output(drop="Task ServeController."):
            if "ray.serve" in sys.modules and (address == "local" or not _serve_has_apps()):
                from ray import serve

                serve.shutdown()  # its controller would otherwise outlive the command
            ray.shutdown()


def ray_is_connected() -> bool:
    """Return True if this process is connected to Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _serve_has_apps() -> bool:
    """Return True if Serve runs an app on the cluster, which another command has started."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        return bool(serve.status().applications)
    except RayError:  # Serve or the cluster is gone
        return False


def _start_ray(cpus: int, store_bytes: int) -> None:
    """Start Ray in this process, again if it takes longer than Ray's fixed limit.

    Raises InputError if that is too short START_ATTEMPTS times.
    """
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with captured_output(drop="Set ray log level"):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=store_bytes,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            return
        except Exception as error:
            if "timed out during startup" not in str(error):  # a bare Exception
                raise
            if attempt == START_ATTEMPTS:
                raise InputError(
                    f"Ray did not start within 30 s in {attempt} attempts: the machine is too "
                    "busy; try again"
                ) from error


def prepare_ray_environment(*, local: bool) -> None:
    """Set the variables that Ray reads on import and at its start; those of the user stay.

    Ray's core ports listen on all interfaces, so every session requires a token (CVE-2023-48022). A
    local session gets a new one, which exists only in the environment of its processes: Ray would
    write one to the home folder, readable by all.
    """
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        # The memory monitor would kill workers for the memory of other programs.
        "RAY_memory_monitor_refresh_ms": "0",
        # Ray's C++ part logs RLlib's restartable actors as errors. `info` shows everything.
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    if "ray" not in sys.modules:  # Ray reads the mode only when it is imported
        values["RAY_AUTH_MODE"] = "token"
    if local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        values["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextmanager
def captured_output(drop: str) -> Iterator[None]:
    """Hold back what Python and C++ print, then print it on stderr without lines with `drop`."""
    sys.stdout.flush()
    sys.stderr.flush()
    copies = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with tempfile.TemporaryFile() as held:
        for descriptor in copies:
            os.dup2(held.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in copies.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            held.seek(0)
            for line in held.read().splitlines(keepends=True):
                if drop.encode() not in line:
                    os.write(2, line)


def quiet_ray() -> None:
    """Show only errors of Ray's own log messages."""
    for name in ("ray", "ray.serve", "ray.train", "ray.tune", "ray.rllib", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # RLlib hands torch tensors to Gymnasium's spaces, which take them as well.
    warnings.filterwarnings("ignore", message=".*Casting input x to numpy array")
