"""The sections of the report, from figures to what the template shows."""

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from envs.utils.progress import format_duration
from experiments.reports.charts import NARROW, Bar, Series, bar_chart, line_chart
from experiments.reports.results import (
    COPY,
    IN_WORDS,
    MODEL_NAMES,
    MODELS,
    TEST_NAMES,
    TESTS,
    EvalResults,
    Figures,
    mean,
    read_metric,
    short_name,
    signed,
    verdict,
)
from experiments.reports.screens import ScreenStats, equal_frame_counts

SeenBy = Mapping[str, Mapping[str, ScreenStats]]


def number(value: float, digits: int = 1) -> str:
    """A figure for the page; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def top(plan: dict[str, Any], measured: EvalResults, seen: SeenBy, root: Path) -> dict[str, Any]:
    """Title, the opening words and the main figures."""
    games = [short_name(game) for game in plan["games"]]
    listed = ", ".join(games[:-1]) + (" and " if len(games) > 1 else "") + games[-1]
    total = sum(stage_seconds(root).values())
    return {
        "title": f"A world model of {listed}",
        "subtitle": f"preset {plan['preset']}, {datetime.date.today().isoformat()}",
        "lead": "A random agent played. A world model learnt from it to predict the next frames from the last ones and "
        "the buttons pressed. An agent whose only reward is the model's uncertainty went where it was unsure, and the "
        f"model learnt from what it brought back. The run took {format_duration(total)} and used no human play and no game's "
        "own reward.",
        "cards": cards(measured, seen),
        "footer": f"Drawn by autoexplore from {root.resolve().name}. Every picture and figure on this page comes from "
        "this one run and can be drawn again with `autoexplore report`.",
    }


def cards(measured: EvalResults, seen: SeenBy) -> list[dict[str, str]]:
    """The main figures: each with what it has to be compared with."""
    copy, base, best = measured.get(COPY), measured.get("base"), measured.get("explored")
    lowest = min(measured.get("base", game=game).reconstruction for game in measured.games)
    pairs = [
        equal_frame_counts(seen["explored"][game], seen["more-random"][game])
        for game in both_saw(seen)
    ]
    explored, random = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    gain = best.whole - measured.get("random").whole
    h = measured.horizon
    return [
        card(
            number(base.reconstruction),
            "dB",
            "frames rebuilt from tokens",
            f"lowest game {number(lowest)} dB",
        ),
        card(
            number(best.one_step),
            "dB",
            "one step ahead",
            f"copying the last frame: {number(copy.one_step)} dB",
        ),
        card(
            number(best.whole),
            "dB",
            f"mean over {h} steps ahead",
            f"copying the last frame: {number(copy.whole)} dB",
        ),
        card(
            number(best.delta, 2),
            "dB",
            "gained by knowing the true actions",
            f"95 % interval {interval(best)}"
            if interval(best)
            else "too few episodes for an interval",
        ),
        card(
            signed(gain, 2),
            "dB",
            "explored against random play",
            f"fine-tuned alike, {h} steps ahead",
        ),
        card(
            f"{explored:,}",
            "",
            "distinct screens the explorer saw",
            f"random agent, as many frames: {random:,}",
        ),
    ]


def card(value: str, unit: str, label: str, note: str) -> dict[str, str]:
    return {"value": value, "unit": unit, "label": label, "note": note}


@dataclass(frozen=True)
class Column:
    """A column of a table of figures. better: +1 where more is better, -1 where less is."""

    head: str
    value: Callable[[Figures], float]
    better: int = 1
    digits: int = 1
    small: Callable[[Figures], str] | None = None


def columns(measured: EvalResults, *, distance: bool) -> list[Column]:
    h = measured.horizon
    shown = [
        Column("1 step, PSNR dB", lambda f: f.one_step),
        Column(f"{h} steps, mean PSNR dB", lambda f: f.whole),
        Column("moving pixels, PSNR dB", lambda f: mean(f.moving)),
        Column(f"{h} steps, mean SSIM", lambda f: mean(f.ssim), digits=3),
        Column("delta-PSNR dB", lambda f: f.delta, digits=2, small=interval),
        Column("rebuilt, PSNR dB", lambda f: f.reconstruction),
    ]
    if distance:
        shown.append(Column(measured.distance_name, lambda f: f.distance, better=-1))
    return shown


def interval(figures: Figures) -> str:
    if not math.isfinite(figures.delta_low):
        return ""
    return f"{figures.delta_low:.2f} to {figures.delta_high:.2f}"


def table(
    title: str, rows: Sequence[tuple[str, Figures]], shown: Sequence[Column], corner: str
) -> dict[str, Any]:
    """Rows of (model, figures); in each column the best of the models is marked."""
    made = []
    for model, figures in rows:
        cells = []
        for column in shown:
            rounded = [
                round(column.value(other) * column.better, column.digits) for _, other in rows
            ]
            value = round(column.value(figures) * column.better, column.digits)
            finite = [other for other in rounded if math.isfinite(other)]
            best = (
                len(finite) > 1
                and math.isfinite(value)
                and value == max(finite)
                and min(finite) < max(finite)
            )
            small = column.small(figures) if column.small else ""
            cells.append(
                {"text": number(column.value(figures), column.digits), "best": best, "small": small}
            )
        made.append({"name": MODEL_NAMES[model], "style": model, "cells": cells})
    return {
        "title": title,
        "corner": corner,
        "columns": [column.head for column in shown],
        "rows": made,
    }


def result(measured: EvalResults) -> dict[str, Any]:
    """The comparison: words, tables, bars."""
    models = (COPY, *MODELS)
    both = table(
        "All held-out episodes",
        [(m, measured.get(m)) for m in models],
        columns(measured, distance=False),
        "Model",
    )
    tables = [both]
    for test in TESTS:
        rows = [(m, measured.get(m, test)) for m in models]
        tables.append(
            table(
                f"Only {TEST_NAMES[test]} episodes", rows, columns(measured, distance=True), "Model"
            )
        )
    for game in measured.games:
        rows = [(m, measured.get(m, game=game)) for m in models]
        tables.append(table(short_name(game), rows, columns(measured, distance=False), "Model"))
    games = [*measured.games, *(["all"] if len(measured.games) > 1 else [])]
    bars, gains = [], []
    for game in games:
        for model in MODELS:
            f = measured.get(model, game=game)
            bars.append(
                Bar(group(game), MODEL_NAMES[model], model, f.delta, f.delta_low, f.delta_high)
            )
            gain = f.whole - measured.get(COPY, game=game).whole
            gains.append(Bar(group(game), MODEL_NAMES[model], model, gain, math.nan, math.nan))
    h = measured.horizon
    return {
        "verdict": verdict(measured),
        "tables": tables,
        "table_note": f"{measured.get('base').windows} windows of {h} predicted frames each, from held-out "
        "episodes of both agents. A dot marks the best of a column. Moving pixels: those that differ from the last "
        "frame given. Delta-PSNR: PSNR at the fourth frame with the true actions minus with random ones, the mean over "
        "windows and its 95 % interval.",
        "result_charts": [
            bar_chart(
                bars, y_label="delta-PSNR, dB", title="How much the controls matter to the model"
            ),
            bar_chart(
                gains, y_label="dB above copying", title=f"Mean PSNR over {h} steps, above copying"
            ),
        ],
    }


def group(game: str) -> str:
    return "all" if game == "all" else short_name(game)


def games(root: Path, plan: dict[str, Any], measured: EvalResults) -> dict[str, Any]:
    """Film strips and moving pictures of every game."""
    from experiments.reports import figures
    from experiments.reports.images import at_scale
    from worldmodel import GenieReduxG
    from worldmodel.checkpoint import newest_checkpoint
    from worldmodel.loading import load_upscaler

    trained = newest_checkpoint(root / "upscaler")
    upscaler = None if trained is None else load_upscaler(trained)
    models = {name: GenieReduxG.load(root / "models" / name) for name in MODELS}
    h = measured.horizon
    sampling = {key: plan["evaluate"][key] for key in ("steps", "mode") if key in plan["evaluate"]}
    shown = []
    for game in plan["games"]:
        strips, moving = [], None
        for test in TESTS:
            window = figures.choose_window(
                root / "data" / f"test-{test}", game, figures.CONTEXT + h
            )
            if window is None:
                continue
            rows, made = figures.film(
                window, models, MODEL_NAMES, {**sampling, "seed": plan["seed"]}
            )
            caption = f"One of {TEST_NAMES[test]} held-out episodes ({window.session}), from frame {window.start}."
            strips.append(
                {"times": figures.times(window, figures.CONTEXT), "rows": rows, "caption": caption}
            )
            if moving is None or test == "explored":
                drawn = [at_scale(frames, upscaler, 4) for frames in (window.shown, *made.values())]
                moving = figures.gif_picture(
                    [frames for frames, _ in drawn], drawn[0][1], figures.CONTEXT
                )
        if moving is not None:
            panels = ["Real", *(MODEL_NAMES[name] for name in MODELS)]
            shown.append(
                {"name": short_name(game), "panels": panels, "gif": moving, "strips": strips}
            )
    return {
        "games": shown,
        "games_text": f"Two frames and the buttons pressed are given, {h} frames are predicted. The windows were "
        "chosen by how much moves in them (the upper quartile of their game), not by how well a model does. Below each "
        "time stands the button that led to its frame."
        + (
            " The moving pictures are enlarged by the upscaler in this run's folder."
            if upscaler
            else ""
        ),
        "heat_high": number(figures.HEAT_HIGH),
    }


def horizon(measured: EvalResults) -> dict[str, Any]:
    """PSNR against the number of steps ahead."""
    charts = []
    for game in measured.games:
        lines = [
            Series(
                MODEL_NAMES[m], m, range(1, measured.horizon + 1), measured.get(m, game=game).psnr
            )
            for m in (COPY, *MODELS)
        ]
        title = short_name(game)
        charts.append(
            line_chart(
                lines,
                x_label="steps ahead",
                y_label="PSNR, dB",
                title=title,
                markers=True,
                width=NARROW,
            )
        )
    beats = [m for m in MODELS if measured.get(m).psnr[-1] > measured.get(COPY).psnr[-1]]
    names = " and ".join(IN_WORDS[m] for m in beats) or "none of the models"
    last = f"At step {measured.horizon}, {names} {'are' if len(beats) > 1 else 'is'} above copying, over all games."
    return {
        "horizon_text": "How fast predictions fade: each model, and copying the last frame given, against the number "
        f"of steps ahead. {last}",
        "horizon_charts": charts,
    }


def both_saw(seen: SeenBy) -> list[str]:
    """The games that both agents played."""
    return [game for game in seen["explored"] if game in seen["more-random"]]


def screens(seen: SeenBy) -> dict[str, Any]:
    """Where the two agents went, frame for frame."""
    from experiments.reports.figures import screen_montages

    charts, montages, words = [], [], []
    for game in both_saw(seen):
        explored, random = seen["explored"][game], seen["more-random"][game]
        lines = [
            Series("random agent", "random", *zip(*random.curve, strict=True)),
            Series("explorer", "explored", *zip(*explored.curve, strict=True)),
        ]
        title = short_name(game)
        charts.append(
            line_chart(
                lines,
                x_label="frames played",
                y_label="distinct screens",
                title=title,
                width=NARROW,
            )
        )
        before = [random, *([seen["random"][game]] if game in seen["random"] else [])]
        montages.append({"name": title, "sides": screen_montages(random, explored, before)})
        e, r = equal_frame_counts(explored, random)
        more = (
            "as many as"
            if e == r
            else f"{abs(e - r) / max(r, 1):.0%} {'more' if e > r else 'fewer'} than"
        )
        words.append(f"{title}: {e:,}, {more} the random agent's {r:,}")
    return {
        "screens_text": [
            "Distinct screens seen in equally many frames. Two frames count as the same screen where their grey levels "
            "agree, to 16 levels, in each of 8 by 8 cells.",
            f"The explorer saw, by game: {'; '.join(words)}.",
        ],
        "screen_charts": charts,
        "montages": montages,
    }


def the_run(root: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """How long each stage took, and the settings."""
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
        "run_text": f"{len(stages)} stages in {format_duration(sum(timings.values()))}, before this page was drawn.",
    }


def stage_seconds(root: Path) -> dict[str, float]:
    """Seconds of each stage before this one: drawing the page again gives the same page."""
    timings = json.loads((root / "timings.json").read_text())["seconds"]
    return {name: seconds for name, seconds in timings.items() if name != "report"}


def codes(root: Path, length: int) -> tuple[str, Markup]:
    """What the codebook is used for, in words and as a curve."""
    from experiments.reports.figures import code_use
    from worldmodel import GenieReduxG

    model = GenieReduxG.load(root / "models" / "base")
    use = code_use(model, [root / "data" / f"test-{test}" for test in TESTS], length)
    total = len(use.shares)
    words = (
        f"On held-out frames the tokenizer uses {use.used:,} of its {total:,} codes, as evenly as "
        f"{use.perplexity:.0f} equal ones. Its commonest code stands on {use.static:.0%} of the patches in which "
        f"nothing changed since the frame before and on {use.moving:.0%} of the others"
        + (
            ": a code for standing still, as the paper found."
            if use.static > 2 * use.moving
            else "."
        )
    )
    ranks = sorted({round(10 ** (step / 20)) for step in range(61)} & set(range(1, total + 1)))
    line = Series("codes, commonest first", "base", ranks, [use.shares[rank - 1] for rank in ranks])
    title = "Codebook: how often each code is used"
    return words, line_chart(
        [line], x_label="rank", y_label="share of tokens", title=title, log_x=True, log_y=True
    )


def training(root: Path, measured: EvalResults) -> dict[str, Any]:
    """How the parts learnt."""
    words, code_chart = codes(root, measured.horizon + 2)
    tokenizer, dynamics, explorer = root / "tokenizer", root / "dynamics", root / "explore"
    tuned = {side: root / "finetune" / side for side in TESTS}

    def curve(run: Path, name: str, style: str, label: str) -> Series:
        return Series(label, style, *read_metric(run, name))

    def chart(title: str, y: str, *lines: Series, x: str = "steps") -> Markup:
        return line_chart(lines, x_label=x, y_label=y, title=title, log_y=y == "loss")

    def sides(part: str, name: str) -> list[Series]:
        return [
            curve(tuned[side] / part, name, side, MODEL_NAMES[side])
            for side in ("random", "explored")
        ]

    charts = [
        chart(
            "Tokenizer: loss",
            "loss",
            curve(tokenizer, "train/loss", "base", "training"),
            curve(tokenizer, "validation/loss", "explored", "validation"),
        ),
        chart(
            "Tokenizer: rebuilt frames",
            "PSNR, dB",
            curve(tokenizer, "train/psnr", "base", "training"),
            curve(tokenizer, "validation/psnr", "explored", "validation"),
        ),
        chart(
            "Dynamics: loss",
            "loss",
            curve(dynamics, "train/loss", "base", "training"),
            curve(dynamics, "validation/loss", "explored", "validation"),
        ),
        chart(
            "Dynamics: masked tokens guessed right",
            "share",
            curve(dynamics, "train/accuracy", "base", "training"),
            curve(dynamics, "validation/accuracy", "explored", "validation"),
        ),
        chart("Decoder fine-tuning", "PSNR, dB", *sides("decoder", "train/psnr")),
        chart("Dynamics fine-tuning", "loss", *sides("dynamics", "train/loss")),
        chart(
            "Explorer: its reward",
            "mean uncertainty",
            curve(explorer, "explore/reward", "base", "while it learns"),
            x="epochs",
        ),
    ]
    return {"training_text": words, "training_charts": [*charts, code_chart]}
