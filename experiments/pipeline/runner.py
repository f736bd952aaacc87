"""Runs the stages of a pipeline: skips what is finished, continues what was cut off, says how long the rest takes.

A stage's record `stages/<name>.json` is written last. It holds a hash of what the stage read (its settings and the
outputs of the stages before it) and of what it wrote: when either no longer fits, the stage is done again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_json_atomic
from envs.utils.progress import console, format_duration

FINISHED, STARTED = "finished", "started"


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    name: its key, and its record's file name. says: what it does, for the person who waits. run: does it, and returns
    figures to keep. inputs: the stages it reads. output: what it writes, relative to the run's folder. weight: its
    share of the run's time, in any unit. settings: what decides its result, for the hash.
    """

    name: str
    says: str
    run: Callable[["StageContext"], dict[str, Any]]
    inputs: tuple[str, ...]
    output: str
    weight: float
    settings: Any = None


@dataclass
class Context:
    """A pipeline's run: its folder, its plan, and the records of the stages that are finished."""

    root: Path
    plan: Any
    stages: Mapping[str, Stage] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def path(self, stage: str) -> Path:
        """Where a stage's output lies."""
        return self.root / self.stages[stage].output

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage's function returned."""
        return dict(self.records[stage]["result"])


@dataclass(frozen=True)
class StageContext:
    """What a stage's function gets. out: where to write. resume: whether a run that was cut off is there."""

    context: Context
    out: Path
    resume: bool

    @property
    def plan(self) -> Any:
        return self.context.plan

    def path(self, stage: str) -> Path:
        """Where the output of a stage lies."""
        return self.context.path(stage)

    def result(self, stage: str) -> dict[str, Any]:
        """What the function of a finished stage returned."""
        return self.context.result(stage)


def run_stages(stages: Sequence[Stage], context: Context, expected_seconds: float | None) -> list[str]:
    """Run all stages in order; returns the names of those that were run, not skipped.

    expected_seconds: what the whole takes by experience, None where nobody knows yet. After each stage the estimate of
    the rest is corrected by how long the finished ones took.
    """
    context.stages = {stage.name: stage for stage in stages}
    (context.root / "stages").mkdir(parents=True, exist_ok=True)
    clock = Clock(stages, expected_seconds)
    done = []
    for number, stage in enumerate(stages, 1):
        label = f"[{number:2}/{len(stages)}] {stage.name}"
        reads = inputs_hash(stage, context)
        record = read_record(context, stage)
        if is_complete(record, reads, context.path(stage.name)):
            console.print(f"[dim]{label}: already there ({record['seconds']:.0f} s then)[/]")
            context.records[stage.name] = record
            clock.finish(stage, record["seconds"], now=False)
            continue
        console.print(f"[bold]{label}[/]: {stage.says} [dim]({clock.estimate()})[/]")
        resume = record.get("state") == STARTED and record["inputs"] == reads
        if not resume:
            remove(context.path(stage.name))
        earlier = record["seconds"] if resume else 0.0
        context.records[stage.name] = _run(stage, context, reads, resume, earlier)
        clock.finish(stage, context.records[stage.name]["seconds"], now=True)
        done.append(stage.name)
        write_timings(context)
    write_timings(context)
    return done


def _run(stage: Stage, context: Context, reads: str, resume: bool, earlier: float) -> dict[str, Any]:
    """Run one stage; its record says `started` until it has ended well, with the time spent so far."""
    record = {"state": STARTED, "inputs": reads, "output": stage.output, "seconds": earlier}
    write_json_atomic(record_path(context, stage.name), record)
    started = time.monotonic()
    try:
        result = stage.run(StageContext(context, context.path(stage.name), resume))
    except BaseException:
        record["seconds"] = earlier + time.monotonic() - started
        write_json_atomic(record_path(context, stage.name), record)
        raise
    record |= {
        "state": FINISHED,
        "seconds": earlier + time.monotonic() - started,
        "output_hash": output_hash(context.path(stage.name)),
        "result": result,
    }
    write_json_atomic(record_path(context, stage.name), record)
    return record


class Clock:
    """Estimates how long the remaining stages take, from their weights and the stages that were timed."""

    def __init__(self, stages: Sequence[Stage], expected_seconds: float | None) -> None:
        self.left = {stage.name: stage.weight for stage in stages}
        self.total = sum(self.left.values()) or 1.0
        self.expected = expected_seconds
        self.timed_weight = self.timed_seconds = 0.0

    def finish(self, stage: Stage, seconds: float, *, now: bool) -> None:
        """A stage has ended. now: it was timed by this run, on this machine."""
        weight = self.left.pop(stage.name, 0.0)
        if now:
            self.timed_weight += weight
            self.timed_seconds += seconds

    def seconds_left(self) -> float | None:
        """Weights of the rest at the expected speed, which counts as a quarter of the run that was already seen."""
        prior_weight = self.total / 4 if self.expected is not None else 0.0
        prior_seconds = (self.expected or 0.0) / 4
        weight = self.timed_weight + prior_weight
        if weight <= 0:
            return None
        return sum(self.left.values()) * (self.timed_seconds + prior_seconds) / weight

    def estimate(self) -> str:
        """The same as a person says it."""
        left = self.seconds_left()
        if left is None:
            return "no experience yet how long it takes"
        return f"about {format_duration(left)} left in all"


def is_complete(record: Mapping[str, Any], reads: str, output: Path) -> bool:
    """Whether the stage ended, read the same as it would read now, and its output is still what it wrote."""
    return (
        record.get("state") == FINISHED
        and record["inputs"] == reads
        and output.exists()
        and record["output_hash"] == output_hash(output)
    )


def inputs_hash(stage: Stage, context: Context) -> str:
    """Hash of the stage's settings and of the outputs of the stages that it reads."""
    read = {name: context.records[name]["output_hash"] for name in stage.inputs}
    return _sha256(json.dumps([stage.name, stage.settings, read], sort_keys=True, default=str).encode())


def output_hash(path: Path) -> str:
    """Hash of what a stage wrote. The manifests that data sets and checkpoints carry hold hashes of all their files.

    A folder without a manifest counts by its files' names and contents; checkpoints and logs of a run count by the
    newest checkpoint's manifest.
    """
    if path.is_file():
        return _sha256(path.read_bytes())
    if (path / "manifest.json").exists():
        return _sha256((path / "manifest.json").read_bytes())
    manifests = sorted(path.glob("checkpoints/*/manifest.json"))
    files = manifests[-1:] or sorted(file for file in path.rglob("*") if file.is_file())
    return _sha256(json.dumps([[str(file.relative_to(path)), _sha256(file.read_bytes())] for file in files]).encode())


def record_path(context: Context, stage: str) -> Path:
    return context.root / "stages" / f"{stage}.json"


def read_record(context: Context, stage: Stage) -> dict[str, Any]:
    """The stage's record, empty where it was never started."""
    path = record_path(context, stage.name)
    return dict(json.loads(path.read_text())) if path.exists() else {}


def remove(path: Path) -> None:
    """Remove a stage's stale or half-written output."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def write_timings(context: Context) -> None:
    """`timings.json`: seconds of each finished stage, and their sum."""
    seconds = {name: round(record["seconds"], 1) for name, record in context.records.items()}
    write_json_atomic(context.root / "timings.json", {"seconds": seconds, "total": round(sum(seconds.values()), 1)})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
