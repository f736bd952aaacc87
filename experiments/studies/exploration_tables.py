"""Rows and tables of the study of exploration: each seed's own, and over the seeds of a game."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.reports.page import Table
from experiments.studies.exploration_cell import (
    ARMS,
    CONTROL_TESTS,
    FAR,
    TESTS,
    StudyCell,
)
from worldmodel.evaluation.feature_networks import network_name
from worldmodel.statistics import Estimate, estimate, paired_estimate

METRICS = ("psnr", "moving_psnr", "ssim", "delta_psnr", "reconstruction")
MAP_COLOURS = {
    "blue": "#0067a5",
    "orange": "#d5780b",
    "yellow": "#e8d44d",
    "green": "#00a878",
    "violet": "#8f5fd0",
    "red": "#d62839",
    "cyan": "#2ec4e6",
    "pink": "#ff8fc7",
    "brown": "#8d6e4b",
    "grey": "#9a9a9a",
    "olive": "#7d8a1e",
    "white": "#ffffff",
}
"""Colours of a map by their names."""
PLAYER_COLOURS = dict(zip(("base", *ARMS), MAP_COLOURS, strict=True))
"""Names of the colours of base data and arms."""
MAP_CAPTION = (
    "Where base data and arms of the first seed went: screens by their ranks along the two "
    "directions in which they differ most. A cell has the colour of the first of these that saw it:"
)
UNSEEN_TEST = "unseen"
"""Windows of all test sets whose given frame is far from every frame of the base data."""


def cell_rows(cell: StudyCell) -> Iterator[dict[str, Any]]:
    """Yield the rows of one game and seed: one for each arm, test and data.

    A metric has its mean over the windows, and its difference to the random arm as
    [mean, low, high] over the episodes.
    """
    for arm, data in [("base", ""), *cell.finetuned]:
        for test in (*TESTS, UNSEEN_TEST):
            model = f"{arm}-{data}" if data else arm
            baseline = f"{ARMS[0]}-{data or cell.data[0]}"
            scores, other = (load_scores(cell, name, test) for name in (model, baseline))
            windows = len(scores["psnr"])
            row: dict[str, Any] = {"arm": arm, "test": test, "data": data, "windows": windows}
            if windows:
                row |= {metric: compare_to_baseline(scores, other, metric) for metric in METRICS}
                if "fid" in scores:
                    row["fid"] = compare_distances(scores, other)
            yield row


def study_rows(cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the study over the seeds of each game, from the records of its cells."""
    for game in dict.fromkeys(cell["game"] for cell in cells):
        own = [cell for cell in cells if cell["game"] == game]
        for rows in zip(*(cell["rows"] for cell in own), strict=True):
            row = {"game": game} | {name: rows[0][name] for name in ("arm", "test", "data")}
            row["seeds"] = [cell["seed"] for cell in own]
            row["windows"] = sum(each["windows"] for each in rows)
            for metric in (*METRICS, "fid"):
                if known := [each[metric] for each in rows if metric in each]:
                    row[metric] = combine_seeds(known)
            yield row


def load_scores(cell: StudyCell, model: str, test: str) -> dict[str, NDArray[Any]]:
    """Return the scores of the windows of a test, or of those far from the base data in all."""
    names = TESTS if test == UNSEEN_TEST else (test,)
    parts = [dict(np.load(cell.root / "scores" / model / f"{name}.npz")) for name in names]
    if test != UNSEEN_TEST:
        return parts[0]
    by_window = [key for key in parts[0] if key != "fid"]
    scores = {key: np.concatenate([part[key] for part in parts]) for key in by_window}
    far = scores["distance"] > FAR
    return {key: values[far] for key, values in scores.items()}


def compare_to_baseline(
    values: Mapping[str, Any], baseline: Mapping[str, Any], metric: str
) -> dict[str, Any]:
    """Return the mean of a metric over windows and its paired difference to the baseline."""
    finite = values[metric][np.isfinite(values[metric])]
    result = paired_estimate([(values, baseline)], metric)
    return comparison(float(finite.mean()) if len(finite) else math.nan, result)


def compare_distances(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Frechet distance of a set of windows and its difference to the baseline.

    A set of windows has one distance, so that a single seed has no interval.
    """
    mine, other = float(values["fid"]), float(baseline["fid"])
    return comparison(mine, estimate(torch.tensor([mine - other])))


def combine_seeds(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the comparison of several seeds: an interval over their means, if there are several.

    A single seed keeps its own.
    """
    known = [seed for seed in seeds if seed["difference"] is not None]
    if len(known) < 2:
        return known[0] if known else seeds[0]
    mean = float(np.mean([seed["mean"] for seed in known]))
    return comparison(mean, estimate(torch.tensor([seed["difference"][0] for seed in known])))


def comparison(mean: float, difference: Estimate) -> dict[str, Any]:
    """Return a mean and the difference to its baseline as JSON, which knows no NaN.

    Four decimals are more than any of these measures tells.
    """
    if math.isnan(difference.mean):
        return {"mean": None, "difference": None}
    interval = (difference.mean, difference.low, difference.high)
    values = [None if math.isnan(value) else round(value, 4) for value in interval]
    return {"mean": round(mean, 4), "difference": values}


def study_markdown(
    rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]], maps: Mapping[str, str]
) -> str:
    """Return the tables as Markdown: differences to the random arm, means, where the arms went.

    `maps` has the file name of the map of each game that was played here.
    """
    parts = []
    for game in dict.fromkeys(row["game"] for row in rows):
        own = [row for row in rows if row["game"] == game]
        for data, title in (("new", "new data alone"), ("half", "new data and the base data")):
            if chosen := [row for row in own if row["data"] == data]:
                parts.append(f"### {game}, {title}\n\n{differences_table(chosen).markdown()}")
        parts.append(f"### {game}, mean PSNR in dB\n\n{means_table(own).markdown()}")
        mine = [cell for cell in cells if cell["game"] == game]
        parts.append(f"### {game}, where the arms went\n\n{reach_table(mine).markdown()}")
        players = ("base", *mine[0]["arms"])
        legend = ", ".join(f"{player} {PLAYER_COLOURS[player]}" for player in players)
        if game in maps:
            parts.append(f"![Map of {game}]({maps[game]})\n\n{MAP_CAPTION} {legend}.")
    return "\n\n".join(parts) + "\n"


def differences_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the differences of each other arm to the random one, with intervals."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != ARMS[0]):
        tests = {row["test"]: row for row in rows if row["arm"] == arm}
        psnr = [_interval(tests[test], "psnr") for test in (*TESTS, UNSEEN_TEST)]
        delta = [_interval(tests[test], "delta_psnr") for test in CONTROL_TESTS]
        distances = [_interval(tests[test], "fid") for test in CONTROL_TESTS]
        lines.append([arm, *psnr, *delta, *distances])
    names = ("delta-PSNR", network_name() or "FID")
    heads = [f"{name}, {test}" for name in names for test in CONTROL_TESTS]
    return Table(["PSNR, dB", *TESTS, UNSEEN_TEST, *heads], lines)


def means_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the mean PSNR of every model on every test."""
    lines = []
    for arm, data in dict.fromkeys((row["arm"], row["data"]) for row in rows):
        own = [row.get("psnr") for row in rows if (row["arm"], row["data"]) == (arm, data)]
        lines.append([arm, data or "-", *(f"{psnr['mean']:.2f}" if psnr else "-" for psnr in own)])
    return Table(["arm", "data", *(row["test"] for row in rows[: len(lines[0]) - 2])], lines)


def reach_table(cells: Sequence[dict[str, Any]]) -> Table:
    """Return what each arm did and how far from the base data it went, as means over seeds.

    leak: largest share of a test's frames that its data hold; information: of action and history.
    """
    lines = []
    for arm in cells[0]["arms"]:
        own = [cell["arms"][arm] for cell in cells]
        actions = {
            name: np.mean([each["actions"][name] for each in own]) for name in own[0]["actions"]
        }
        favourite = max(actions, key=actions.__getitem__)
        line = [
            arm,
            f"{np.mean([each['frames'] for each in own]):,.0f}",
            f"{np.mean([each['distance'] for each in own]):.2f}",
            f"{np.mean([each['unseen'] for each in own]):.0%}",
            f"{np.mean([max(each['leak'].values()) for each in own]):.1%}",
            f"{favourite} {actions[favourite]:.0%}",
        ]
        known = [each["mutual_information"] for each in own if "mutual_information" in each]
        lines.append([*line, f"{np.mean(known):.4f} nats" if known else "-"])
    return Table(
        [
            "arm",
            "frames",
            "distance from base data",
            "unseen frames",
            "largest leak",
            "commonest action",
            "information",
        ],
        lines,
    )


def _interval(row: dict[str, Any], metric: str) -> str:
    result = row.get(metric) or {"difference": None}
    if result["difference"] is None:
        return "-"
    mean, low, high = result["difference"]
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:.2f}, {high:.2f}]"
