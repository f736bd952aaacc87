"""Check the installation and suggest fixes."""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from envs import catalog
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import (
    OBJECT_STORE_BYTES,
    cluster_autoscales,
    placed_kinds,
    ray_session,
)
from experiments.arguments import RayArgs, default_threads, existing_parent, free_bytes
from experiments.diagnosis.aws import check_cluster
from experiments.diagnosis.finding import Finding

GIGABYTE = 1e9
SHOWN_PACKAGES = ("torch", "ray", "stable-retro", "gymnasium")
COMPARED_PACKAGES = ("autoexplore", "torch", "ray", "stable-retro")
"""Packages whose version must be the same on every machine of a cluster."""
NODE_TIMEOUT = 120
"""Seconds within which every machine of a cluster must answer."""
Machines = list[tuple[str, dict[str, Any]]]
"""Host name and `inspect_machine` of each machine of a cluster."""


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Check Python, packages, ROMs, memory, disk and Ray, and suggest fixes. With --ray-address,
    also check that every machine of that cluster sees --out and has the same software; with
    --cluster, that AWS can start the machines of a cluster file."""

    out: Path = Path("runs")
    """Folder of the runs."""
    start_ray: bool = True
    """Also start and stop a local Ray session, which takes a few seconds."""
    cluster: Path | None = None
    """Cluster file for AWS, e.g. cluster.yaml: check it, and ask with boto3 for quotas, rights,
    security group, file system and the head's role. Nothing is started."""


def run(args: Args) -> None:
    """Print the finding of each check. Raises InputError if something necessary is missing."""
    failed = []
    for finding in findings(args):
        mark = "[green]ok  [/]"
        if finding.fix:
            mark = "[red]no  [/]" if finding.serious else "[yellow]low [/]"
        console.print(f"{mark} {finding.what:<15} {finding.result}")
        if finding.fix:
            console.print(f"     {'':<15} -> {finding.fix}")
            if finding.serious:
                failed.append(finding.what)
    if failed:
        raise InputError(f"{len(failed)} checks failed: {', '.join(failed)}")
    console.print("all checks passed")


def findings(args: Args) -> Iterator[Finding]:
    """Yield the findings one by one, ordered so that a fault in one explains the next."""
    checks: list[Callable[[], Finding]] = [python, packages, roms, cores, memory, shared_memory]
    checks += [partial(disk, args.out), partial(writable, args.out)]
    if args.start_ray and args.ray_address is None:
        checks.append(ray_starts)
    for check in checks:
        yield check()
    if args.ray_address is not None:
        with ray_session(args.ray_address):
            yield from nodes(args.out)
    if args.cluster is not None:
        yield from check_cluster(args.cluster)


def python() -> Finding:
    """Check the version of Python."""
    fix = "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer: make PYTHON=python3.11"
    return Finding("Python", f"{sys.version.split()[0]} at {sys.executable}", fix)


def packages() -> Finding:
    """Check that every requirement of pyproject.toml is installed in a matching version."""
    from packaging.requirements import Requirement

    faults, shown = [], []
    for line in metadata.requires("autoexplore") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = package_version(requirement.name)
        if version is None:
            faults.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} {version} does not fit {requirement.specifier}")
        if requirement.name in SHOWN_PACKAGES:
            shown.append(f"{requirement.name} {version}")
    fix = "make setup (or pip install -r requirements.lock)" if faults else ""
    return Finding("packages", "; ".join(faults) or ", ".join(shown), fix)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def roms() -> Finding:
    """Check that at least two games have a ROM; stable-retro itself contains one."""
    playable, games = len(catalog.games(playable=True)), len(catalog.integrations())
    fix = "" if playable > 1 else "python -m envs.roms imports the 32 Atari games of ale-py"
    return Finding("ROMs", f"{playable} of {games} games can be played", fix)


def cores() -> Finding:
    """Check the number of CPU cores."""
    count = default_threads()
    fix = "" if count >= 2 else "one core works, at half the speed"
    return Finding("cores", str(count), fix, serious=False)


def memory() -> Finding:
    """Check the available memory."""
    free = available_bytes() / GIGABYTE
    fix = "" if free >= 6 else "the demo needs about 6 GB: close programs, or use --preset debug"
    return Finding("memory", f"{free:.1f} GB available", fix, serious=free < 3)


def available_bytes() -> int:
    """Return the bytes of available memory as estimated by Linux, elsewhere of all memory."""
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_memory() -> Finding:
    """Check /dev/shm, which holds Ray's objects; without it they are slow files in /tmp."""
    mount = Path("/dev/shm")
    if not mount.exists():
        return Finding("shared memory", "no /dev/shm: Ray uses files in /tmp, which is slower")
    free = free_bytes(mount)
    fix = "" if free > OBJECT_STORE_BYTES else "in Docker: docker run --shm-size=1g"
    result = f"{free / GIGABYTE:.1f} GB free in /dev/shm"
    return Finding("shared memory", result, fix, serious=False)


def disk(out: Path) -> Finding:
    """Check the free disk space."""
    free = free_bytes(out.resolve()) / GIGABYTE
    fix = "" if free >= 5 else "free some space: the demo and Ray write about 2 GB each"
    return Finding("disk", f"{free:.0f} GB free for {out}", fix, serious=free < 2)


def writable(out: Path) -> Finding:
    """Check that the folder of the runs can be created."""
    folder = existing_parent(out.resolve())
    fix = f"no write permission: give another --out than {out}"
    return Finding("writable", str(folder), "" if os.access(folder, os.W_OK) else fix)


def ray_starts() -> Finding:
    """Check that a local Ray session starts."""
    started = time.monotonic()
    with ray_session("local"):
        seconds = time.monotonic() - started
    return Finding("Ray", f"a local session started in {seconds:.1f} s")


def nodes(out: Path) -> list[Finding]:
    """Check every machine of the connected Ray cluster: its kind, storage and software.

    All machines must see `out`: a file is written there and read on each of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    out.mkdir(parents=True, exist_ok=True)
    mark, text = out.resolve() / f".doctor-{os.getpid()}", secrets.token_hex(8)
    mark.write_text(text)
    try:
        task = ray.remote(num_cpus=0)(inspect_machine)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
        tasks = [task.options(scheduling_strategy=place).remote(str(mark)) for place in places]
        answers = ray.get(tasks, timeout=NODE_TIMEOUT)
    finally:
        mark.unlink()
    names = [node["NodeManagerHostname"] for node in alive]
    machines = list(zip(names, answers, strict=True))
    return [machine_kinds(len(alive)), shared_storage(out, text, machines), same_software(machines)]


def machine_kinds(count: int) -> Finding:
    """Report the machines of the cluster and the kinds that processes are placed on."""
    import ray

    total: dict[str, float] = ray.cluster_resources()
    resources = ", ".join(f"{total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    kinds = placed_kinds()
    where = f"on machines of their kind: {', '.join(kinds)}" if kinds else "anywhere"
    missing = [kind for kind, machines in kinds.items() if not machines]
    fix = ""
    if missing and not cluster_autoscales():
        fix = (
            f"start machines with the resource {' and '.join(missing)}, or leave the head's label "
            "out"
        )
    return Finding("machines", f"{count}: {resources}; processes run {where}", fix)


def shared_storage(out: Path, text: str, machines: Machines) -> Finding:
    """Check that every machine read the text that was written to `out`."""
    missing = [name for name, answer in machines if answer["text"] != text]
    result = f"{out} is {'not ' if missing else ''}the same on every machine"
    return Finding("shared storage", result, f"mount it on {', '.join(missing)}" if missing else "")


def same_software(machines: Machines) -> Finding:
    """Check that every machine has the package versions and games of this one."""
    ours = inspect_machine("")
    differences = [
        f"{name} has {what} {answer[what]}, not {ours[what]}"
        for name, answer in machines
        for what in (*COMPARED_PACKAGES, "games")
        if answer[what] != ours[what]
    ]
    fix = "run the set-up again there" if differences else ""
    return Finding("same software", "; ".join(differences) or "on every machine", fix)


def inspect_machine(file: str) -> dict[str, Any]:
    """Return the text of a file, package versions and the number of playable games here."""
    answer: dict[str, Any] = {"text": Path(file).read_text() if Path(file).is_file() else None}
    for package in COMPARED_PACKAGES:
        version = package_version(package)
        answer[package] = version and version.split("+")[0]
    return {**answer, "games": len(catalog.games(playable=True))}
