"""Sources of the numbers of a table: scores, stages, code, models and data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from envs.utils.atomic_io import read_json
from experiments.pipeline.runner import output_hash, stages_behind
from experiments.reports.page import Table
from experiments.reproduction.model_stages import score_path, score_stage_name
from experiments.reproduction.plans import TableRow

DIGITS = 12
"""Digits of a sha256 that the page shows; the JSON file has all of them."""


def row_sources(row: TableRow, out: Path, roots: Mapping[int, Path]) -> list[dict[str, Any]]:
    """Return for each seed the scores of a row, and the stage, code, model and data behind them.

    Files are relative to `out`, so that the folder can be moved. `read` has the hash of each stage
    that the evaluation read: its model, its test set, the base data. `trained` has those that the
    stages of the model's training read, its data among them.
    """
    found = []
    for seed, root in roots.items():
        file = root / score_path(row)
        record = read_json(root / "stages" / f"{score_stage_name(row)}.json")
        found.append(
            {
                "seed": seed,
                "file": file.relative_to(out).as_posix(),
                "sha256": output_hash(file),
                "stage": score_stage_name(row),
                "code": record.get("code", "unknown"),
                "read": record.get("read", {}),
                "trained": stages_behind(root, f"model-{row.model}"),
            }
        )
    return found


def linked_table(table: Table, labels: int) -> Table:
    """Return a table whose numbers, after the first `labels` columns, link to their sources."""
    rows = [
        [
            *line[:labels],
            *(Markup('<a href="#row-{}">{}</a>').format(number, cell) for cell in line[labels:]),
        ]
        for number, line in enumerate(table.rows, 1)
    ]
    return Table(table.columns, rows)


def sources_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the sources of all rows, one line for each seed."""
    lines = []
    for number, row in enumerate(rows, 1):
        for place, source in enumerate(row["sources"]):
            anchor = Markup('<span id="row-{}">{}</span>').format(number, number)
            data = {
                name: value
                for name, value in {**source["trained"], **source["read"]}.items()
                if name.startswith(("data-", "model-"))
            }
            lines.append(
                [
                    str(number) if place else anchor,
                    ", ".join(filter(None, (row["group"], row["data"], row["model"]))),
                    str(source["seed"]),
                    Markup('<a href="../{}">{}</a>').format(source["file"], source["file"]),
                    source["sha256"][:DIGITS],
                    source["code"],
                    "; ".join(f"{name} {value[:DIGITS]}" for name, value in data.items()),
                ]
            )
    return Table(
        ["row", "", "seed", "scores", "their sha256", "code", "models and data, sha256"], lines
    )
