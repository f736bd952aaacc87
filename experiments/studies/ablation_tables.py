"""Results of an ablation as JSON, Markdown and plot: means over seeds with 95 % intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes

from envs.utils.atomic_io import write_atomic, write_json_atomic
from experiments.reports.page import Table
from experiments.studies.ablation_runs import AblationGrid
from experiments.studies.common import (
    COLOURS,
    estimate_json,
    figure_png,
    gain,
    interval_text,
    new_figure,
)


@dataclass(frozen=True)
class Measure:
    """One column of the tables."""

    head: str
    value: Callable[[Mapping[str, Any]], float | None]
    """Function of a SET of `evaluate`."""
    compared: bool = True
    """True if variants are compared by it."""


MEASURES: dict[str, Measure] = {
    "reconstruction": Measure("reconstruction", lambda s: s["reconstruction"]["psnr"], False),
    "one_step": Measure("1 step, over copying", lambda s: gain(s, "one_step")),
    "all_steps": Measure("{horizon} steps, over copying", lambda s: gain(s, "mean")),
    "moving": Measure(
        "{horizon} steps, moving pixels, over copying", lambda s: gain(s, "mean", "moving_psnr")
    ),
    "delta_psnr": Measure("delta-PSNR at {t}", lambda s: s["delta_psnr"]["mean"]),
}
COMPARED = [name for name, measure in MEASURES.items() if measure.compared]
MODE_NAMES = {"one_pass": "One pass", "autoregressive": "Autoregressive"}

Cells = Mapping[int, Mapping[str, Any]]
"""Finished cells of a variant by seed, ascending."""


def write_ablation(grid: AblationGrid, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write ablation.json, ablation.md and ablation.png; return the content of the first."""
    result = summarise_ablation(grid, cells)
    write_json_atomic(grid.out / "ablation.json", result)
    write_atomic(grid.out / "ablation.md", ablation_markdown(result).encode())
    write_atomic(grid.out / "ablation.png", plot_ablation(result))
    return result


def summarise_ablation(grid: AblationGrid, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all results as JSON data. Variants without a finished cell are left out.

    {"settings", "modes": {mode: {variant: ROW}}};
    ROW = {"label", "cells_of", "seeds", "iterations", "parameters", "overall": SET,
           "games": {game: SET}, "by_step"};
    SET = {measure: {"mean", "low", "high", "values"}, "differences": the same}, of each seed's
    value minus that of the first variant with this seed.
    """
    ordered = sorted(cells, key=lambda cell: cell["seed"])
    owners = grid.cell_owners()
    by_variant: dict[str, Cells] = {
        name: {cell["seed"]: cell for cell in ordered if cell["cell"] == owner}
        for name, owner in owners.items()
    }
    reference = next(iter(by_variant.values()))
    modes: dict[str, Any] = {}
    for mode in grid.modes:
        rows = modes[mode] = {}
        for name, own in by_variant.items():
            if not own:
                continue
            first = next(iter(own.values()))
            rows[name] = {
                "label": grid.variants[name].label,
                "cells_of": owners[name],
                "seeds": list(own),
                "iterations": first["iterations"],
                "parameters": first["parameters"],
                "overall": _summarise_set(own, reference, mode),
                "games": {
                    game: _summarise_set(own, reference, mode, game)
                    for game in first["measured"][mode]["games"]
                },
                "by_step": _gains_by_step(own, mode),
            }
    return {"settings": grid.identity(), "modes": modes}


def _summarise_set(
    own: Cells, reference: Cells, mode: str, game: str | None = None
) -> dict[str, Any]:
    """Return the SET of one game or of all, see `summarise_ablation`."""

    def read(cells: Cells, measure: Measure) -> dict[int, float | None]:
        measured = {seed: cell["measured"][mode] for seed, cell in cells.items()}
        return {
            seed: measure.value(results["games"][game] if game else results["overall"])
            for seed, results in measured.items()
        }

    values = {name: read(own, measure) for name, measure in MEASURES.items()}
    differences = {}
    for name in COMPARED:
        others = read(reference, MEASURES[name])
        pairs = [(value, others.get(seed)) for seed, value in values[name].items()]
        differences[name] = seed_interval(
            [a - b for a, b in pairs if a is not None and b is not None]
        )
    intervals = {name: seed_interval(list(by_seed.values())) for name, by_seed in values.items()}
    return {**intervals, "differences": differences}


def seed_interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and 95 % interval (Student's t) over seeds; null if they are not defined."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "low": None, "high": None, "values": []}
    return {**estimate_json(torch.tensor(known, dtype=torch.float64)), "values": known}


def _gains_by_step(own: Cells, mode: str) -> list[dict[str, Any]]:
    """Return the gain in PSNR over copying at each predicted frame."""
    gains = []
    for cell in own.values():
        results = cell["measured"][mode]["overall"]
        sides = (results[side]["by_step"]["psnr"] for side in ("prediction", "copy"))
        gains.append([predicted - copied for predicted, copied in zip(*sides, strict=True)])
    return [seed_interval(values) for values in zip(*gains, strict=True)]


def _column_heads(settings: Mapping[str, Any]) -> dict[str, str]:
    horizon = settings["evaluate"]["horizon"]
    return {
        name: measure.head.format(horizon=horizon, t=min(4, horizon))
        for name, measure in MEASURES.items()
    }


def ablation_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables: all games, differences to the first variant, each game."""
    settings = result["settings"]
    evaluated = settings["evaluate"]
    heads = _column_heads(settings)
    limit = evaluated["limit"]
    windows = "all windows" if limit is None else f"at most {limit} windows"
    held_out = "held-out episodes" if settings["test_data"] else "the validation split"
    blocks = [
        f"Preset `{settings['preset']}`; tokenizer: {_budget(settings['tokenizer'])}; "
        f"dynamics: {_budget(settings['dynamics'])}. "
        f"Measured on {windows} of each game of {held_out}, 2 frames given, "
        f"{evaluated['horizon']} predicted in {evaluated['steps']} sampling steps. Decibels; mean "
        "over seeds (95 % interval, Student's t over seeds)."
    ]
    for mode, rows in result["modes"].items():
        if not rows:
            continue
        reference, *others = rows.values()
        blocks.append(f"### {MODE_NAMES[mode]}")
        cells = [
            [
                row["label"],
                str(len(row["seeds"])),
                f"{row['iterations']:,}",
                *(interval_text(row["overall"][name]) for name in MEASURES),
            ]
            for row in rows.values()
        ]
        columns = ("variant", "seeds", "steps trained", *heads.values())
        blocks.append(Table(columns, cells).markdown())
        if others:
            blocks.append(
                f"Difference to *{reference['label']}*, paired by seed (the variants of a seed "
                "share the tokenizer):"
            )
            cells = []
            for row in others:
                differences = [row["overall"]["differences"][name] for name in COMPARED]
                cells.append([row["label"], *(interval_text(d, "+.2f") for d in differences)])
            blocks.append(Table(("variant", *(heads[name] for name in COMPARED)), cells).markdown())
        for game in reference["games"] if len(reference["games"]) > 1 else ():
            cells = [
                [row["label"], *(interval_text(row["games"][game][name]) for name in MEASURES)]
                for row in rows.values()
            ]
            blocks += [f"{game}:", Table(("variant", *heads.values()), cells).markdown()]
    return "\n\n".join(blocks) + "\n"


def _budget(budget: Mapping[str, Any]) -> str:
    if budget["cpu_seconds"] is not None:
        return f"{budget['cpu_seconds']:g} CPU-seconds on one thread"
    if budget["iterations"] is not None:
        return f"{budget['iterations']:,} steps"
    return "the preset's steps"


def plot_ablation(result: Mapping[str, Any]) -> bytes:
    """Return a PNG.

    Above, each measure with its interval and the single seeds; below, the gain over copying at each
    predicted frame.
    """
    heads, modes = _column_heads(result["settings"]), result["modes"]
    titles: dict[str, Any] = {"loc": "left", "fontsize": 9}
    figure = new_figure(4 * len(COMPARED), 8)
    grid = figure.add_gridspec(2, len(COMPARED) * len(modes))
    for column, name in enumerate(COMPARED):
        axes = figure.add_subplot(grid[0, column * len(modes) : (column + 1) * len(modes)])
        axes.set_title(f"{heads[name]}, dB", **titles)
        for number, (mode, rows) in enumerate(modes.items()):
            for index, row in enumerate(rows.values()):
                label = MODE_NAMES[mode] if column == index == 0 else None
                _draw_interval(
                    axes, row["overall"][name], -index - 0.25 * number, COLOURS[number], label
                )
        labels = [row["label"] for row in next(iter(modes.values())).values()]
        shown = labels if column == 0 else [""] * len(labels)
        axes.set_yticks(range(0, -len(labels), -1), shown, fontsize=7)
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for number, (mode, rows) in enumerate(modes.items()):
        width = len(COMPARED)
        axes = figure.add_subplot(grid[1, number * width : (number + 1) * width])
        axes.set_title(
            f"{MODE_NAMES[mode]}: PSNR over copying at each predicted frame, dB", **titles
        )
        for row in rows.values():
            means = [value["mean"] for value in row["by_step"]]
            axes.plot(range(1, len(means) + 1), means, marker="o", markersize=3, label=row["label"])
        axes.axhline(0, color="0.7", linewidth=0.8)
    return figure_png(figure)


def _draw_interval(
    axes: Axes, value: Mapping[str, Any], y: float, colour: str, label: str | None
) -> None:
    """Draw a mean with its interval as a bar, and the single seeds as small dots."""
    if value["mean"] is None:
        return
    axes.plot([value["mean"]], [y], "o", color=colour, label=label)
    seeds = value["values"]
    axes.plot(seeds, [y] * len(seeds), ".", color=colour, alpha=0.4, markersize=4)
    if value["low"] is not None:
        axes.plot([value["low"], value["high"]], [y, y], "-", color=colour, linewidth=1.5)
