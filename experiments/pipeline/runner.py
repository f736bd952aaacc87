"""Runner of the stages of a pipeline: it skips finished stages and resumes interrupted ones.

The record of a stage, `stages/<name>.json`, is written last. It holds a hash of the stage's inputs
(its settings and the outputs of the stages before it) and one of its output. If either has changed,
the stage is run again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import read_json, write_json_atomic
from envs.utils.progress import console, format_duration
from experiments.code_version import code_version
from worldmodel.training.run_spec import TrainingRun

FINISHED, STARTED = "finished", "started"


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    """Unique name, and the file name of the record."""
    description: str
    """Description on the terminal."""
    run: Callable[["StageContext"], dict[str, Any]]
    """Function that writes the output and returns results to record."""
    inputs: tuple[str, ...]
    """Names of the stages whose outputs it reads."""
    output: str
    """Path of the output in the run's folder."""
    settings: Any = None
    """Everything else that determines the output, for the hash."""
    training: TrainingRun | None = None
    """Settings of a stage that trains, without its folders, to predict what it costs."""


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

    def record_path(self, stage: str) -> Path:
        """Return the path of a stage's record."""
        return self.root / "stages" / f"{stage}.json"


@dataclass(kw_only=True)
class StageContext(Context):
    """Argument of a stage's function. out: path to write. resume: continue an interrupted run."""

    out: Path
    resume: bool


def run_stages(stages: Sequence[Stage], context: Context) -> list[str]:
    """Run all stages in order; return the names of those that were not skipped."""
    context.stages = {stage.name: stage for stage in stages}
    started = time.monotonic()
    executed = []
    for number, stage in enumerate(stages, 1):
        label = f"[{number:2}/{len(stages)}] {stage.name}"
        inputs = inputs_hash(stage, context)
        file, output = context.record_path(stage.name), context.path(stage.name)
        record = json.loads(file.read_text()) if file.exists() else {}
        unchanged = record.get("inputs") == inputs
        state = record.get("state")
        if unchanged and state == FINISHED and _output_is_unchanged(record, output):
            console.print(f"[dim]{label}: already there ({record['seconds']:.0f} s then)[/]")
            context.records[stage.name] = record
            _write_timings(context)
            continue
        elapsed = format_duration(round(time.monotonic() - started))
        console.print(f"[bold]{label}[/]: {stage.description} [dim]({elapsed} elapsed)[/]")
        resume = unchanged and state == STARTED
        if not resume:
            _remove(output)
            read = input_hashes(stage, context)
            record = {"inputs": inputs, "read": read, "output": stage.output, "seconds": 0.0}
        context.records[stage.name] = _run(stage, context, record, resume)
        executed.append(stage.name)
        _write_timings(context)
    return executed


def _run(stage: Stage, context: Context, record: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Run one stage and return its finished record, with the time of interrupted attempts."""
    file, out = context.record_path(stage.name), context.path(stage.name)
    started, earlier = time.monotonic(), record["seconds"]
    write_json_atomic(file, record | {"state": STARTED})
    try:
        result = stage.run(StageContext(**vars(context), out=out, resume=resume))
    except BaseException:
        seconds = earlier + time.monotonic() - started
        write_json_atomic(file, record | {"state": STARTED, "seconds": seconds})
        raise
    seconds = earlier + time.monotonic() - started
    record |= {"state": FINISHED, "seconds": seconds, "output_hash": output_hash(out)}
    record |= {"code": code_version(), "result": result}
    write_json_atomic(file, record)
    return record


def _output_is_unchanged(record: Mapping[str, Any], output: Path) -> bool:
    return output.exists() and record["output_hash"] == output_hash(output)


def inputs_hash(stage: Stage, context: Context) -> str:
    """Return a hash of a stage's settings and of the outputs of the stages it reads."""
    read = input_hashes(stage, context)
    content = json.dumps([stage.name, stage.settings, read], sort_keys=True, default=str)
    return _sha256(content.encode())


def input_hashes(stage: Stage, context: Context) -> dict[str, str]:
    """Return stage -> hash of its output, for the stages that a stage reads."""
    return {name: context.records[name]["output_hash"] for name in stage.inputs}


def stages_behind(root: Path, stage: str) -> dict[str, str]:
    """Return stage -> hash of its output, for all stages that a finished stage goes back to."""
    found: dict[str, str] = {}
    waiting = [stage]
    while waiting:
        read = read_json(root / "stages" / f"{waiting.pop()}.json").get("read", {})
        waiting += [name for name in read if name not in found]
        found |= read
    return dict(sorted(found.items()))


def output_hash(path: Path) -> str:
    """Return a hash of a stage's output.

    The manifests of data sets and checkpoints hash all their files, so that a data set is
    represented by its manifest, and a training run by that of its newest checkpoint. Any other
    folder is represented by the names and contents of its files.
    """
    if path.is_file():
        return _sha256(path.read_bytes())
    if (path / "manifest.json").exists():
        return _sha256((path / "manifest.json").read_bytes())
    manifests = sorted(path.glob("checkpoints/*/manifest.json"))
    files = manifests[-1:] or sorted(file for file in path.rglob("*") if file.is_file())
    hashes = [[str(file.relative_to(path)), _sha256(file.read_bytes())] for file in files]
    return _sha256(json.dumps(hashes).encode())


def _remove(path: Path) -> None:
    """Remove the stale or incomplete output of a stage."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_timings(context: Context) -> None:
    """Write `timings.json`: seconds of each stage that is done or was already, and their sum."""
    seconds = {name: round(record["seconds"], 1) for name, record in context.records.items()}
    timings = {"seconds": seconds, "total": round(sum(seconds.values()), 1)}
    write_json_atomic(context.root / "timings.json", timings)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
