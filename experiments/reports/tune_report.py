"""Report of population-based training: settings, copies and returns of the agents."""

import json
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_json_atomic
from experiments.reports.charts import cycle_styles, format_short, line_chart
from experiments.reports.page import Section, Table, write_page
from experiments.reports.results import game_title

NAMES = {
    "lr": "learning rate",
    "entropy_coeff": "entropy bonus",
    "epsilon": "epsilon",
    "temperature": "temperature",
    "top_fraction": "top fraction",
}
LOG = ("lr", "entropy_coeff")
"""Settings drawn on a log axis."""


def build_tune_report(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and changes.json from <root>/tune.json; return the main results."""
    population: dict[str, Any] = json.loads((root / "tune.json").read_text())
    config: dict[str, Any] = json.loads((root / "config.json").read_text())["tune"]
    trials, changes, best = (population[name] for name in ("trials", "changes", "best"))
    games = ", ".join(map(game_title, config["games"]))
    write_page(
        out,
        root,
        f"tune, {games}",
        title="Population-based training of explorers",
        lead=f"{len(trials)} agents explored {games}. The worse ones copied the better ones and "
        "varied their settings.",
        sections=[_returns(trials, best, config), _settings(trials, changes, config)],
    )
    write_json_atomic(out / "changes.json", changes)
    final = {name: trial["evaluation_return"][-1] for name, trial in trials.items()}
    copies = sum(change["copied"] is not None for change in changes)
    return [
        f"{len(trials)} agents, {config['epochs']} epochs each, "
        f"compared every {config['evaluate_every']}: {copies} copied a better one",
        f"Evaluation return at the end: best {final[best]:.2f} ({best}), "
        f"worst {min(final.values()):.2f}",
    ]


def _returns(trials: dict[str, Any], best: str, config: dict[str, Any]) -> Section:
    """Return the section about the returns of the agents."""
    last = {name: values[-1] for name, values in trials[best]["settings"].items()}
    final = ", ".join(f"{NAMES[name]} {value:.3g}" for name, value in last.items())
    text = [
        "The evaluation return is that of the most likely action, with the paper's top fraction "
        "of 0.25, so that it does not depend on the tuned settings. It is the sum of rewards over "
        f"{config['evaluation_steps']} steps, averaged over games.",
        f"Final settings of the best agent, {best}: {final}.",
    ]
    charts = []
    for key, title, y_label in (
        ("evaluation_return", "Evaluation return", "return"),
        ("screens", "Distinct screens", "screens"),
    ):
        curves = {name: (trial["epochs"], trial[key]) for name, trial in trials.items()}
        charts.append(line_chart(cycle_styles(curves), "epochs", y_label, title))
    return Section("Returns", text, charts=charts)


def _settings(
    trials: dict[str, Any], changes: list[dict[str, Any]], config: dict[str, Any]
) -> Section:
    """Return the section about the settings and their changes."""
    text = "No agent copied another."
    if changes:
        text = (
            f"Every {config['evaluate_every']} epochs the worst quarter of the agents copied the "
            "weights, optimizer and replay buffer of one of the best quarter, and continued with a "
            "variation of its settings."
        )
    charts = []
    for key, name in NAMES.items():
        curves = {
            agent: (trial["epochs"], trial["settings"][key]) for agent, trial in trials.items()
        }
        lines = cycle_styles(curves)
        charts.append(line_chart(lines, "epochs", name, name.capitalize(), log_y=key in LOG))
    columns = ("From epoch", "Agent", "Copied from", *NAMES.values())
    rows = [
        [
            str(change["from_epoch"]),
            change["trial"],
            change["copied"] or "-",
            *(_change(change["settings"].get(name)) for name in NAMES),
        ]
        for change in changes
    ]
    return Section("Changes of settings", [text], [Table(columns, rows)], charts)


def _change(values: tuple[float, float] | None) -> str:
    """Return the old and the new value of a setting as text."""
    return "same" if values is None else " to ".join(map(format_short, values))
