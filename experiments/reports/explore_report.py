"""What an exploration run looked like: curves by game, what surprised the model, and the best agent beside chance."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from envs.utils.images import png
from experiments.reports.charts import STYLES, Series, line_chart
from experiments.reports.images import film_strip
from experiments.reports.page import Section, Shot, write_page
from experiments.reports.results import read_metric, short_name

SHOWN = 10
"""Epochs whose most surprising screen is drawn."""


def sections(run: Path, games: list[str]) -> list[Section]:
    """The parts of a page about an exploration run; those of which the run kept nothing are left out."""
    return [curves(run, games), *surprises(run), *films(run)]


def build(run: Path, out: Path) -> list[str]:
    """Write <out>/index.html for an exploration run; returns its main figures as lines of text."""
    games = json.loads((run / "config.json").read_text())["games"]
    names = ", ".join(map(short_name, games))
    write_page(
        out,
        title=f"Exploring {names}",
        subtitle="explore",
        lead="An agent learnt to go where it is paid: to screens that the world model is unsure of.",
        sections=sections(run, games),
        root=run,
    )
    lines = []
    for game in games:
        screens = read_metric(run, f"explore/screens/{game}")[1]
        returns = read_metric(run, f"evaluation/intrinsic_return/{game}")[1]
        told = f", best evaluation return {max(returns):.2f}" if returns else ""
        lines.append(
            f"{short_name(game)}: {screens[-1] if screens else 0:,} distinct screens{told}"
        )
    return lines


def curves(run: Path, games: list[str]) -> Section:
    """Returns, screens and settings over the epochs."""

    def chart(title: str, y_label: str, names: dict[str, str]) -> Markup:
        lines = [
            Series(label, STYLES[place % len(STYLES)], *read_metric(run, name))
            for place, (label, name) in enumerate(names.items())
        ]
        return line_chart(lines, x_label="epochs", y_label=y_label, title=title)

    def by_game(kind: str) -> dict[str, str]:
        return {short_name(game): f"{kind}/{game}" for game in games}

    history = (
        json.loads((run / "history.json").read_text()) if (run / "history.json").exists() else []
    )
    text = [
        "Intrinsic return: the sum of rewards of one env in an epoch while the agent learns, or in an evaluation."
    ]
    for change in history:
        told = ", ".join(f"{name} = {value:g}" for name, value in change["set"].items())
        text.append(
            f"From epoch {change['epoch']} on a person set {told}."
            if told
            else "A change was refused."
        )
    charts = [
        chart("Intrinsic return while it learns", "return", by_game("explore/intrinsic_return")),
        chart("Intrinsic return in evaluations", "return", by_game("evaluation/intrinsic_return")),
        chart("Distinct screens, so far", "screens", by_game("explore/screens")),
        chart("Entropy of the policy", "nats", {"policy": "explore/entropy"}),
    ]
    return Section("How the explorer learnt", text, charts=charts)


def surprises(run: Path) -> list[Section]:
    """The screens that paid most, over the epochs, and the model's uncertainty of them."""
    from exploration.rollout.snapshots import load_snapshots

    kept = load_snapshots(run)
    if not kept:
        return []
    epochs = list(kept)
    chosen = [
        epochs[at]
        for at in dict.fromkeys(
            np.linspace(0, len(epochs) - 1, min(SHOWN, len(epochs))).astype(int)
        )
    ]
    frames = np.stack([kept[epoch].frame_HWC for epoch in chosen])
    maps = [kept[epoch].map() for epoch in chosen]
    rows = (
        [frames]
        if any(one is None for one in maps)
        else [frames, np.stack([one for one in maps if one is not None])]
    )
    picture = film_strip(rows, 2)
    shown = ", ".join(f"{epoch} ({kept[epoch].reward:.2f})" for epoch in chosen)
    data = base64.b64encode(png(picture)).decode()
    caption = f"The screen that paid most in epoch (and its reward): {shown}. Below it the model's uncertainty."
    text = "What surprised the model most, epoch by epoch. Bright squares are tokens that it was unsure of."
    return [
        Section(
            "Uncertainty over time",
            [text],
            pictures=[Shot(caption, "png", data, *picture.shape[1::-1])],
        )
    ]


def films(run: Path) -> list[Section]:
    """The best agent beside a random one."""
    from PIL import Image

    file = run / "videos" / "videos.json"
    counts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    shots = []
    for game, seen in counts.items():
        data = (run / "videos" / f"{game}.gif").read_bytes()
        caption = f"{short_name(game)}, {seen['steps']} steps: left the best agent ({seen['agent']} distinct screens), "
        caption += f"right a random one ({seen['random']})"
        width, height = Image.open(io.BytesIO(data)).size
        shots.append(Shot(caption, "gif", base64.b64encode(data).decode(), width, height))
    text = "Both begin the same game from the same state."
    return [Section("The best agent beside chance", [text], pictures=shots)] if shots else []
