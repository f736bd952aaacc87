"""The report of population-based training: settings, copies and returns of the agents."""

import json
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_json_atomic
from experiments.reports.charts import line_chart, series_in_turn, short
from experiments.reports.page import Section, Table, write_page
from experiments.reports.results import short_name

NAMES = {
    "lr": "learning rate",
    "entropy_coeff": "entropy bonus",
    "epsilon": "epsilon",
    "temperature": "temperature",
    "top_fraction": "top fraction",
}
LOG = ("lr", "entropy_coeff")
"""Settings drawn on a log axis."""


def build(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and changes.json from <root>/tune.json; return the main results."""
    population: dict[str, Any] = json.loads((root / "tune.json").read_text())
    asked: dict[str, Any] = json.loads((root / "config.json").read_text())["tune"]
    trials, changes = population["trials"], population["changes"]
    games = ", ".join(short_name(game) for game in asked["games"])
    write_page(
        out,
        title="Population-based training of explorers",
        subtitle=f"tune, {games}",
        lead=f"{len(trials)} agents explored {games}. The worse ones copied the better ones and "
        "varied their settings.",
        sections=[returns(trials, population["best"], asked), settings(trials, changes, asked)],
        root=root,
    )
    write_json_atomic(out / "changes.json", changes)
    return tune_headline(trials, changes, population["best"], asked)


def tune_headline(
    trials: dict[str, Any], changes: list[dict[str, Any]], best: str, asked: dict[str, Any]
) -> list[str]:
    """Return the main results as lines of text."""
    ends = {name: trial["evaluation_return"][-1] for name, trial in trials.items()}
    copies = sum(change["copied"] is not None for change in changes)
    return [
        f"{len(trials)} agents, {asked['epochs']} epochs each, "
        f"compared every {asked['evaluate_every']}: {copies} copied a better one",
        f"Evaluation return at the end: best {ends[best]:.2f} ({best}), "
        f"worst {min(ends.values()):.2f}",
    ]


def returns(trials: dict[str, Any], best: str, asked: dict[str, Any]) -> Section:
    """Return the section about what the agents reached."""
    last = {name: values[-1] for name, values in trials[best]["settings"].items()}
    final = ", ".join(f"{NAMES[name]} {value:.3g}" for name, value in last.items())
    text = [
        "The evaluation return is that of the most likely action, with the paper's top fraction "
        "of 0.25, so that it does not depend on the tuned settings. It is the sum of rewards over "
        f"{asked['evaluation_steps']} steps, averaged over games.",
        f"Final settings of the best agent, {best}: {final}.",
    ]
    charts = []
    for key, title, unit in (
        ("evaluation_return", "Evaluation return", "return"),
        ("screens", "Distinct screens", "screens"),
    ):
        curves = {name: (trial["epochs"], trial[key]) for name, trial in trials.items()}
        charts.append(
            line_chart(series_in_turn(curves), x_label="epochs", y_label=unit, title=title)
        )
    return Section("Returns", text, charts=charts)


def settings(
    trials: dict[str, Any], changes: list[dict[str, Any]], asked: dict[str, Any]
) -> Section:
    """Return the section about the settings and their changes."""
    text = "No agent copied another."
    if changes:
        text = (
            f"Every {asked['evaluate_every']} epochs the worst quarter of the agents copied the "
            "weights, optimizer and replay buffer of one of the best quarter, and continued with "
            "its settings, varied."
        )
    charts = []
    for setting, name in NAMES.items():
        curves = {
            agent: (trial["epochs"], trial["settings"][setting]) for agent, trial in trials.items()
        }
        charts.append(
            line_chart(
                series_in_turn(curves),
                x_label="epochs",
                y_label=name,
                title=name.capitalize(),
                log_y=setting in LOG,
            )
        )
    columns = ("From epoch", "Agent", "Copied from", *NAMES.values())
    rows = [_row(change) for change in changes]
    return Section("Changes of settings", [text], tables=[Table(columns, rows)], charts=charts)


def _row(change: dict[str, Any]) -> list[str]:
    cells = []
    for name in NAMES:
        values = change["settings"].get(name)
        cells.append("same" if values is None else " to ".join(map(short, values)))
    return [str(change["from_epoch"]), change["trial"], change["copied"] or "-", *cells]
