"""Create a self-contained HTML report of a run."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import PrecisionArgs
from worldmodel.config import Precision


@dataclass(frozen=True, kw_only=True)
class Args(PrecisionArgs):
    """Create report/index.html of a run of `pipeline`, `explore` or `tune`, or check a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run (its --out)."""
    out: Path | None = None
    """Folder of index.html. Default: report/ in the run's folder."""
    check: bool = False
    """Check a run of `pipeline` or `reproduce` instead: compare the output of each stage with its
    sha256, compute means and tables again from the scores of their windows, and name the code
    that made it."""


def run(args: Args) -> None:
    """Create the page and print the main results, or check the run."""
    if args.check:
        print_check(args.run)
        return
    out = args.out or args.run / "report"
    for line in build_report(args.run, out, args.precision):
        console.print(line)
    console.print(f"Report: {(out / 'index.html').resolve()}")


def print_check(root: Path) -> None:
    """Check a run and print what was compared. Raises InputError if something differs."""
    from experiments.pipeline.check import check_run, describe_check
    from experiments.reproduction.check_tables import check_tables

    result = check_run(root)
    check_tables(root, result)
    for line in [*describe_check(result), *result.faults]:
        console.print(line)
    if result.faults:
        raise InputError(f"{root}: {len(result.faults)} of its files are not what was recorded")


def build_report(root: Path, out: Path, precision: Precision) -> list[str]:
    """Create the report for the kind of run in a folder. Raises InputError without results yet.

    `precision` is that of the models of a pipeline, the only ones that a report runs. The modules
    of the reports import matplotlib, some of them torch.
    """
    if (root / "tune.json").exists():
        from experiments.reports.tune_report import build_tune_report

        return build_tune_report(root, out)
    if (root / "rounds" / "1" / "measure.json").exists():
        from experiments.reports.rounds_report import build_rounds_report

        return build_rounds_report(root, out)
    if (root / "metrics.jsonl").exists() and any(root.glob("checkpoints/*/module.safetensors")):
        from experiments.reports.explore_report import build_explore_report

        return build_explore_report(root, out)
    if (root / "games").is_dir() and (root / "summary.json").exists():
        from experiments.reports.games_report import build_games_report

        return build_games_report(root, out, precision)
    if not any((root / "evaluation").glob("base-*.json")):
        raise InputError(
            f"{root} holds no evaluation yet: finish it with `autoexplore pipeline --out {root}`"
        )
    from experiments.reports.pipeline_report import build_pipeline_report

    return build_pipeline_report(root, out, precision)
