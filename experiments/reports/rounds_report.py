"""Report of several rounds: uncertainty and error of each model, new screens of each round."""

import json
from pathlib import Path
from typing import Any

from envs.utils.atomic_io import write_json_atomic
from experiments.reports.charts import Series, cycle_styles, line_chart
from experiments.reports.comparison import PLAYERS
from experiments.reports.page import Section, Table, write_page
from experiments.reports.results import game_title, read_metric

ByRound = dict[tuple[int, int], float]
"""Values by (round of the model, round of the screens); round 0 is random play."""


def build_rounds_report(root: Path, out: Path) -> list[str]:
    """Write <out>/index.html and rounds.json; return the main results as lines of text."""
    files = sorted((root / "rounds").glob("*/measure.json"), key=lambda f: int(f.parent.name))
    rounds = [json.loads(file.read_text()) for file in files]
    plan = json.loads((root / "config.json").read_text())["pipeline"]
    measured = [entry for row in rounds for entry in row["models"]]
    entropies = {(model, play): entropy for model, play, entropy, _, _ in measured}
    psnrs = {(model, play): psnr for model, play, _, _, psnr in measured}
    new = [sum(counts["new"] for counts in row["screens"].values()) for row in rounds]
    write_page(
        out,
        root,
        f"rounds, {', '.join(map(game_title, plan['games']))}",
        title=f"{len(rounds) - 1} rounds of exploring and learning",
        lead=f"In each round the {PLAYERS[plan['explorers'][0]]} goes where the model of the "
        "previous round is uncertain, and the model learns from the frames it collects. "
        + describe_rounds(entropies, new),
        sections=[
            _model_section(
                "Uncertainty of the models",
                "Mean token entropy, as a share of the largest possible,",
                "mean entropy",
                entropies,
                digits=3,
            ),
            _model_section(
                "Predictions of the models",
                "Mean PSNR in dB of the third frame ahead, predicted in one pass,",
                "PSNR, dB",
                psnrs,
                digits=1,
            ),
            _coverage(root, rounds, new),
        ],
    )
    rows = [[*pair, value, psnrs[pair]] for pair, value in entropies.items()]
    write_json_atomic(out / "rounds.json", {"models": rows, "new": new})
    return _headline(entropies, psnrs, new)


def _headline(entropies: ByRound, psnrs: ByRound, new: list[int]) -> list[str]:
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
        line += f"; PSNR {psnrs[number - 1, number]:.1f} and {psnrs[number, number]:.1f} dB"
        lines.append(line)
    return lines


def describe_rounds(entropies: ByRound, new: list[int]) -> str:
    """Return the conclusion from the results, in words."""
    rounds = range(1, len(new))
    fell = sum(entropies[number, number] < entropies[number - 1, number] for number in rounds)
    moved = sum(count > 0 for count in new[1:])
    return (
        f"Learning from its screens lowered the model's entropy on them in {fell} of "
        f"{len(rounds)} rounds; screens that no earlier round had were seen in {moved} of "
        f"{len(rounds)}."
    )


def _model_section(title: str, what: str, unit: str, values: ByRound, digits: int) -> Section:
    """Return the section about a metric of every model on every round's screens."""
    count = 1 + max(model for model, _ in values)
    names = ["random play", *(f"round {number}" for number in range(1, count))]
    by_play = {
        name: [values[model, play] for model in range(count)] for play, name in enumerate(names)
    }
    rows = [[name, *(f"{value:.{digits}f}" for value in row)] for name, row in by_play.items()]
    lines = cycle_styles({name: (range(count), row) for name, row in by_play.items()})
    labels = ("rounds of learning", unit, f"{title}, on fixed screens")
    text = (
        f"{what} over a fixed set of windows of each round's play. The model of a column has "
        "learned from the screens of its round and of all earlier ones; later screens are new to "
        "it."
    )
    models = ["base model", *(f"after {name}" for name in names[1:])]
    tables = [Table(["Screens of", *models], rows)]
    return Section(title, [text], tables, [line_chart(lines, *labels, markers=True)])


def _coverage(root: Path, rounds: list[dict[str, Any]], new: list[int]) -> Section:
    """Return the section about the distinct screens of each round, and agents' rewards."""
    rows, rewards = [], {}
    for row in rounds:
        name = f"round {row['round']}" if row["round"] else "random play"
        for game, counts in row["screens"].items():
            cells = (f"{counts[key]:,}" for key in ("frames", "seen", "new"))
            rows.append([name, game_title(game), *cells])
        run = root / "rounds" / str(row["round"]) / "explore"
        if run.exists():
            rewards[name] = read_metric(run, "explore/reward")
    title = "Distinct screens that no earlier round had"
    screens = [Series("new screens", "agent", range(1, len(new)), new[1:])]
    charts = [line_chart(screens, "round", "screens", title, markers=True)]
    if rewards:
        learning = "Reward while each round's agent learns"
        charts.append(line_chart(cycle_styles(rewards), "epochs", "mean uncertainty", learning))
    text = "Distinct screens of each round's recorded play, and those that no earlier play had."
    columns = ("Play of", "Game", "Frames", "Distinct screens", "New ones")
    return Section("Screens of each round", [text], [Table(columns, rows)], charts)
