"""The report of several rounds: uncertainty of each model, and new screens of each agent."""

import json
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_json_atomic
from experiments.reports.charts import Series, line_chart, series_in_turn
from experiments.reports.page import Section, Table, write_page
from experiments.reports.results import read_metric, short_name

Entropies = dict[tuple[int, int], float]
"""Mean token entropy by (rounds that the model learnt from, round of the screens)."""


def read_rounds(root: Path) -> list[dict[str, Any]]:
    """Return the measurements of each round, from round 0 (random play) on."""
    files = (root / "rounds").glob("*/measure.json")
    return [
        json.loads(file.read_text()) for file in sorted(files, key=lambda f: int(f.parent.name))
    ]


def build(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and rounds.json; return the main results as lines of text."""
    rounds = read_rounds(root)
    plan = json.loads((root / "config.json").read_text())["pipeline"]
    games = [short_name(game) for game in plan["games"]]
    entropies = {(model, play): value for row in rounds for model, play, value, _ in row["entropy"]}
    new = [sum(counts["new"] for counts in row["screens"].values()) for row in rounds]
    write_page(
        out,
        title=f"{len(rounds) - 1} rounds of exploring and learning",
        subtitle=f"rounds, {', '.join(games)}",
        lead="In each round an agent goes where the model of the previous round is uncertain, and "
        "the model learns from the frames it collects. " + verdict(entropies, new),
        sections=[uncertainty_table(entropies, len(rounds)), coverage(root, rounds, new)],
        root=root,
    )
    rows = [[*pair, value] for pair, value in entropies.items()]
    write_json_atomic(out / "rounds.json", {"entropy": rows, "new": new})
    return rounds_headline(entropies, new)


def rounds_headline(entropies: Entropies, new: list[int]) -> list[str]:
    """Return one line of text for each round."""
    lines = []
    for number in range(1, len(new)):
        before, after = entropies[number - 1, number], entropies[number, number]
        line = f"Round {number}: {new[number]:,} new distinct screens; entropy on the round's "
        line += f"screens {before:.3f} before learning from them, {after:.3f} after"
        if (number - 1, number + 1) in entropies:
            change = entropies[number, number + 1] - entropies[number - 1, number + 1]
            line += f"; on the screens of round {number + 1}, not yet visited, "
            line += f"it changed by {change:+.3f}"
        lines.append(line)
    return lines


def verdict(entropies: Entropies, new: list[int]) -> str:
    """Return the conclusion from the results, in words."""
    rounds = range(1, len(new))
    fell = sum(entropies[number, number] < entropies[number - 1, number] for number in rounds)
    moved = sum(count > 0 for count in new[1:])
    return (
        f"Learning from its screens lowered the model's entropy on them in {fell} of "
        f"{len(rounds)} rounds; the agent saw screens that no earlier round had in {moved} of "
        f"{len(rounds)}."
    )


def uncertainty_table(entropies: Entropies, count: int) -> Section:
    """Return the section about the entropy of every model on every round's screens."""
    names = ["random play", *(f"round {number}" for number in range(1, count))]
    rows, curves = [], {}
    for play, name in enumerate(names):
        values = [entropies[model, play] for model in range(count)]
        rows.append([name, *(f"{value:.3f}" for value in values)])
        curves[name] = (range(count), values)
    after = (f"after round {number}" for number in range(1, count))
    chart = line_chart(
        series_in_turn(curves),
        x_label="rounds learnt from",
        y_label="mean entropy",
        title="Entropy on fixed screens",
        markers=True,
    )
    return Section(
        "Uncertainty of the models",
        [
            "Mean token entropy, as a share of the largest possible, over a fixed set of windows "
            "of each round's play. The screens of a round were learnt from in the column of that "
            "round; in the columns before it they were new to the model.",
        ],
        tables=[Table(["Screens of", "base model", *after], rows)],
        charts=[chart],
    )


def coverage(root: Path, rounds: list[dict[str, Any]], new: list[int]) -> Section:
    """Return the section about the distinct screens of each round and the agents' rewards."""
    rows, rewards = [], {}
    for row in rounds:
        name = f"round {row['round']}" if row["round"] else "random play"
        for game, counts in row["screens"].items():
            cells = (f"{counts[key]:,}" for key in ("frames", "seen", "new"))
            rows.append([name, short_name(game), *cells])
    for row in rounds[1:]:
        run = root / "rounds" / str(row["round"]) / "explore"
        rewards[f"round {row['round']}"] = read_metric(run, "explore/reward")
    charts = [
        line_chart(
            [Series("new screens", "explored", range(1, len(new)), new[1:])],
            x_label="round",
            y_label="screens",
            title="Distinct screens that no earlier round had",
            markers=True,
        ),
        line_chart(
            series_in_turn(rewards),
            x_label="epochs",
            y_label="mean uncertainty",
            title="Reward while each round's agent learns",
        ),
    ]
    return Section(
        "Screens of each round",
        ["Distinct screens of each round's recorded play, and those that no earlier play had."],
        tables=[Table(("Play of", "Game", "Frames", "Distinct screens", "New ones"), rows)],
        charts=charts,
    )
