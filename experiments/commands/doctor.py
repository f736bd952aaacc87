"""Check the installation and suggest fixes."""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from envs import catalog
from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.ray_session import KINDS, OBJECT_STORE_BYTES, node_resources, ray_session
from experiments.arguments import default_threads, free_bytes

GIGABYTE = 1e9


@dataclass(frozen=True)
class Args:
    """Check Python, packages, ROMs, memory, disk and Ray, and suggest fixes."""

    out: Path = Path("runs")
    """Folder of the runs."""
    start_ray: bool = True
    """Also start and stop a local Ray session, which takes a few seconds."""
    ray_address: str | None = None
    """Also check that every machine of this running cluster sees --out and has the same software:
    auto, or ray://head:10001."""


@dataclass(frozen=True)
class Finding:
    """Result of one check. fix: empty if all is well."""

    what: str
    found: str
    fix: str = ""
    serious: bool = True


def run(args: Args) -> None:
    """Print the finding of each check. Raises InputError if something necessary is missing."""
    serious = []
    for finding in findings(args):
        mark = "[green]ok  [/]"
        if finding.fix:
            mark = "[red]no  [/]" if finding.serious else "[yellow]low [/]"
        console.print(f"{mark} {finding.what:<15} {finding.found}")
        if finding.fix:
            console.print(f"     {'':<15} -> {finding.fix}")
            if finding.serious:
                serious.append(finding)
    if serious:
        raise InputError(
            f"{len(serious)} checks failed: {', '.join(finding.what for finding in serious)}"
        )
    console.print("all checks passed")


def findings(args: Args) -> Iterator[Finding]:
    """Yield the finding of each check as soon as it is done."""
    for check in checks(args):
        yield check()
    if args.ray_address is not None:
        with ray_session(args.ray_address):
            yield from nodes(args.out)


def checks(args: Args) -> list[Callable[[], Finding]]:
    """Return the checks in the order in which a fault in one explains the next."""
    listed = [
        python,
        packages,
        roms,
        cores,
        memory,
        shared_memory,
        lambda: disk(args.out),
        writable_for(args.out),
    ]
    return [*listed, ray_starts] if args.start_ray and args.ray_address is None else listed


def python() -> Finding:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return Finding(
        "Python",
        found,
        "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer: make PYTHON=python3.11",
    )


def packages() -> Finding:
    """Check that every requirement of pyproject.toml is installed in a matching version."""
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
        return Finding(
            "packages", "; ".join(wrong), "make setup (or pip install -r requirements.lock)"
        )
    return Finding("packages", ", ".join(shown))


def roms() -> Finding:
    playable = catalog.games(playable=True)
    found = f"{len(playable)} of {len(catalog.integrations())} games can be played"
    return Finding(
        "ROMs",
        found,
        "" if len(playable) > 1 else "python -m envs.roms imports the 32 Atari games of ale-py",
    )


def cores() -> Finding:
    count = default_threads()
    return Finding(
        "cores",
        str(count),
        "" if count >= 2 else "one core works, at half the speed",
        serious=False,
    )


def memory() -> Finding:
    free = available_bytes() / GIGABYTE
    fix = (
        ""
        if free >= 6
        else "the demo needs about 6 GB: close other programs, or use --preset debug"
    )
    return Finding("memory", f"{free:.1f} GB available", fix, serious=free < 3)


def available_bytes() -> int:
    """Return the memory that programs can still get: Linux's estimate, elsewhere the total."""
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_memory() -> Finding:
    """Check /dev/shm, which Ray's objects need: without it they are slow files under /tmp."""
    mount = Path("/dev/shm")
    if not mount.exists():
        return Finding("shared memory", "no /dev/shm: Ray uses files under /tmp, which is slower")
    free = free_bytes(mount)
    fix = "" if free > OBJECT_STORE_BYTES else "in Docker: docker run --shm-size=1g"
    return Finding(
        "shared memory", f"{free / GIGABYTE:.1f} GB free in /dev/shm", fix, serious=False
    )


def disk(out: Path) -> Finding:
    free = free_bytes(out.resolve()) / GIGABYTE
    fix = (
        ""
        if free >= 5
        else "the demo writes less than 2 GB, Ray needs the same under /tmp: free some space"
    )
    return Finding("disk", f"{free:.0f} GB free for {out}", fix, serious=free < 2)


def writable_for(out: Path) -> Callable[[], Finding]:
    def writable() -> Finding:
        folder = out.resolve()
        while not folder.exists():
            folder = folder.parent
        fits = os.access(folder, os.W_OK)
        return Finding(
            "writable",
            str(folder),
            "" if fits else f"no right to write there: give another --out than {out}",
        )

    return writable


def ray_starts() -> Finding:
    started = time.monotonic()
    with ray_session("local"):
        seconds = time.monotonic() - started
    return Finding("Ray", f"a local session started in {seconds:.1f} s")


def nodes(out: Path) -> list[Finding]:
    """Check every machine of the connected Ray cluster.

    All of them must see `out`: a file is written there and read on every machine.
    """
    # Ray is heavy, and doctor answers at once without --ray-address.
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    sums: dict[str, float] = ray.cluster_resources()
    what = ", ".join(f"{sums.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    kinds = [kind for kind in KINDS if node_resources(kind).resources]
    where = (
        f"processes go to machines of their kind: {', '.join(kinds)}"
        if kinds
        else "processes run anywhere"
    )
    findings = [Finding("machines", f"{len(alive)}: {what}; {where}")]
    out.mkdir(parents=True, exist_ok=True)
    mark, text = out.resolve() / f".doctor-{os.getpid()}", secrets.token_hex(8)
    mark.write_text(text)
    try:
        look = ray.remote(num_cpus=0)(look_around)
        asked = [
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(mark))
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
        Finding(
            "same software",
            "; ".join(other) or "on every machine",
            "run the set-up again there" if other else "",
        )
    )
    return findings


def look_around(mark: str) -> dict[str, Any]:
    """Return a file's text, package versions and the number of playable games on this machine."""
    file = Path(mark)
    seen: dict[str, Any] = {"text": file.read_text() if file.exists() else None}
    for package in ("autoexplore", "torch", "ray", "stable-retro"):
        try:
            seen[package] = metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            seen[package] = None
    return {**seen, "games": len(catalog.games(playable=True))}
