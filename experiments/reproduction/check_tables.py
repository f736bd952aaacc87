"""Check of the tables of `reproduce`: are their numbers those of the scores they come from?"""

from pathlib import Path
from typing import Any

from envs.utils.atomic_io import read_json
from experiments.pipeline.check import TOLERANCE, RunCheck
from experiments.pipeline.runner import output_hash
from experiments.reproduction.results import row_metrics


def check_tables(root: Path, result: RunCheck) -> None:
    """Compute the numbers of all tables in a folder of `reproduce` again, and add what differs."""
    for file in sorted(root.glob("*.json")):
        content = read_json(file)
        rows = content.get("rows", []) if isinstance(content, dict) else []
        for number, row in enumerate(rows, 1):
            if "sources" in row:
                _check_row(root, f"{file.name}, row {number}", row, result)


def _check_row(root: Path, where: str, row: dict[str, Any], result: RunCheck) -> None:
    files = [root / source["file"] for source in row["sources"]]
    for path, source in zip(files, row["sources"], strict=True):
        if not path.exists() or not path.with_suffix(".npz").exists():
            result.faults.append(f"{where}: {path} is gone")
            return
        if output_hash(path) != source["sha256"]:
            result.faults.append(f"{where}: {path} was changed since")
    found = row_metrics(row["part"], row["actions"], files)
    for name, written in row["metrics"].items():
        for bound, value in written.items():
            result.means += 1
            again = found[name][bound]
            if value is None or again is None:
                same = value is again
            else:
                same = abs(value - again) <= TOLERANCE * max(1.0, abs(value))
            if not same:
                result.faults.append(f"{where}: {name} ({bound}) {value}, its scores give {again}")
