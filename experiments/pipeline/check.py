"""Check of a run: are its outputs those that were recorded, and its means those of its windows?"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envs.utils.atomic_io import read_json
from envs.utils.errors import InputError
from envs.utils.progress import progress
from experiments.code_version import code_version
from experiments.pipeline.runner import FINISHED, output_hash

TOLERANCE = 1e-3
"""Largest difference of a mean from that of its windows, which are stored in fp32."""


@dataclass
class RunCheck:
    """Result of `check_run`."""

    outputs: int = 0
    """Outputs of stages that were compared with their hashes."""
    means: int = 0
    """Means that were computed again from the scores of single windows."""
    unfinished: list[str] = field(default_factory=list)
    """Stages that are not finished."""
    faults: list[str] = field(default_factory=list)
    """One line for each output that changed and each mean that differs."""
    versions: Counter[str] = field(default_factory=Counter)
    """Version of the code -> number of stages that it ran."""


def check_run(root: Path) -> RunCheck:
    """Compare the outputs of all stages below `root` with their hashes, and means with windows.

    A data set counts by its manifest, which has the hashes of its files: `data verify` reads those.
    Raises InputError if there are no stages.
    """
    records = sorted(root.rglob("stages/*.json"))
    if not records:
        raise InputError(f"{root} holds no stages: give the --out of `pipeline` or `reproduce`")
    result = RunCheck()
    with progress("stages", len(records)) as bar:
        for file in records:
            _check_stage(file, result)
            bar.advance(1, file.stem)
    return result


def _check_stage(file: Path, result: RunCheck) -> None:
    record = read_json(file)
    if record.get("state") != FINISHED:
        result.unfinished.append(file.stem)
        return
    output = file.parent.parent / record["output"]
    result.versions[record.get("code", "unknown")] += 1
    result.outputs += 1
    if not output.exists():
        result.faults.append(f"{file.stem}: {output} is gone")
    elif output_hash(output) != record["output_hash"]:
        result.faults.append(f"{file.stem}: {output} was changed since")
    else:
        scores = [output] if output.is_file() else sorted(output.glob("*.json"))
        for path in scores:
            if path.with_suffix(".npz").exists():
                _check_means(path, result)


def _check_means(file: Path, result: RunCheck) -> None:
    """Compute the means of an evaluation again, from the scores of its windows beside it."""
    written = json.loads(file.read_text())["overall"]
    with np.load(file.with_suffix(".npz")) as windows:
        for name, mean in _written_means(written):
            if name not in windows or mean is None:
                continue
            result.means += 1
            found = float(np.nanmean(windows[name].astype(np.float64)))
            if not abs(found - mean) <= TOLERANCE * max(1.0, abs(mean)):
                result.faults.append(f"{file}: {name} is {mean:.4f}, its windows give {found:.4f}")


def _written_means(overall: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield name and mean of the metrics of an evaluation that are means over its windows."""
    predicted = overall["prediction"]["mean"]
    for name in ("psnr", "ssim"):
        yield name, predicted[name]
    yield "delta_psnr", overall["delta_psnr"]["mean"]
    yield "copy_psnr", overall["copy"]["mean"]["psnr"]
    yield "reconstruction", overall["reconstruction"].get("psnr")


def describe_check(result: RunCheck) -> list[str]:
    """Return the result in words: what was compared, by which versions of the code it was made."""
    lines = [
        f"{result.outputs} outputs compared with their sha256, {result.means} means computed again "
        f"from their windows: {len(result.faults) or 'no'} faults"
    ]
    if result.unfinished:
        lines.append(f"not finished: {', '.join(result.unfinished)}")
    others = {name: count for name, count in result.versions.items() if name != code_version()}
    if others:
        made = ", ".join(f"{count} by {name}" for name, count in others.items())
        lines.append(f"made by other code than this one ({code_version()}): {made}")
    return lines
