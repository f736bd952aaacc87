"""Draw the report of a run: one HTML page that holds all its pictures and needs no network."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.reports.build import build


@dataclass(frozen=True, kw_only=True)
class Args:
    """Draw report/index.html of a run of `pipeline`, `explore` or `tune`, from what it wrote."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as given with --out."""
    out: Path | None = None
    """Folder for index.html. Default: report inside the run's folder."""


def run(args: Args) -> None:
    """Draw the page and print the main figures."""
    from envs.utils.progress import console

    out = args.out or args.run / "report"
    for line in build_report(args.run, out):
        console.print(line)
    console.print(f"Report: {(out / 'index.html').resolve()}")


def build_report(root: Path, out: Path) -> list[str]:
    """Draw the report that fits what the folder holds. Raises InputError where there is nothing to draw yet."""
    from envs.utils.errors import InputError
    from experiments.reports import explore_report, rounds_report, tune_report

    if (root / "tune.json").exists():
        return tune_report.build(root, out)
    if (root / "rounds" / "1" / "measure.json").exists():
        return rounds_report.build(root, out)
    if (root / "metrics.jsonl").exists() and any((root / "checkpoints").glob("*/module.safetensors")):
        return explore_report.build(root, out)
    if not (root / "evaluation" / "base-random.json").exists():
        raise InputError(f"{root} holds no evaluation yet: finish it with `autoexplore pipeline --out {root}`")
    return build(root, out)
