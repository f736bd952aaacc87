"""Check what the other commands need, and say how to mend what is missing."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIGABYTE = 1e9


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
    mend: str = ""
    serious: bool = True


def run(args: Args) -> None:
    """Print every check's finding. Raises InputError when something is missing that commands cannot do without."""
    from envs.errors import InputError
    from envs.runs import console

    serious = []
    for finding in findings(args):
        mark = "[green]ok  [/]" if not finding.mend else "[red]no  [/]" if finding.serious else "[yellow]low [/]"
        console.print(f"{mark} {finding.what:<15} {finding.found}")
        if finding.mend:
            console.print(f"     {'':<15} -> {finding.mend}")
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
        from envs.cluster import ray_session
        from experiments.doctor_cluster import nodes

        with ray_session(args.ray_address):
            yield from nodes(args.out)


def checks(args: Args) -> list[Callable[[], Finding]]:
    """The checks in the order in which a fault in one explains the next."""
    listed = [python, packages, roms, cores, memory, shared_memory, lambda: disk(args.out), writable_for(args.out)]
    if args.cluster is not None:
        from experiments.doctor_cluster import file_checks

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
    from experiments.common import default_threads

    count = default_threads()
    return Finding("cores", str(count), "" if count >= 2 else "one core works, at half the speed", serious=False)


def memory() -> Finding:
    free = available_bytes() / GIGABYTE
    mend = "" if free >= 6 else "the demo needs about 6 GB: close other programs, or use --preset debug"
    return Finding("memory", f"{free:.1f} GB available", mend, serious=free < 3)


def available_bytes() -> int:
    """Memory that programs can still get: Linux's own estimate, elsewhere all that is built in."""
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_memory() -> Finding:
    """Ray keeps its objects in /dev/shm; where that is small it falls back to slow files under /tmp."""
    from envs.cluster import OBJECT_STORE_BYTES
    from experiments.common import free_bytes

    place = Path("/dev/shm")
    if not place.exists():
        return Finding("shared memory", "no /dev/shm: Ray uses files under /tmp, which is slower")
    free = free_bytes(place)
    mend = "" if free > OBJECT_STORE_BYTES else "in Docker: docker run --shm-size=1g"
    return Finding("shared memory", f"{free / GIGABYTE:.1f} GB free in /dev/shm", mend, serious=False)


def disk(out: Path) -> Finding:
    from experiments.common import free_bytes

    free = free_bytes(out.resolve()) / GIGABYTE
    mend = "" if free >= 5 else "the demo writes less than 2 GB, Ray needs the same under /tmp: free some space"
    return Finding("disk", f"{free:.0f} GB free for {out}", mend, serious=free < 2)


def writable_for(out: Path) -> Callable[[], Finding]:
    def writable() -> Finding:
        place = out.resolve()
        while not place.exists():
            place = place.parent
        fits = os.access(place, os.W_OK)
        return Finding(
            "writable", str(place), "" if fits else f"no right to write there: give another --out than {out}"
        )

    return writable


def ray_starts() -> Finding:
    import time

    from envs.cluster import ray_session

    started = time.monotonic()
    with ray_session("local"):
        seconds = time.monotonic() - started
    return Finding("Ray", f"a local session started in {seconds:.1f} s")
