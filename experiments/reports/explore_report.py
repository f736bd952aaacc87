"""The report of an exploration run: curves by game, uncertain screens, and the best agent."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from envs.utils.images import png
from experiments.reports.charts import line_chart, series_in_turn
from experiments.reports.images import film_strip
from experiments.reports.page import Section, Shot, write_page
from experiments.reports.results import read_metric, short_name
from exploration.rollout.snapshots import load_snapshots

SHOWN = 10
"""Number of epochs whose most uncertain screen is drawn."""


def sections(run: Path, games: list[str]) -> list[Section]:
    """Return the sections about an exploration run, without those for which it kept no data."""
    return [curves(run, games), *uncertain_screens(run), *videos(run)]


def build(run: Path, out: Path) -> list[str]:
    """Write <out>/index.html for an exploration run; return its main results as lines of text."""
    games = json.loads((run / "config.json").read_text())["games"]
    names = ", ".join(map(short_name, games))
    write_page(
        out,
        title=f"Exploring {names}",
        subtitle="explore",
        lead="An agent learnt to reach screens on which the world model is uncertain.",
        sections=sections(run, games),
        root=run,
    )
    lines = []
    for game in games:
        screens = read_metric(run, f"explore/screens/{game}")[1]
        returns = read_metric(run, f"evaluation/intrinsic_return/{game}")[1]
        best = f", best evaluation return {max(returns):.2f}" if returns else ""
        count = screens[-1] if screens else 0
        lines.append(f"{short_name(game)}: {count:,} distinct screens{best}")
    return lines


def curves(run: Path, games: list[str]) -> Section:
    """Return the section about returns, screens and settings over the epochs."""

    def chart(title: str, y_label: str, names: dict[str, str]) -> Markup:
        lines = series_in_turn({label: read_metric(run, name) for label, name in names.items()})
        return line_chart(lines, x_label="epochs", y_label=y_label, title=title)

    def by_game(kind: str) -> dict[str, str]:
        return {short_name(game): f"{kind}/{game}" for game in games}

    file = run / "history.json"
    history = json.loads(file.read_text()) if file.exists() else []
    text = [
        "Intrinsic return: the sum of rewards of one environment over an epoch of training, or "
        "over an evaluation."
    ]
    for change in history:
        values = ", ".join(f"{name} = {value:g}" for name, value in change["set"].items())
        text.append(
            f"Set by hand from epoch {change['epoch']} on: {values}."
            if values
            else "A change of settings was refused."
        )
    charts = [
        chart("Intrinsic return in training", "return", by_game("explore/intrinsic_return")),
        chart("Intrinsic return in evaluations", "return", by_game("evaluation/intrinsic_return")),
        chart("Distinct screens, so far", "screens", by_game("explore/screens")),
        chart("Entropy of the policy", "nats", {"policy": "explore/entropy"}),
    ]
    return Section("Training of the explorer", text, charts=charts)


def uncertain_screens(run: Path) -> list[Section]:
    """Return the section about the screens of highest reward over the epochs."""
    kept = load_snapshots(run)
    if not kept:
        return []
    epochs = list(kept)
    positions = np.linspace(0, len(epochs) - 1, min(SHOWN, len(epochs))).astype(int)
    chosen = [epochs[at] for at in dict.fromkeys(positions)]
    rows = [np.stack([kept[epoch].frame_HWC for epoch in chosen])]
    maps = [one for one in (kept[epoch].map() for epoch in chosen) if one is not None]
    if len(maps) == len(chosen):
        rows.append(np.stack(maps))
    picture = film_strip(rows, 2)
    shown = ", ".join(f"{epoch} ({kept[epoch].reward:.2f})" for epoch in chosen)
    caption = f"Screen of the highest reward in epoch (and its reward): {shown}. "
    caption += "Below it the uncertainty of the model."
    data = base64.b64encode(png(picture)).decode()
    return [
        Section(
            "Uncertainty over time",
            [
                "The screen on which the model was most uncertain, epoch by epoch. Bright squares "
                "are tokens of high entropy."
            ],
            pictures=[Shot(caption, "png", data, *picture.shape[1::-1])],
        )
    ]


def videos(run: Path) -> list[Section]:
    """Return the section with videos of the best agent next to random play."""
    file = run / "videos" / "videos.json"
    counts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    shots = []
    for game, seen in counts.items():
        data = (run / "videos" / f"{game}.gif").read_bytes()
        caption = f"{short_name(game)}, {seen['steps']} steps. Left: the best agent "
        caption += f"({seen['agent']} distinct screens). Right: random play ({seen['random']})."
        width, height = Image.open(io.BytesIO(data)).size
        shots.append(Shot(caption, "gif", base64.b64encode(data).decode(), width, height))
    if not shots:
        return []
    text = "Both start the same game from the same state."
    return [Section("The best agent and random play", [text], pictures=shots)]
