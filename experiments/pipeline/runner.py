"""Runner of the stages of a pipeline: it skips finished stages and resumes interrupted ones.

A stage's record `stages/<name>.json` is written last. It holds a hash of what the stage read (its
settings and the outputs of the stages before it) and of what it wrote: when either no longer fits,
the stage is done again.
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

    name: its key, and its record's file name. says: its description on the terminal. run: does it
    and returns results to keep. inputs: the stages it reads. output: the path it writes, relative
    to the run's folder. settings: whatever decides its result, for the hash.
    """

    name: str
    says: str
    run: Callable[["StageContext"], dict[str, Any]]
    inputs: tuple[str, ...]
    output: str
    settings: Any = None


@dataclass
class Context:
    """A pipeline's run: its folder, its configuration, and the records of its finished stages."""

    root: Path
    config: Any
    stages: Mapping[str, Stage] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def path(self, stage: str) -> Path:
        """Return the path of a stage's output."""
        return self.root / self.stages[stage].output

    def result(self, stage: str) -> dict[str, Any]:
        """Return the result of a finished stage."""
        return dict(self.records[stage]["result"])


@dataclass(frozen=True)
class StageContext:
    """Arguments of a stage's function. out: path to write. resume: an interrupted run is there."""

    context: Context
    out: Path
    resume: bool

    @property
    def config(self) -> Any:
        return self.context.config

    def path(self, stage: str) -> Path:
        """Return the path of a stage's output."""
        return self.context.path(stage)

    def result(self, stage: str) -> dict[str, Any]:
        """Return the result of a finished stage."""
        return self.context.result(stage)


def run_stages(stages: Sequence[Stage], context: Context) -> list[str]:
    """Run all stages in order; return the names of those that were run, not skipped."""
    context.stages = {stage.name: stage for stage in stages}
    (context.root / "stages").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    done = []
    for number, stage in enumerate(stages, 1):
        label = f"[{number:2}/{len(stages)}] {stage.name}"
        reads = inputs_hash(stage, context)
        record = read_record(context, stage)
        # A stage whose inputs and output are what they were is skipped.
        if is_complete(record, reads, context.path(stage.name)):
            console.print(f"[dim]{label}: already there ({record['seconds']:.0f} s then)[/]")
            context.records[stage.name] = record
            continue
        elapsed = format_duration(round(time.monotonic() - started))
        console.print(f"[bold]{label}[/]: {stage.says} [dim]({elapsed} elapsed)[/]")
        # One that was interrupted is resumed if it still reads the same.
        resume = record.get("state") == STARTED and record["inputs"] == reads
        if not resume:
            remove(context.path(stage.name))
        earlier = record["seconds"] if resume else 0.0
        context.records[stage.name] = _run(stage, context, reads, resume, earlier)
        done.append(stage.name)
        write_timings(context)
    write_timings(context)
    return done


def _run(
    stage: Stage, context: Context, reads: str, resume: bool, earlier: float
) -> dict[str, Any]:
    """Run one stage. Until it has ended its record says `started`, with the time spent so far."""
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


def is_complete(record: Mapping[str, Any], reads: str, output: Path) -> bool:
    """Return True if the stage ended, with the inputs of now, and its output is unchanged."""
    return (
        record.get("state") == FINISHED
        and record["inputs"] == reads
        and output.exists()
        and record["output_hash"] == output_hash(output)
    )


def inputs_hash(stage: Stage, context: Context) -> str:
    """Return a hash of the stage's settings and of the outputs of the stages it reads."""
    read = {name: context.records[name]["output_hash"] for name in stage.inputs}
    return _sha256(
        json.dumps([stage.name, stage.settings, read], sort_keys=True, default=str).encode()
    )


def output_hash(path: Path) -> str:
    """Return a hash of a stage's output. Manifests of data sets and checkpoints hash all their
    files.

    A folder without a manifest counts by its files' names and contents; checkpoints and logs of a
    run count by the newest checkpoint's manifest.
    """
    if path.is_file():
        return _sha256(path.read_bytes())
    if (path / "manifest.json").exists():
        return _sha256((path / "manifest.json").read_bytes())
    manifests = sorted(path.glob("checkpoints/*/manifest.json"))
    files = manifests[-1:] or sorted(file for file in path.rglob("*") if file.is_file())
    return _sha256(
        json.dumps(
            [[str(file.relative_to(path)), _sha256(file.read_bytes())] for file in files]
        ).encode()
    )


def record_path(context: Context, stage: str) -> Path:
    return context.root / "stages" / f"{stage}.json"


def read_record(context: Context, stage: Stage) -> dict[str, Any]:
    """Return the stage's record, empty where it was never started."""
    path = record_path(context, stage.name)
    return dict(json.loads(path.read_text())) if path.exists() else {}


def remove(path: Path) -> None:
    """Remove a stage's stale or half-written output."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def write_timings(context: Context) -> None:
    """Write `timings.json`: seconds of each finished stage, and their sum."""
    seconds = {name: round(record["seconds"], 1) for name, record in context.records.items()}
    write_json_atomic(
        context.root / "timings.json",
        {"seconds": seconds, "total": round(sum(seconds.values()), 1)},
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
