"""Results of the user studies as Markdown and as a plot."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from experiments.reports.page import Table
from experiments.studies.common import COLOURS, figure_png, interval_text, new_figure
from experiments.studies.people.arguments import TRUTH


def people_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of both studies, and the agreement."""
    answered = result["participants"]
    asked = sum(result["samples"].values())
    complete = sum(count == asked for count in answered.values())
    blocks = [
        f"{len(answered)} participants, {complete} of whom answered all {asked} samples. "
        "Mean (95 % interval, Student's t over participants)."
    ]
    first = result["models"][0]
    quality, action = ordered_models(result, "quality"), ordered_models(result, "action")
    if quality:
        blocks += ["### Quality", _quality_table(quality, first).markdown()]
        blocks.append(_agreement_line(result["agreement"]["quality"]))
    if action:
        blocks += ["### Action", f"Preference from 0 ({first}) to 1 (the other model)."]
        blocks += [_action_table(action).markdown()]
        blocks.append(_agreement_line(result["agreement"]["action"]))
    return "\n\n".join(blocks) + "\n"


def ordered_models(result: Mapping[str, Any], study: str) -> dict[str, Any]:
    """Return the rows of a study in the order of the models, the recording first."""
    rows = result[study]
    return {name: rows[name] for name in (TRUTH, *result["models"]) if name in rows}


def _quality_table(rows: Mapping[str, Any], first: str) -> Table:
    games = sorted({game for row in rows.values() for game in row["games"]})
    cells = [
        [
            name,
            str(row["overall"]["answers"]),
            interval_text(row["overall"]),
            *(interval_text(row["games"].get(game)) for game in games),
            interval_text(row["difference"], "+.2f"),
        ]
        for name, row in rows.items()
    ]
    return Table(("shown", "ratings", "rating 1 to 5", *games, f"over {first}"), cells)


def _action_table(rows: Mapping[str, Any]) -> Table:
    first = next(iter(rows.values()))
    parts = [(part, name) for part in ("actions", "games") for name in first[part]]
    cells = [
        [
            name,
            str(row["overall"]["answers"]),
            interval_text(row["overall"]),
            *(interval_text(row[part].get(key)) for part, key in parts),
        ]
        for name, row in rows.items()
    ]
    return Table(("model", "answers", "preference", *(key for _, key in parts)), cells)


def _agreement_line(agreement: Mapping[str, float | None]) -> str:
    alpha, correlation = (
        "not defined" if value is None else f"{value:.2f}"
        for value in (agreement["alpha"], agreement["correlation"])
    )
    return (
        f"Agreement: Krippendorff's alpha (ordinal) {alpha}, mean correlation of two participants "
        f"{correlation}."
    )


def plot_people(result: Mapping[str, Any]) -> bytes:
    """Return a PNG: ratings of each model, all and game by game; preferences, also by action."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    first = result["models"][0]
    left.set_title("Match with the recording, 1 to 5", loc="left", fontsize=9)
    quality = ordered_models(result, "quality")
    _draw_rows(left, {name: {"all": r["overall"], **r["games"]} for name, r in quality.items()})
    left.set_xlim(0.9, 5.1)
    right.set_title(f"Preferred action, 0 {first} to 1", loc="left", fontsize=9)
    action = ordered_models(result, "action")
    _draw_rows(right, {name: {"all": r["overall"], **r["actions"]} for name, r in action.items()})
    right.axvline(0.5, color="0.7", linewidth=0.8, zorder=0)
    right.set_xlim(-0.02, 1.02)
    return figure_png(figure)


def _draw_rows(axes: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a line for each model, with a mean and its interval for each part of it."""
    labelled: set[str] = set()
    for index, parts in enumerate(rows.values()):
        for number, (part, value) in enumerate(parts.items()):
            if value["mean"] is None:
                continue
            y, colour = -index - 0.15 * number, COLOURS[number % len(COLOURS)]
            label = None if part in labelled else part
            labelled.add(part)
            axes.plot([value["mean"]], [y], "o", color=colour, label=label)
            if value["low"] is not None:
                axes.plot([value["low"], value["high"]], [y, y], "-", color=colour)
    axes.set_yticks(range(0, -len(rows), -1), list(rows), fontsize=8)
    axes.set_ylim(0.3 - max(len(rows), 2), 0.4)
