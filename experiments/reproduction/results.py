"""Results of a table: rows over all seeds, as JSON, Markdown, a plot and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.utils.atomic_io import read_json, write_atomic, write_json_atomic
from experiments.reports.page import Section, Table, embed_picture, write_page
from experiments.reproduction.items import Item
from experiments.reproduction.model_stages import score_path
from experiments.reproduction.paper_values import PAPER_ROWS
from experiments.reproduction.plans import TablePlan, TableRow
from experiments.reproduction.sources import linked_table, row_sources, sources_table
from experiments.studies.common import (
    COLOURS,
    estimate_json,
    figure_png,
    interval_json,
    interval_text,
    new_figure,
)
from worldmodel.statistics import paired_estimate

METRICS = ("psnr", "ssim", "delta_psnr")
"""Metrics of single windows. The Frechet distance is one of all windows."""
HEADS = {"distance": "distance", "psnr": "PSNR, dB", "ssim": "SSIM", "delta_psnr": "delta-PSNR, dB"}
LABELS = {"group": "game", "data": "data", "model": "model"}
"""Field that tells rows apart -> its column."""
FORMS = {"distance": ".1f", "psnr": ".2f", "ssim": ".3f", "delta_psnr": ".2f"}


def write_table(
    out: Path, item: Item, plan: TablePlan, roots: Sequence[Path], settings: Mapping[str, Any]
) -> str:
    """Write <item>.json, .md and .png and <item>/index.html; return the Markdown."""
    folders = dict(zip(settings["seeds"], roots, strict=True))
    rows = [
        describe_row(row, roots) | {"sources": row_sources(row, out, folders)} for row in plan.rows
    ]
    seeds = " ".join(map(str, settings["seeds"]))
    command = f"autoexplore reproduce {item.name} --preset {settings['preset']} --seeds {seeds}"
    paper_rows = [
        dict(zip((*LABELS, *HEADS), (*labels, *values), strict=True))
        for labels, values in PAPER_ROWS[item.name].items()
    ]
    content = {
        "item": item.name, "title": item.title, "command": command, "settings": settings,
        "rows": rows, "paper": paper_rows,
    }  # fmt: skip
    write_json_atomic(out / f"{item.name}.json", content)
    ours, paper = our_table(rows, plan.compared_with), paper_table(item.name)
    title, caption = f"{item.name}: {item.title}", _caption(plan, settings)
    markdown = f"# {title}\n\n{caption}\n\n{ours.markdown()}\n\n"
    markdown += f"The paper's table:\n\n{paper.markdown()}\n"
    write_atomic(out / f"{item.name}.md", markdown.encode())
    plot = draw_rows(rows)
    write_atomic(out / f"{item.name}.png", plot)
    tables = linked_table(ours, len(LABELS)), paper
    section = Section(item.title, [caption], tables, pictures=[embed_picture(plot)])
    origin = Section(
        "Where each number comes from",
        [f"{command}, with the settings of config.json in the folder of the run."],
        [sources_table(rows)],
    )
    write_page(
        out / item.name, out, f"{item.name}, preset {settings['preset']}",
        title=title, lead=plan.note, sections=[section, origin],
    )  # fmt: skip
    return markdown


def describe_row(row: TableRow, roots: Sequence[Path]) -> dict[str, Any]:
    """Return a row as JSON data, with an interval of each metric.

    Differences from the row's baseline are paired by window.
    """
    files = [root / score_path(row) for root in roots]
    scores = [read_json(file) for file in files]
    record: dict[str, Any] = {
        "group": row.group,
        "data": row.data,
        "model": row.label,
        "mode": row.mode,
        "part": row.part,
        "actions": row.actions,
        "metrics": row_metrics(row.part, row.actions, files),
        "distance_name": scores[0]["distance_name"],
        "windows": sum(score["overall"]["windows"] for score in scores),
    }
    if row.baseline and row.part == "prediction":
        mode, actions = row.baseline_mode or row.mode, row.baseline_actions or row.actions
        compared = score_path(replace(row, model=row.baseline, mode=mode, actions=actions))
        pairs = [
            (_windows(file), _windows(root / compared))
            for file, root in zip(files, roots, strict=True)
        ]
        record["baseline"] = {"model": row.baseline, "mode": mode}
        if actions != row.actions:
            record["baseline"]["actions"] = actions
        # Random latent actions and random buttons do not compare.
        names = METRICS if actions == row.actions else ("psnr", "ssim")
        record["difference"] = {name: interval_json(paired_estimate(pairs, name)) for name in names}
    return record


def _windows(file: Path) -> dict[str, Any]:
    with np.load(file.with_suffix(".npz")) as arrays:
        return dict(arrays)


def row_metrics(
    part: str, actions: str, files: Sequence[Path]
) -> dict[str, dict[str, float | None]]:
    """Return the metrics of a row from the files of its scores, one for each seed.

    The interval is over the seeds, or over the episodes of a single seed. Only on recorded actions
    there is a delta-PSNR of buttons.
    """
    reconstruction = part == "reconstruction"
    sets = [read_json(file)["overall"] for file in files]
    windows = [_windows(file) for file in files]
    if reconstruction:
        values = {
            "psnr": [one["reconstruction"]["psnr"] for one in sets],
            "ssim": [one["reconstruction"]["ssim"] for one in sets],
            "delta_psnr": [],
        }
        distances = [one["reconstruction"].get("distance") for one in sets]
    else:
        names = METRICS if part == "prediction" and actions == "recorded" else ("psnr", "ssim")
        values = {name: [float(np.nanmean(one[name])) for one in windows] for name in names}
        distances = [one["prediction"]["distance"] for one in sets]
    values["distance"] = [value for value in distances if value is not None]
    over_episodes = len(files) == 1 and not reconstruction
    found = {}
    for name in HEADS:
        if over_episodes and name in METRICS and name in values:
            found[name] = _over_episodes(windows[0], name)
        elif values.get(name):
            found[name] = estimate_json(torch.tensor(values[name]))
        else:
            found[name] = {"mean": None, "low": None, "high": None}
    return found


def _over_episodes(windows: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    known = np.isfinite(windows[metric])
    _, group = np.unique(windows["session"][known], return_inverse=True)
    return estimate_json(torch.from_numpy(windows[metric][known]), torch.from_numpy(group))


def our_table(rows: Sequence[Mapping[str, Any]], compared_with: str) -> Table:
    """Return the table of the measured values, without columns that no row has."""
    shown = [
        name for name in HEADS if any(row["metrics"][name]["mean"] is not None for row in rows)
    ]
    named = next((row["distance_name"] for row in rows if row["distance_name"]), "distance")
    heads = [named if name == "distance" else HEADS[name] for name in shown]
    cells = [
        [
            *(row[label] for label in LABELS),
            *(interval_text(row["metrics"][name], FORMS[name]) for name in shown),
        ]
        for row in rows
    ]
    if compared_with:
        heads.append(f"PSNR against {compared_with}, dB")
        for row, line in zip(rows, cells, strict=True):
            difference = row["difference"]["psnr"] if "difference" in row else None
            line.append(interval_text(difference, "+.2f"))
    return Table([*LABELS.values(), *heads], cells)


def paper_table(item: str) -> Table:
    """Return the table as the paper has it."""
    cells = [
        [*labels, *("" if value is None else f"{value:g}" for value in values)]
        for labels, values in PAPER_ROWS[item].items()
    ]
    return Table([*LABELS.values(), "FID", *list(HEADS.values())[1:]], cells)


def _row_name(row: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, (row["group"].split("-")[0], row["data"], row["model"])))


def _caption(plan: TablePlan, settings: Mapping[str, Any]) -> str:
    seeds = settings["seeds"]
    over = "the seeds" if len(seeds) > 1 else "the episodes of the seed"
    tests = {play.player for row in plan.rows for play in row.test}
    kinds = {"deep": "deep play", "expert": "an expert's play"}
    test = f", test sets of {kinds[settings['test']]}" if "test" in tests else ""
    text = (
        f"Preset {settings['preset']}, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}{test}; 95 % intervals over {over}. "
        "Differences are paired by window."
    )
    return f"{plan.note} {text}".strip()


def draw_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the plot of PSNR by row, as PNG."""
    figure = new_figure(7, 1 + 0.35 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        value = row["metrics"]["psnr"]
        bounds = [value["low"], value["high"]]
        if None not in bounds:
            axes.plot(bounds, [place, place], color=COLOURS[0], lw=2)
        axes.plot(value["mean"], place, "o", color=COLOURS[0])
    axes.set_yticks(range(len(rows)), [_row_name(row) for row in reversed(rows)], fontsize=7)
    axes.set_xlabel("PSNR, dB")
    return figure_png(figure)
