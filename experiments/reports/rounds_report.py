"""The report of several rounds: how unsure each model is of each round's screens, and whether the agents moved on."""

import json
from pathlib import Path
from typing import Any

from experiments.reports.charts import STYLES, Series, line_chart
from experiments.reports.page import Section, Table, write_page
from experiments.reports.results import read_metric, short_name


def read_rounds(root: Path) -> list[dict[str, Any]]:
    """What each round measured, from round 0 (random play) on."""
    files = sorted((root / "rounds").glob("*/measure.json"), key=lambda file: int(file.parent.name))
    return [json.loads(file.read_text()) for file in files]


def build(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and rounds.json; returns the main figures as lines of text."""
    from envs.utils.atomic_io import write_json_atomic

    measured = read_rounds(root)
    games = [
        short_name(game)
        for game in json.loads((root / "config.json").read_text())["pipeline"]["games"]
    ]
    mean = {(model, play): value for row in measured for model, play, value, _ in row["entropy"]}
    rounds = range(1, len(measured))
    new = [sum(counts["new"] for counts in row["screens"].values()) for row in measured]
    lines = []
    for place in rounds:
        before, after = mean[place - 1, place], mean[place, place]
        line = f"Round {place}: {new[place]:,} new distinct screens; entropy on the round's screens {before:.3f} "
        line += f"before learning from them, {after:.3f} after"
        if (place - 1, place + 1) in mean:
            other = mean[place, place + 1] - mean[place - 1, place + 1]
            line += f"; on the screens of round {place + 1}, not yet visited, it changed by {other:+.3f}"
        lines.append(line)
    sections = [unsure(measured, mean), moving_on(root, measured)]
    write_page(
        out,
        title=f"{len(rounds)} rounds of exploring and learning",
        subtitle=f"rounds, {', '.join(games)}",
        lead="In each round an agent goes where the model of the round before is unsure, and the model learns from "
        "what it brings back. " + verdict(mean, new),
        sections=sections,
        root=root,
    )
    write_json_atomic(
        out / "rounds.json",
        {"entropy": [[*pair, value] for pair, value in mean.items()], "new": new},
    )
    return lines


def verdict(mean: dict[tuple[int, int], float], new: list[int]) -> str:
    """What the figures say, in words."""
    rounds = range(1, len(new))
    fell = sum(mean[place, place] < mean[place - 1, place] for place in rounds)
    moved = sum(count > 0 for count in new[1:])
    return (
        f"Learning from its screens lowered the model's entropy on them in {fell} of {len(rounds)} rounds; "
        f"the agent saw screens that no earlier round had in {moved} of {len(rounds)}."
    )


def unsure(measured: list[dict[str, Any]], mean: dict[tuple[int, int], float]) -> Section:
    """Entropy of every model on every round's screens."""
    count = len(measured)
    names = ["random play", *(f"round {place}" for place in range(1, count))]
    rows = []
    for play, name in enumerate(names):
        cells = [f"{mean[model, play]:.3f}" for model in range(count)]
        rows.append([name, *cells])
    heads = ["Screens of", "base model", *(f"after round {place}" for place in range(1, count))]
    lines = [
        Series(
            name,
            STYLES[play % len(STYLES)],
            range(count),
            [mean[model, play] for model in range(count)],
        )
        for play, name in enumerate(names)
    ]
    chart = line_chart(
        lines,
        x_label="rounds learnt from",
        y_label="mean entropy",
        title="Entropy on fixed screens",
        markers=True,
    )
    return Section(
        "How unsure the models are",
        [
            "Mean token entropy, as a share of the largest possible, over a fixed set of windows of each round's play. "
            "The screens of a round were learnt from in the column of that round; in those before it the model had not "
            "met them.",
        ],
        tables=[Table(heads, rows)],
        charts=[chart],
    )


def moving_on(root: Path, measured: list[dict[str, Any]]) -> Section:
    """Distinct screens of each round, and what the agents were paid."""
    rows, lines = [], []
    for row in measured:
        for game, counts in row["screens"].items():
            cells = (f"{counts[name]:,}" for name in ("frames", "seen", "new"))
            rows.append(
                [
                    f"round {row['round']}" if row["round"] else "random play",
                    short_name(game),
                    *cells,
                ]
            )
    for row in measured[1:]:
        steps, values = read_metric(
            root / "rounds" / str(row["round"]) / "explore", "explore/reward"
        )
        lines.append(
            Series(f"round {row['round']}", STYLES[row["round"] % len(STYLES)], steps, values)
        )
    new = [sum(counts["new"] for counts in row["screens"].values()) for row in measured]
    charts = [
        line_chart(
            [Series("new screens", "explored", range(1, len(new)), new[1:])],
            x_label="round",
            y_label="screens",
            title="Distinct screens that no earlier round had",
            markers=True,
        ),
        line_chart(
            lines,
            x_label="epochs",
            y_label="mean uncertainty",
            title="Reward while each round's agent learns",
        ),
    ]
    return Section(
        "Whether the agents moved on",
        [
            "Distinct screens of each round's recorded play, and how many of them no play before it had."
        ],
        tables=[Table(("Play of", "Game", "Frames", "Distinct screens", "New ones"), rows)],
        charts=charts,
    )
