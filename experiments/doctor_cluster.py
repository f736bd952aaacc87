"""What a cluster is missing: in its file, before `ray up`, and on its machines, once they run."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from envs.cluster import KINDS, machines
from experiments.doctor import Finding

TOKEN = Path("~/.ray/auth_token")
OPEN_PORTS = ("--dashboard-host=0.0.0.0", "--dashboard-host 0.0.0.0")
TO_FILL_IN = "FILE_SYSTEM"


def file_checks(path: Path) -> list[Callable[[], Finding]]:
    """Checks of a cluster's file and of what `ray up` needs on this machine; none of them uses the network."""
    return [partial(check, path) for check in (schema, storage, token, closed, cloud_access)]


def schema(path: Path) -> Finding:
    """Ray's own check of the file: its schema, and that every node type names resources."""
    import logging

    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        prepared = prepare_config(_read(path))
        validate_config(prepared)
    except Exception as error:  # whatever Ray's check stumbles over is a fault of the file
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Finding("cluster file", str(path), f"Ray refuses it: {lines[0]}")
    kinds = prepared["available_node_types"]
    return Finding("cluster file", f"{path}: {', '.join(kinds)}; at most {prepared['max_workers']} machines")


def storage(path: Path) -> Finding:
    """The shared file system is filled in."""
    text = str(_read(path).get("initialization_commands", ""))
    if f"{TO_FILL_IN}." in text:
        return Finding(
            "shared storage", "no file system", f"put your EFS file system's id in place of {TO_FILL_IN} in {path}"
        )
    found = "mounted on every machine" if "mount" in text else "nothing is mounted"
    return Finding("shared storage", found, "" if "mount" in text else "runs must lie where every machine sees them")


def token(path: Path) -> Finding:
    """The token is on this machine, for nobody else to read, mounted, and asked for by every `ray start`."""
    config = _read(path)
    here = TOKEN.expanduser()
    starts = [line for kind in ("head", "worker") for line in config.get(f"{kind}_start_ray_commands", [])]
    if str(TOKEN) not in config.get("file_mounts", {}).values():
        return Finding("token", "not mounted", f"file_mounts must carry {TOKEN} to the machines")
    if any("ray start" in line and "RAY_AUTH_MODE=token" not in line for line in starts) or not starts:
        return Finding("token", "not asked for", "start Ray with RAY_AUTH_MODE=token on head and workers")
    if not here.is_file():
        return Finding("token", f"no {TOKEN}", "ray get-auth-token --generate")
    if here.stat().st_mode & 0o077:
        return Finding("token", f"{TOKEN} can be read by others", f"chmod 600 {TOKEN}")
    return Finding("token", f"{TOKEN}, mounted on every machine")


def closed(path: Path) -> Finding:
    """Nothing but SSH comes in: no further rule in the security group, no dashboard on all interfaces."""
    config = _read(path)
    provider = config.get("provider", {})
    rules = provider.get("security_group", {}).get("IpPermissions", [])
    others = [rule for rule in rules if rule.get("FromPort") != 22 or rule.get("ToPort") != 22]
    if others:
        return Finding("closed", f"{len(others)} open ports beside SSH", "remove them: the dashboard comes through SSH")
    text = " ".join(config.get("head_start_ray_commands", []))
    if any(flag in text for flag in OPEN_PORTS):
        return Finding("closed", "the dashboard listens on all interfaces", "--dashboard-host=127.0.0.1, and a tunnel")
    return Finding("closed", "SSH alone comes in")


def cloud_access(path: Path) -> Finding:
    """The provider's library and its keys are on this machine."""
    import importlib.util

    kind = _read(path).get("provider", {}).get("type")
    if kind != "aws":
        return Finding("cloud access", f"provider {kind}: not checked here")
    if importlib.util.find_spec("boto3") is None:
        return Finding("cloud access", "boto3 is missing", "pip install boto3, or the extra dev")
    profile = Path("~/.aws/credentials").expanduser()
    found = "AWS_ACCESS_KEY_ID" in os.environ or "AWS_PROFILE" in os.environ or profile.exists()
    return Finding(
        "cloud access",
        "boto3 and AWS keys" if found else "no AWS keys",
        "" if found else "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )


def nodes(out: Path) -> list[Finding]:
    """What the machines of the Ray cluster that this process is connected to have, asked on each of them.

    `out` must be seen by all of them: a file is written there and read on every machine.
    """
    import secrets

    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    sums: dict[str, float] = ray.cluster_resources()
    what = ", ".join(f"{sums.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    kinds = [kind for kind in KINDS if machines(kind).resources]
    where = f"processes go to machines of their kind: {', '.join(kinds)}" if kinds else "processes run anywhere"
    findings = [Finding("machines", f"{len(alive)}: {what}; {where}")]
    out.mkdir(parents=True, exist_ok=True)
    mark, text = out.resolve() / f".doctor-{os.getpid()}", secrets.token_hex(8)
    mark.write_text(text)
    try:
        look = ray.remote(num_cpus=0)(look_around)
        asked = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(mark)
            )
            for node in alive
        ]
        answers = ray.get(asked, timeout=120)
    finally:
        mark.unlink()
    names = [node["NodeManagerHostname"] for node in alive]
    blind = [name for name, seen in zip(names, answers, strict=True) if seen["text"] != text]
    findings.append(
        Finding(
            "shared storage",
            f"{out} is {'not ' if blind else ''}the same on every machine",
            f"mount it on {', '.join(blind)}" if blind else "",
        )
    )
    ours = look_around(str(mark))
    other = [
        f"{name} has {package} {seen[package]}, not {ours[package]}"
        for name, seen in zip(names, answers, strict=True)
        for package in ("autoexplore", "torch", "ray", "stable-retro", "games")
        if seen[package] != ours[package]
    ]
    findings.append(
        Finding("same software", "; ".join(other) or "on every machine", "run the set-up again there" if other else "")
    )
    return findings


def look_around(mark: str) -> dict[str, Any]:
    """On one machine: what a file holds, versions of packages, and how many games can be played."""
    from importlib import metadata

    from envs import catalog

    place = Path(mark)
    seen: dict[str, Any] = {"text": place.read_text() if place.exists() else None}
    for package in ("autoexplore", "torch", "ray", "stable-retro"):
        try:
            seen[package] = metadata.version(package).split("+")[0]  # CPU and CUDA builds of torch are the same to us
        except metadata.PackageNotFoundError:
            seen[package] = None
    return {**seen, "games": len(catalog.games(playable=True))}


def _read(path: Path) -> dict[str, Any]:
    """A cluster's file. Raises InputError where it is none."""
    import yaml

    from envs.errors import InputError

    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--cluster {path}: cannot be read ({error}): give a Ray cluster file") from None
    if not isinstance(config, dict):
        raise InputError(f"--cluster {path}: holds no settings: give a Ray cluster file, e.g. cluster.yaml")
    return config
