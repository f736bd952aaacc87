"""Results of an ablation as JSON, Markdown and plot: means over seeds with 95 % intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from envs.utils.atomic_io import write_atomic, write_json_atomic
from experiments.studies.ablation_runs import AblationGrid, Variant
from experiments.studies.common import COLOURS, figure_png, gain, new_figure
from worldmodel.statistics import estimate


@dataclass(frozen=True)
class Measure:
    """One column: its head, what it reads from the figures of a cell in one mode, and whether it
    compares variants."""

    head: str
    of: Callable[[Mapping[str, Any]], float | None]
    differs: bool = True


MEASURES: dict[str, Measure] = {
    "reconstruction": Measure(
        "reconstruction", lambda f: f["reconstruction"]["psnr"], differs=False
    ),
    "one_step": Measure("1 step, over copying", lambda f: gain(f, "one_step")),
    "all_steps": Measure("{horizon} steps, over copying", lambda f: gain(f, "mean")),
    "moving": Measure(
        "{horizon} steps, moving pixels, over copying", lambda f: gain(f, "mean", "moving_psnr")
    ),
    "delta_psnr": Measure("delta-PSNR at {t}", lambda f: f["delta_psnr"]["mean"]),
}
MODE_WORDS = {"one_pass": "One pass", "autoregressive": "Autoregressive"}


def summarise(
    grid: AblationGrid,
    variants: Mapping[str, Variant],
    owners: Mapping[str, str],
    cells: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return all results as JSON data.

    {"settings", "modes": {mode: {variant: ROW}}}; ROW = {"label", "cells_of", "seeds",
    "iterations", "parameters", "overall": SET, "games": {game: SET}, "by_step"}; SET = {measure:
    {"mean", "low", "high", "values"}, "differences": the same, each seed's value less that of the
    first variant with the same seed}. Variants without a finished cell are left out.
    """
    modes = {}
    for mode in grid.modes:
        rows: dict[str, Any] = {}
        for name, variant in variants.items():
            mine = of_variant(cells, owners[name])
            if not mine:
                continue
            reference = of_variant(cells, owners[next(iter(variants))])
            games = list(next(iter(mine.values()))["measured"][mode]["games"])
            rows[name] = {
                "label": variant.label,
                "cells_of": owners[name],
                "seeds": list(mine),
                "iterations": next(iter(mine.values()))["iterations"],
                "parameters": next(iter(mine.values()))["parameters"],
                "overall": _set(mine, reference, mode),
                "games": {game: _set(mine, reference, mode, game) for game in games},
                "by_step": _by_step(mine, mode),
            }
        modes[mode] = rows
    return {"settings": grid.identity(), "modes": modes}


def of_variant(cells: Sequence[Mapping[str, Any]], owner: str) -> dict[int, Mapping[str, Any]]:
    """Return the finished cells of a variant by their seeds, ascending."""
    return {
        cell["seed"]: cell
        for cell in sorted(cells, key=lambda cell: cell["seed"])
        if cell["cell"] == owner
    }


def _set(
    mine: Mapping[int, Any], reference: Mapping[int, Any], mode: str, game: str | None = None
) -> dict[str, Any]:
    """Return the SET of one game or of all, see `summarise`."""

    def read(cells: Mapping[int, Any], measure: Measure) -> dict[int, float | None]:
        sets = {seed: cell["measured"][mode] for seed, cell in cells.items()}
        return {
            seed: measure.of(of["overall"] if game is None else of["games"][game])
            for seed, of in sets.items()
        }

    values = {name: read(mine, measure) for name, measure in MEASURES.items()}
    others = {name: read(reference, measure) for name, measure in MEASURES.items()}
    differences = {}
    for name, measure in MEASURES.items():
        pairs = [(value, others[name].get(seed)) for seed, value in values[name].items()]
        if measure.differs:
            differences[name] = interval(
                [a - b for a, b in pairs if a is not None and b is not None]
            )
    return {
        **{name: interval(list(of.values())) for name, of in values.items()},
        "differences": differences,
    }


def interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and 95 % interval (Student's t) over seeds; null where they are not defined."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "low": None, "high": None, "values": []}
    found = estimate(torch.tensor(known, dtype=torch.float64))
    low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
    return {"mean": found.mean, "low": low, "high": high, "values": known}


def _by_step(mine: Mapping[int, Any], mode: str) -> list[dict[str, Any]]:
    """Return the gain in PSNR over copying at each predicted frame."""
    gains = []
    for cell in mine.values():
        of = cell["measured"][mode]["overall"]
        pairs = zip(of["prediction"]["by_step"]["psnr"], of["copy"]["by_step"]["psnr"], strict=True)
        gains.append([made - copied for made, copied in pairs])
    return [interval(list(values)) for values in zip(*gains, strict=True)]


def told(value: Mapping[str, Any], sign: bool = False) -> str:
    """Return `3.21 (2.80 to 3.62)`; without an interval the mean alone."""
    if value["mean"] is None:
        return "-"
    form = "{:+.2f}" if sign else "{:.2f}"
    mean = form.format(value["mean"])
    return (
        mean
        if value["low"] is None
        else f"{mean} ({form.format(value['low'])} to {form.format(value['high'])})"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables: all games, differences to the first variant, each game."""
    settings = result["settings"]
    horizon, limit = settings["evaluate"]["horizon"], settings["evaluate"]["limit"]
    names = {"horizon": horizon, "t": min(4, horizon)}
    heads = {name: measure.head.format(**names) for name, measure in MEASURES.items()}
    windows = "all windows" if limit is None else f"at most {limit} windows"
    held_out = "held-out episodes" if settings["test_data"] else "the validation split"
    lines = [
        f"Preset `{settings['preset']}`; tokenizer: {_budget(settings['tokenizer'])}; "
        f"dynamics: {_budget(settings['dynamics'])}. "
        f"Measured on {windows} of each game of {held_out}, 2 frames given, {horizon} predicted "
        f"in {settings['evaluate']['steps']} sampling steps. Decibels; mean over seeds "
        "(95 % interval, Student's t over seeds).",
    ]
    for mode, rows in result["modes"].items():
        if not rows:
            continue
        first = next(iter(rows))
        lines += ["", f"### {MODE_WORDS[mode]}", ""]
        lines += _table(
            ("variant", "seeds", "steps trained", *heads.values()), _rows(rows, MEASURES)
        )
        differing = {name: measure for name, measure in MEASURES.items() if measure.differs}
        if len(rows) > 1:
            lines += [
                "",
                f"Difference to *{rows[first]['label']}*, paired by seed "
                "(the variants of a seed share the tokenizer):",
                "",
            ]
            lines += _table(
                ("variant", *(heads[name] for name in differing)),
                [
                    [
                        row["label"],
                        *(
                            told(row["overall"]["differences"][name], sign=True)
                            for name in differing
                        ),
                    ]
                    for name, row in rows.items()
                    if name != first
                ],
            )
        for game in rows[first]["games"] if len(rows[first]["games"]) > 1 else ():
            lines += ["", f"{game}:", ""]
            lines += _table(("variant", *heads.values()), _rows(rows, MEASURES, game))
    return "\n".join(lines) + "\n"


def _rows(
    rows: Mapping[str, Any], measures: Mapping[str, Measure], game: str | None = None
) -> list[list[str]]:
    made = []
    for row in rows.values():
        of = row["overall"] if game is None else row["games"][game]
        more = [str(len(row["seeds"])), f"{row['iterations']:,}"] if game is None else []
        made.append([row["label"], *more, *(told(of[name]) for name in measures)])
    return made


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _budget(budget: Mapping[str, Any]) -> str:
    if budget["cpu_seconds"] is not None:
        return f"{budget['cpu_seconds']:g} CPU-seconds on one thread"
    return (
        "the preset's steps" if budget["iterations"] is None else f"{budget['iterations']:,} steps"
    )


def tell(
    grid: AblationGrid,
    variants: Mapping[str, Variant],
    owners: Mapping[str, str],
    cells: Sequence[Mapping[str, Any]],
) -> str:
    """Return the tables of all games, for the terminal."""
    return markdown(summarise(grid, variants, owners, cells))


def write(
    grid: AblationGrid,
    variants: Mapping[str, Variant],
    owners: Mapping[str, str],
    cells: Sequence[Mapping[str, Any]],
) -> None:
    """Write ablation.json, ablation.md and ablation.png."""
    result = summarise(grid, variants, owners, cells)
    write_json_atomic(grid.out / "ablation.json", result)
    write_atomic(grid.out / "ablation.md", markdown(result).encode())
    write_atomic(grid.out / "ablation.png", plot(result))


def plot(result: Mapping[str, Any]) -> bytes:
    """Return a PNG: above, each measure with its interval and the single seeds; below, the gain
    over copying at each frame."""
    shown = [name for name in MEASURES if name != "reconstruction"]
    horizon = result["settings"]["evaluate"]["horizon"]
    figure = new_figure(4 * len(shown), 8)
    grid = figure.add_gridspec(2, len(shown) * len(result["modes"]))
    for place, name in enumerate(shown):
        width = len(result["modes"])
        axes = figure.add_subplot(grid[0, place * width : (place + 1) * width])
        axes.set_title(
            f"{MEASURES[name].head.format(horizon=horizon, t=min(4, horizon))}, dB",
            loc="left",
            fontsize=9,
        )
        for number, (mode, rows) in enumerate(result["modes"].items()):
            for place_y, row in enumerate(rows.values()):
                _point(
                    axes,
                    row["overall"][name],
                    -place_y - 0.25 * number,
                    MODE_WORDS[mode],
                    number,
                    not place_y,
                )
        labels = [row["label"] for row in next(iter(result["modes"].values())).values()]
        axes.set_yticks(
            range(0, -len(labels), -1), labels if place == 0 else [""] * len(labels), fontsize=7
        )
        axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        if place == 0:
            axes.legend(fontsize=7, frameon=False)
    width = len(shown)
    for number, (mode, rows) in enumerate(result["modes"].items()):
        axes = figure.add_subplot(grid[1, number * width : (number + 1) * width])
        axes.set_title(
            f"{MODE_WORDS[mode]}: PSNR over copying at each predicted frame, dB",
            loc="left",
            fontsize=9,
        )
        for row in rows.values():
            means = [value["mean"] for value in row["by_step"]]
            axes.plot(range(1, len(means) + 1), means, marker="o", markersize=3, label=row["label"])
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.legend(fontsize=7, frameon=False)
    return figure_png(figure)


def _point(
    axes: Any, value: Mapping[str, Any], y: float, name: str, number: int, named: bool
) -> None:
    """Draw a mean with its interval as a bar, and the single seeds as small dots."""
    if value["mean"] is None:
        return
    colour = COLOURS[number]
    axes.plot([value["mean"]], [y], "o", color=colour, label=name if named else None)
    axes.plot(
        value["values"], [y] * len(value["values"]), ".", color=colour, alpha=0.4, markersize=4
    )
    if value["low"] is not None:
        axes.plot([value["low"], value["high"]], [y, y], "-", color=colour, linewidth=1.5)
