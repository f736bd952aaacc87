"""The report of a population of agents: what changed when, and what it did to their returns."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.reports.charts import STYLES, Series, line_chart, short
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


def build(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and changes.json from <root>/tune.json; returns its main figures as lines of text."""
    from envs.utils.atomic_io import write_json_atomic

    found: dict[str, Any] = json.loads((root / "tune.json").read_text())
    asked = json.loads((root / "config.json").read_text())["tune"]
    trials, changes, best = found["trials"], found["changes"], found["best"]
    games = ", ".join(short_name(game) for game in asked["games"])
    ends = {name: trial["evaluation_return"][-1] for name, trial in trials.items()}
    copies = sum(change["copied"] is not None for change in changes)
    lines = [
        f"{len(trials)} agents, {asked['epochs']} epochs each, compared every {asked['evaluate_every']}: "
        f"{copies} copied a better one",
        f"Evaluation return at the end: best {ends[best]:.2f} ({best}), worst {min(ends.values()):.2f}",
    ]
    last = {name: values[-1] for name, values in trials[best]["settings"].items()}
    told = ", ".join(f"{NAMES[name]} {value:.3g}" for name, value in last.items())
    sections = [
        Section(
            "Returns",
            [
                "The evaluation return is that of the most likely action, with the reward of the paper's top fraction "
                "of 0.25, so that it does not depend on what is tuned. It is the sum of rewards over "
                f"{asked['evaluation_steps']} steps, the mean over games.",
                f"The best agent at the end, {best}, had: {told}.",
            ],
            charts=[
                _chart("Evaluation return", "return", trials, "evaluation_return"),
                _chart("Distinct screens", "screens", trials, "screens"),
            ],
        ),
        Section(
            "What changed when",
            [
                f"Every {asked['evaluate_every']} epochs the worst quarter of the agents took over weights, optimizer "
                "and replay of one of the best quarter, and went on with its settings, varied."
                if changes
                else "No agent copied another."
            ],
            tables=[
                Table(
                    ("From epoch", "Agent", "Copied from", *NAMES.values()),
                    [_row(change) for change in changes],
                )
            ],
            charts=[
                line_chart(
                    [
                        Series(
                            name,
                            STYLES[place % len(STYLES)],
                            trial["epochs"],
                            trial["settings"][setting],
                        )
                        for place, (name, trial) in enumerate(trials.items())
                    ],
                    x_label="epochs",
                    y_label=NAMES[setting],
                    title=NAMES[setting].capitalize(),
                    log_y=setting in LOG,
                )
                for setting in NAMES
            ],
        ),
    ]
    lead = f"{len(trials)} agents explored {games}. The worse ones copied the better and varied their settings."
    write_page(
        out,
        title="A population that tunes itself",
        subtitle=f"tune, {games}",
        lead=lead,
        sections=sections,
        root=root,
    )
    write_json_atomic(out / "changes.json", changes)
    return lines


def _chart(title: str, y_label: str, trials: dict[str, Any], key: str) -> Markup:
    lines = [
        Series(name, STYLES[place % len(STYLES)], trial["epochs"], trial[key])
        for place, (name, trial) in enumerate(trials.items())
    ]
    return line_chart(lines, x_label="epochs", y_label=y_label, title=title)


def _row(change: dict[str, Any]) -> list[str]:
    cells = [
        " to ".join(short(value) for value in change["settings"][name])
        if name in change["settings"]
        else "same"
        for name in NAMES
    ]
    return [str(change["from_epoch"]), change["trial"], change["copied"] or "-", *cells]
