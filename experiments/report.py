"""Draw the report of a pipeline's run: one HTML page that holds all its pictures and needs no network."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Args:
    """Draw report/index.html of a pipeline's run again, from what its stages wrote."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as given to `autoexplore pipeline --out`."""
    out: Path | None = None
    """Folder for index.html. Default: report inside the run's folder."""


def run(args: Args) -> None:
    """Draw the page and print the main figures."""
    from envs.errors import InputError
    from envs.runs import console

    if not (args.run / "evaluation" / "base-random.json").exists():
        raise InputError(f"{args.run} holds no evaluation yet: finish it with `autoexplore pipeline --out {args.run}`")
    out = args.out or args.run / "report"
    for line in build(args.run, out):
        console.print(line)
    console.print(f"Report: {(out / 'index.html').resolve()}")


def build(root: Path, out: Path) -> list[str]:
    """Write out/index.html for the run in `root`; returns its main figures as lines of text."""
    import jinja2

    from envs.files import write_atomic
    from experiments import report_sections as sections
    from experiments.report_data import headline, read_measured, short_name
    from experiments.report_training import training
    from experiments.screens import compared, seen_by_game

    plan: dict[str, Any] = json.loads((root / "config.json").read_text())["pipeline"]
    measured = read_measured(root / "evaluation")
    seen = {name: seen_by_game(root / "data" / name) for name in ("random", "more-random", "explored")}
    page = {
        **sections.top(plan, measured, seen, root),
        **sections.result(measured),
        **sections.games(root, plan, measured),
        **sections.horizon(measured),
        **sections.screens(seen),
        **training(root, measured),
        **sections.the_run(root, plan),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(page)
    write_atomic(out / "index.html", html.encode())
    found = []
    for game in sections.both_saw(seen):
        explored, random = compared(seen["explored"][game], seen["more-random"][game])
        found.append(f"{short_name(game)} {explored:,} against {random:,}")
    return [*headline(measured), f"Distinct screens, explorer against random agent: {', '.join(found)}"]
