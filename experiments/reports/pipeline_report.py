"""Sections of the pipeline's report: values for its template."""

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from envs.utils.progress import format_duration
from experiments.reports import figures
from experiments.reports.charts import NARROW, Bar, Series, bar_chart, line_chart
from experiments.reports.images import at_scale
from experiments.reports.results import (
    COPY,
    IN_WORDS,
    MODEL_NAMES,
    MODELS,
    TEST_NAMES,
    TESTS,
    EvalResults,
    Metrics,
    mean,
    read_metric,
    short_name,
    signed,
    verdict,
)
from experiments.reports.screens import ScreenStats, equal_frame_counts
from exploration.reward.token_entropy import CONTEXT
from exploration.rollout.snapshots import HEAT_HIGH
from worldmodel import GenieReduxG
from worldmodel.checkpoint import newest_checkpoint
from worldmodel.loading import load_upscaler

SeenBy = Mapping[str, Mapping[str, ScreenStats]]
"""Screens by data set and game."""


def number(value: float, digits: int = 1) -> str:
    """Return a number for the page; a dash where it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def top(plan: dict[str, Any], results: EvalResults, seen: SeenBy, root: Path) -> dict[str, Any]:
    """Return the title, the opening words and the main results."""
    games = [short_name(game) for game in plan["games"]]
    listed = ", ".join(games[:-1]) + (" and " if len(games) > 1 else "") + games[-1]
    total = format_duration(sum(stage_seconds(root).values()))
    return {
        "title": f"A world model of {listed}",
        "subtitle": f"preset {plan['preset']}, {datetime.date.today().isoformat()}",
        "lead": "A random agent played. A world model learnt from its play to predict the next "
        "frames from the previous ones and the buttons pressed. An agent whose only reward is the "
        "model's uncertainty explored the games, and the model learnt from the frames it "
        f"collected. The run took {total} and used neither human play nor the games' own rewards.",
        "cards": cards(results, seen),
        "footer": f"Created by autoexplore from {root.resolve().name}. Everything on this page "
        "comes from this one run and can be created again with `autoexplore report`.",
    }


def cards(results: EvalResults, seen: SeenBy) -> list[dict[str, str]]:
    """Return the main results, each next to its baseline."""
    copy, base, best = results.get(COPY), results.get("base"), results.get("explored")
    lowest = min(results.get("base", game=game).reconstruction for game in results.games)
    counts = [
        equal_frame_counts(seen["explored"][game], seen["more-random"][game])
        for game in played_by_both(seen)
    ]
    explored, random = sum(one for one, _ in counts), sum(other for _, other in counts)
    gain = best.mean_psnr - results.get("random").mean_psnr
    steps = f"{results.horizon} steps ahead"
    copying = "copying the last frame: {} dB"
    interval = f"95 % interval {delta_interval(best)}"
    if not delta_interval(best):
        interval = "too few episodes for an interval"
    rows = (
        (number(base.reconstruction), "dB", "reconstruction", f"lowest game {number(lowest)} dB"),
        (number(best.one_step), "dB", "one step ahead", copying.format(number(copy.one_step))),
        (
            number(best.mean_psnr),
            "dB",
            f"mean over {steps}",
            copying.format(number(copy.mean_psnr)),
        ),
        (number(best.delta, 2), "dB", "gained by knowing the true actions", interval),
        (signed(gain, 2), "dB", "explored against random play", f"same fine-tuning, {steps}"),
        (
            f"{explored:,}",
            "",
            "distinct screens the explorer saw",
            f"random agent, as many frames: {random:,}",
        ),
    )
    return [dict(zip(("value", "unit", "label", "note"), row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Column:
    """A column of a table. better: +1 where more is better, -1 where less is."""

    head: str
    value: Callable[[Metrics], float]
    better: int = 1
    digits: int = 1
    small: Callable[[Metrics], str] | None = None


def columns(results: EvalResults, *, distance: bool) -> list[Column]:
    """Return the columns of the tables. distance: with the Frechet distance."""
    steps = f"{results.horizon} steps, mean"
    shown = [
        Column("1 step, PSNR dB", lambda row: row.one_step),
        Column(f"{steps} PSNR dB", lambda row: row.mean_psnr),
        Column("moving pixels, PSNR dB", lambda row: mean(row.moving_psnr)),
        Column(f"{steps} SSIM", lambda row: mean(row.ssim), digits=3),
        Column("delta-PSNR dB", lambda row: row.delta, digits=2, small=delta_interval),
        Column("reconstruction, PSNR dB", lambda row: row.reconstruction),
    ]
    if distance:
        shown.append(Column(results.distance_name, lambda row: row.distance, better=-1))
    return shown


def delta_interval(metrics: Metrics) -> str:
    """Return the interval of delta-PSNR; nothing where it is unknown."""
    if not math.isfinite(metrics.delta_low):
        return ""
    return f"{metrics.delta_low:.2f} to {metrics.delta_high:.2f}"


def table(
    title: str, rows: Sequence[tuple[str, Metrics]], shown: Sequence[Column]
) -> dict[str, Any]:
    """Return rows of (model, metrics) as text; in each column the best model is marked."""
    cells: list[list[dict[str, Any]]] = [[] for _ in rows]
    for column in shown:
        values = [column.value(metrics) for _, metrics in rows]
        # Compared as shown, so that two values that look equal are no winner and loser.
        rounded = [round(value * column.better, column.digits) for value in values]
        finite = [value for value in rounded if math.isfinite(value)]
        best = max(finite) if len(set(finite)) > 1 else None
        for place, (_, metrics) in enumerate(rows):
            cells[place].append(
                {
                    "text": number(values[place], column.digits),
                    "best": rounded[place] == best,
                    "small": column.small(metrics) if column.small else "",
                }
            )
    return {
        "title": title,
        "columns": [column.head for column in shown],
        "rows": [
            {"name": MODEL_NAMES[model], "style": model, "cells": row}
            for (model, _), row in zip(rows, cells, strict=True)
        ],
    }


def comparison(results: EvalResults) -> dict[str, Any]:
    """Return the comparison of the models in words, tables and bars."""

    def rows(test: str = "both", game: str = "all") -> list[tuple[str, Metrics]]:
        return [(model, results.get(model, test, game)) for model in (COPY, *MODELS)]

    without, with_distance = (columns(results, distance=distance) for distance in (False, True))
    tables = [table("All held-out episodes", rows(), without)]
    for test in TESTS:
        tables.append(table(f"Only {TEST_NAMES[test]} episodes", rows(test), with_distance))
    for game in results.games:
        tables.append(table(short_name(game), rows(game=game), without))

    bars, gains = [], []
    for game in [*results.games, *(["all"] if len(results.games) > 1 else [])]:
        group = "all" if game == "all" else short_name(game)
        copied = results.get(COPY, game=game).mean_psnr
        for model in MODELS:
            row, name = results.get(model, game=game), MODEL_NAMES[model]
            bars.append(Bar(group, name, model, row.delta, row.delta_low, row.delta_high))
            gains.append(Bar(group, name, model, row.mean_psnr - copied, math.nan, math.nan))
    title = f"Mean PSNR over {results.horizon} steps, above copying"
    return {
        "verdict": verdict(results),
        "tables": tables,
        "table_note": f"{results.get('base').windows} clips of {results.horizon} predicted frames "
        "each, from held-out episodes of both agents. A dot marks the best of a column. Moving "
        "pixels: those that differ from the last given frame. Delta-PSNR: PSNR at the fourth frame "
        "with the true actions minus with random ones, the mean over clips and its 95 % interval.",
        "result_charts": [
            bar_chart(bars, y_label="delta-PSNR, dB", title="Gain from the true actions"),
            bar_chart(gains, y_label="dB above copying", title=title),
        ],
    }


def games(root: Path, plan: dict[str, Any], results: EvalResults) -> dict[str, Any]:
    """Return film strips and animations of every game."""
    trained = newest_checkpoint(root / "upscaler")
    upscaler = None if trained is None else load_upscaler(trained)
    models = {name: GenieReduxG.load(root / "models" / name) for name in MODELS}
    sampling = {key: plan["evaluate"][key] for key in ("steps", "mode") if key in plan["evaluate"]}
    sampling["seed"] = plan["seed"]
    shown = []
    for game in plan["games"]:
        strips, animation = [], None
        for test in TESTS:
            folder = root / "data" / f"test-{test}"
            excerpt = figures.choose_excerpt(folder, game, CONTEXT + results.horizon)
            if excerpt is None:
                continue
            rows, predicted = figures.film(excerpt, models, MODEL_NAMES, sampling)
            caption = f"One of {TEST_NAMES[test]} held-out episodes ({excerpt.session}), "
            caption += f"from frame {excerpt.start}."
            heads = figures.column_heads(excerpt)
            strips.append({"times": heads, "rows": rows, "caption": caption})
            # The explorer's episode is animated, if there is one.
            films = [
                at_scale(frames, upscaler, 4) for frames in (excerpt.shown, *predicted.values())
            ]
            animation = figures.gif_picture([frames for frames, _ in films], films[0][1])
        if animation is not None:
            panels = ["Real", *(MODEL_NAMES[name] for name in MODELS)]
            name = short_name(game)
            shown.append({"name": name, "panels": panels, "gif": animation, "strips": strips})
    text = (
        f"Two frames and the buttons pressed are given, {results.horizon} frames are predicted. "
        "The excerpts were chosen by how much moves in them (the upper quartile of their game), "
        "not by how well a model predicts them. Below each time stands the button that led to its "
        "frame."
    )
    if upscaler:
        text += " The animations are enlarged by the upscaler in this run's folder."
    return {"games": shown, "games_text": text, "heat_high": number(HEAT_HIGH)}


def horizon(results: EvalResults) -> dict[str, Any]:
    """Return PSNR against the number of steps ahead."""
    charts = []
    steps = range(1, results.horizon + 1)
    for game in results.games:
        lines = [
            Series(MODEL_NAMES[model], model, steps, results.get(model, game=game).psnr)
            for model in (COPY, *MODELS)
        ]
        charts.append(
            line_chart(
                lines,
                x_label="steps ahead",
                y_label="PSNR, dB",
                title=short_name(game),
                markers=True,
                width=NARROW,
            )
        )
    above = [m for m in MODELS if results.get(m).psnr[-1] > results.get(COPY).psnr[-1]]
    names = " and ".join(IN_WORDS[model] for model in above) or "none of the models"
    verb = "are" if len(above) > 1 else "is"
    return {
        "horizon_text": "Quality of each model's predictions, and of copying the last given frame, "
        f"against the number of steps ahead. At step {results.horizon}, {names} {verb} above "
        "copying, over all games.",
        "horizon_charts": charts,
    }


def played_by_both(seen: SeenBy) -> list[str]:
    """Return the games that both agents played."""
    return [game for game in seen["explored"] if game in seen["more-random"]]


def screens(seen: SeenBy) -> dict[str, Any]:
    """Return the distinct screens of the two agents after equally many frames."""
    charts, montages, words = [], [], []
    for game in played_by_both(seen):
        title = short_name(game)
        explored, random = seen["explored"][game], seen["more-random"][game]
        lines = [
            Series("random agent", "random", *zip(*random.curve, strict=True)),
            Series("explorer", "explored", *zip(*explored.curve, strict=True)),
        ]
        x_label, y_label = "frames played", "distinct screens"
        charts.append(
            line_chart(lines, x_label=x_label, y_label=y_label, title=title, width=NARROW)
        )
        before = [random, *([seen["random"][game]] if game in seen["random"] else [])]
        sides = figures.screen_montages(random, explored, before)
        montages.append({"name": title, "sides": sides})
        one, other = equal_frame_counts(explored, random)
        more = "as many as"
        if one != other:
            share = abs(one - other) / max(other, 1)
            more = f"{share:.0%} {'more' if one > other else 'fewer'} than"
        words.append(f"{title}: {one:,}, {more} the random agent's {other:,}")
    return {
        "screens_text": [
            "Distinct screens seen in equally many frames. Two frames count as the same screen "
            "where their grey levels agree, to 16 levels, in each of 8 by 8 cells.",
            f"The explorer saw, by game: {'; '.join(words)}.",
        ],
        "screen_charts": charts,
        "montages": montages,
    }


def timings_and_settings(root: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the duration of each stage, and the settings."""
    timings = stage_seconds(root)
    longest = max(timings.values())
    stages = [
        {"name": name, "share": round(100 * seconds / longest, 1), "text": format_duration(seconds)}
        for name, seconds in timings.items()
    ]
    settings = []
    for name, value in plan.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in inner:
            label = f"{name} {key}".replace("_", " ").strip()
            settings.append((label, ", ".join(item) if isinstance(item, list) else item))
    return {
        "timings": stages,
        "settings": settings,
        "run_text": f"{len(stages)} stages in {format_duration(sum(timings.values()))}, without "
        "this report.",
    }


def stage_seconds(root: Path) -> dict[str, float]:
    """Return the seconds of each stage but the report, which can so be created again unchanged."""
    timings = json.loads((root / "timings.json").read_text())["seconds"]
    return {name: seconds for name, seconds in timings.items() if name != "report"}


def codes(root: Path, length: int) -> tuple[str, Markup]:
    """Return the usage of the codebook in words and as a curve."""
    model = GenieReduxG.load(root / "models" / "base")
    use = figures.code_use(model, [root / "data" / f"test-{test}" for test in TESTS], length)
    total = len(use.shares)
    words = (
        f"On held-out frames the tokenizer uses {use.used:,} of its {total:,} codes, with the "
        f"entropy of {use.perplexity:.0f} equally frequent ones. Its most frequent code is that of "
        f"{use.static:.0%} of the patches that did not change since the previous frame and of "
        f"{use.moving:.0%} of the others"
    )
    words += ": a code for static patches, as in the paper." if use.static > 2 * use.moving else "."
    ranks = sorted({round(10 ** (step / 20)) for step in range(61)} & set(range(1, total + 1)))
    shares = [use.shares[rank - 1] for rank in ranks]
    chart = line_chart(
        [Series("codes, most frequent first", "base", ranks, shares)],
        x_label="rank",
        y_label="share of tokens",
        title="Codebook: frequency of each code",
        log_x=True,
        log_y=True,
    )
    return words, chart


def training(root: Path, results: EvalResults) -> dict[str, Any]:
    """Return the training curves of the parts."""
    words, code_chart = codes(root, results.horizon + 2)
    charts = []
    for component, title, y_label, metric in (
        ("tokenizer", "Tokenizer: loss", "loss", "loss"),
        ("tokenizer", "Tokenizer: reconstruction", "PSNR, dB", "psnr"),
        ("dynamics", "Dynamics: loss", "loss", "loss"),
        ("dynamics", "Dynamics: accuracy on masked tokens", "share", "accuracy"),
    ):
        run = root / component
        lines = [
            Series("training", "base", *read_metric(run, f"train/{metric}")),
            Series("validation", "explored", *read_metric(run, f"validation/{metric}")),
        ]
        charts.append(_training_chart(title, y_label, lines))
    for component, title, y_label, metric in (
        ("decoder", "Decoder fine-tuning", "PSNR, dB", "psnr"),
        ("dynamics", "Dynamics fine-tuning", "loss", "loss"),
    ):
        lines = [
            Series(
                MODEL_NAMES[side],
                side,
                *read_metric(root / "finetune" / side / component, f"train/{metric}"),
            )
            for side in TESTS
        ]
        charts.append(_training_chart(title, y_label, lines))
    reward = Series("training", "base", *read_metric(root / "explore", "explore/reward"))
    charts.append(
        line_chart(
            [reward], x_label="epochs", y_label="mean uncertainty", title="Reward of the explorer"
        )
    )
    return {"training_text": words, "training_charts": [*charts, code_chart]}


def _training_chart(title: str, y_label: str, lines: Sequence[Series]) -> Markup:
    return line_chart(lines, x_label="steps", y_label=y_label, title=title, log_y=y_label == "loss")
