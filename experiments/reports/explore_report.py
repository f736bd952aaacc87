"""Report of an exploration run: curves by game, uncertain screens, and the best agent."""

import json
from pathlib import Path

import numpy as np
from markupsafe import Markup

from envs.utils.images import png
from experiments.reports.charts import cycle_styles, line_chart
from experiments.reports.images import film_strip
from experiments.reports.page import Section, embed_picture, write_page
from experiments.reports.results import game_title, read_metric
from exploration.rollout.snapshots import load_snapshots

SHOWN = 10
"""Number of epochs whose most uncertain screen is drawn."""


def build_explore_report(run: Path, out: Path) -> list[str]:
    """Write <out>/index.html for an exploration run; return its main results as lines of text."""
    games = json.loads((run / "config.json").read_text())["games"]
    write_page(
        out,
        run,
        "explore",
        title=f"Exploring {', '.join(map(game_title, games))}",
        lead="An agent learned to reach screens on which the world model is uncertain.",
        sections=explore_sections(run, games),
    )
    lines = []
    for game in games:
        screens = read_metric(run, f"explore/screens/{game}")[1]
        returns = read_metric(run, f"evaluation/intrinsic_return/{game}")[1]
        best = f", best evaluation return {max(returns):.2f}" if returns else ""
        count = screens[-1] if screens else 0
        lines.append(f"{game_title(game)}: {count:,} distinct screens{best}")
    return lines


def explore_sections(run: Path, games: list[str]) -> list[Section]:
    """Return the sections about an exploration run, except those without data."""
    return [_curves(run, games), *_uncertain_screens(run), *_videos(run)]


def _curves(run: Path, games: list[str]) -> Section:
    """Return the section about returns, screens and settings over the epochs."""

    def chart(title: str, y_label: str, names: dict[str, str]) -> Markup:
        curves = {label: read_metric(run, name) for label, name in names.items()}
        return line_chart(cycle_styles(curves), "epochs", y_label, title)

    def by_game(kind: str) -> dict[str, str]:
        return {game_title(game): f"{kind}/{game}" for game in games}

    text = [
        "Intrinsic return: the sum of rewards of one environment over an epoch of training, or "
        "over an evaluation."
    ]
    file = run / "history.json"
    for change in json.loads(file.read_text()) if file.exists() else []:
        values = ", ".join(f"{name} = {value:g}" for name, value in change["set"].items())
        changed = f"Set by hand from epoch {change['epoch']} on: {values}."
        text.append(changed if values else "A change of settings was refused.")
    charts = [
        chart("Intrinsic return in training", "return", by_game("explore/intrinsic_return")),
        chart("Intrinsic return in evaluations", "return", by_game("evaluation/intrinsic_return")),
        chart("Distinct screens so far", "screens", by_game("explore/screens")),
        chart("Entropy of the policy", "nats", {"policy": "explore/entropy"}),
    ]
    return Section("Training of the explorer", text, charts=charts)


def _uncertain_screens(run: Path) -> list[Section]:
    """Return the section about the screens of highest reward over the epochs."""
    snapshots = load_snapshots(run)
    if not snapshots:
        return []
    epochs = list(snapshots)
    positions = np.linspace(0, len(epochs) - 1, min(SHOWN, len(epochs))).astype(int)
    chosen = {epochs[at]: snapshots[epochs[at]] for at in positions}
    rows = [np.stack([snapshot.frame_HWC for snapshot in chosen.values()])]
    maps = [
        drawn for drawn in (snapshot.map() for snapshot in chosen.values()) if drawn is not None
    ]
    if len(maps) == len(chosen):
        rows.append(np.stack(maps))
    rewards = ", ".join(f"{epoch} ({snapshot.reward:.2f})" for epoch, snapshot in chosen.items())
    caption = f"Screen of the highest reward in epoch (and its reward): {rewards}. "
    caption += "Below it the uncertainty of the model."
    text = "The screen of each epoch on which the model was most uncertain. Bright squares are "
    text += "tokens of high entropy."
    picture = embed_picture(png(film_strip(rows, 2)), caption)
    return [Section("Uncertainty over time", [text], pictures=[picture])]


def _videos(run: Path) -> list[Section]:
    """Return the section with videos of the best agent next to random play."""
    file = run / "videos" / "videos.json"
    counts = json.loads(file.read_text()) if file.exists() else {}
    pictures = []
    for game, screens in counts.items():
        caption = f"{game_title(game)}, {screens['steps']} steps. Left: the best agent "
        caption += f"({screens['agent']} distinct screens). Right: random play "
        caption += f"({screens['random']})."
        pictures.append(embed_picture((run / "videos" / f"{game}.gif").read_bytes(), caption))
    text = "Both start the same game from the same state."
    title = "The best agent and random play"
    return [Section(title, [text], pictures=pictures)] if pictures else []
