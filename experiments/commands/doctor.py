"""Check what the other commands need, and say how to mend what is missing."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from envs.utils.ray_session import KINDS, node_resources

GIGABYTE = 1e9
TOKEN = Path("~/.ray/auth_token")
OPEN_PORTS = ("--dashboard-host=0.0.0.0", "--dashboard-host 0.0.0.0")
TO_FILL_IN = "FILE_SYSTEM"


@dataclass(frozen=True)
class Args:
    """Check Python, packages, ROMs, memory, disk and Ray, and say how to mend what is missing."""

    out: Path = Path("runs")
    """Folder that runs will be written to."""
    start_ray: bool = True
    """Also start and stop a local Ray session, which takes a few seconds."""
    cluster: Path | None = None
    """Also check this cluster file, e.g. cluster.yaml, and what `ray up` needs of this machine."""
    ray_address: str | None = None
    """Also check every machine of this running cluster: that it sees --out and has the same software. auto, or
    ray://head:10001."""


@dataclass(frozen=True)
class Finding:
    """What one check found. mend: empty where all is well."""

    what: str
    found: str
    fix: str = ""
    serious: bool = True


def run(args: Args) -> None:
    """Print every check's finding. Raises InputError when something is missing that commands cannot do without."""
    from envs.utils.errors import InputError
    from envs.utils.progress import console

    serious = []
    for finding in findings(args):
        mark = "[green]ok  [/]" if not finding.fix else "[red]no  [/]" if finding.serious else "[yellow]low [/]"
        console.print(f"{mark} {finding.what:<15} {finding.found}")
        if finding.fix:
            console.print(f"     {'':<15} -> {finding.fix}")
            if finding.serious:
                serious.append(finding)
    if serious:
        raise InputError(f"{len(serious)} of these must be mended: {', '.join(finding.what for finding in serious)}")
    console.print("everything that the commands need is here")


def findings(args: Args) -> Iterator[Finding]:
    """What the checks find, each as soon as it is done."""
    for check in checks(args):
        yield check()
    if args.ray_address is not None:
        from envs.utils.ray_session import ray_session

        with ray_session(args.ray_address):
            yield from nodes(args.out)


def checks(args: Args) -> list[Callable[[], Finding]]:
    """The checks in the order in which a fault in one explains the next."""
    listed = [python, packages, roms, cores, memory, shared_memory, lambda: disk(args.out), writable_for(args.out)]
    if args.cluster is not None:
        listed += file_checks(args.cluster)
    return [*listed, ray_starts] if args.start_ray and args.ray_address is None else listed


def python() -> Finding:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return Finding(
        "Python", found, "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer: make PYTHON=python3.11"
    )


def packages() -> Finding:
    """Every requirement of pyproject.toml that is always needed is installed in a version that fits."""
    from packaging.requirements import Requirement

    wrong, shown = [], []
    for line in metadata.requires("autoexplore") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} does not fit {requirement.specifier}")
        if requirement.name in ("torch", "ray", "stable-retro", "gymnasium"):
            shown.append(f"{requirement.name} {version}")
    if wrong:
        return Finding("packages", "; ".join(wrong), "make setup (or pip install -r requirements.lock)")
    return Finding("packages", ", ".join(shown))


def roms() -> Finding:
    from envs import catalog

    playable = catalog.games(playable=True)
    found = f"{len(playable)} of {len(catalog.integrations())} games can be played"
    return Finding(
        "ROMs", found, "" if len(playable) > 1 else "python -m envs.roms imports the 32 Atari games of ale-py"
    )


def cores() -> Finding:
    from experiments.arguments import default_threads

    count = default_threads()
    return Finding("cores", str(count), "" if count >= 2 else "one core works, at half the speed", serious=False)


def memory() -> Finding:
    free = available_bytes() / GIGABYTE
    fix = "" if free >= 6 else "the demo needs about 6 GB: close other programs, or use --preset debug"
    return Finding("memory", f"{free:.1f} GB available", fix, serious=free < 3)


def available_bytes() -> int:
    """Memory that programs can still get: Linux's own estimate, elsewhere all that is built in."""
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_memory() -> Finding:
    """Ray keeps its objects in /dev/shm; where that is small it falls back to slow files under /tmp."""
    from envs.utils.ray_session import OBJECT_STORE_BYTES
    from experiments.arguments import free_bytes

    parse_uri = Path("/dev/shm")
    if not parse_uri.exists():
        return Finding("shared memory", "no /dev/shm: Ray uses files under /tmp, which is slower")
    free = free_bytes(parse_uri)
    fix = "" if free > OBJECT_STORE_BYTES else "in Docker: docker run --shm-size=1g"
    return Finding("shared memory", f"{free / GIGABYTE:.1f} GB free in /dev/shm", fix, serious=False)


def disk(out: Path) -> Finding:
    from experiments.arguments import free_bytes

    free = free_bytes(out.resolve()) / GIGABYTE
    fix = "" if free >= 5 else "the demo writes less than 2 GB, Ray needs the same under /tmp: free some space"
    return Finding("disk", f"{free:.0f} GB free for {out}", fix, serious=free < 2)


def writable_for(out: Path) -> Callable[[], Finding]:
    def writable() -> Finding:
        parse_uri = out.resolve()
        while not parse_uri.exists():
            parse_uri = parse_uri.parent
        fits = os.access(parse_uri, os.W_OK)
        return Finding(
            "writable", str(parse_uri), "" if fits else f"no right to write there: give another --out than {out}"
        )

    return writable


def ray_starts() -> Finding:
    import time

    from envs.utils.ray_session import ray_session

    started = time.monotonic()
    with ray_session("local"):
        seconds = time.monotonic() - started
    return Finding("Ray", f"a local session started in {seconds:.1f} s")


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
    kinds = [kind for kind in KINDS if node_resources(kind).resources]
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

    parse_uri = Path(mark)
    seen: dict[str, Any] = {"text": parse_uri.read_text() if parse_uri.exists() else None}
    for package in ("autoexplore", "torch", "ray", "stable-retro"):
        try:
            seen[package] = metadata.version(package).split("+")[0]  # CPU and CUDA builds of torch are the same to us
        except metadata.PackageNotFoundError:
            seen[package] = None
    return {**seen, "games": len(catalog.games(playable=True))}


def _read(path: Path) -> dict[str, Any]:
    """A cluster's file. Raises InputError where it is none."""
    import yaml

    from envs.utils.errors import InputError

    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--cluster {path}: cannot be read ({error}): give a Ray cluster file") from None
    if not isinstance(config, dict):
        raise InputError(f"--cluster {path}: holds no settings: give a Ray cluster file, e.g. cluster.yaml")
    return config
