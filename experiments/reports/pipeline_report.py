"""Report of a pipeline's run: one page with the comparison of explored and random play."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from envs.utils.images import gif
from envs.utils.progress import format_duration
from experiments.reports import figures
from experiments.reports.charts import NARROW, ChartBar, Series, bar_chart, line_chart
from experiments.reports.comparison import (
    MODEL_NAMES,
    MODEL_PHRASES,
    PLAYERS,
    TEST_NAMES,
    Column,
    describe_comparison,
    describe_main_gain,
    format_number,
    headline,
    main_test,
    metrics_table,
    signed,
    table_columns,
)
from experiments.reports.explore_report import explore_sections
from experiments.reports.images import at_scale
from experiments.reports.page import embed_picture, write_page
from experiments.reports.places import draw_places, load_models, sampling_of
from experiments.reports.results import COPY, EvalResults, game_title, read_metric, read_results
from experiments.reports.screens import ScreenStats, equal_frame_counts, seen_by_game
from exploration.rollout.snapshots import HEAT_HIGH
from worldmodel import GenieReduxG
from worldmodel.checkpoint import newest_checkpoint
from worldmodel.config import CONTEXT, Precision
from worldmodel.loading import load_upscaler

SeenBy = Mapping[str, Mapping[str, ScreenStats]]
"""Screens by data set and game."""


def build_pipeline_report(root: Path, out: Path, precision: Precision = "auto") -> list[str]:
    """Write <out>/index.html for the run in `root`; return its main results as lines of text.

    `precision` is that of the models, with auto the run's.
    """
    plan: dict[str, Any] = json.loads((root / "config.json").read_text())["pipeline"]
    if precision == "auto":
        precision = plan["precision"]
    results = read_results(root / "evaluation", plan["explorers"], plan["tests"])
    data_sets = ("random", "more-random", *results.explorers)
    seen = {name: seen_by_game(root / "data" / name) for name in data_sets}
    counts = {
        explorer: {
            game: equal_frame_counts(explored, seen["more-random"][game])
            for game, explored in seen[explorer].items()
            if game in seen["more-random"]
        }
        for explorer in results.explorers
    }
    # The report's own time is left out, so that creating it again gives the same page.
    seconds = json.loads((root / "timings.json").read_text())["seconds"]
    seconds.pop("report", None)
    games = [game_title(game) for game in plan["games"]]
    models = load_models(root, results.models, precision)
    places = [draw_places(root, game, plan, results, models) for game in seen["more-random"]]
    test = main_test(results.tests)
    gains = {name: results.gain(results.main, test, name) for name in ("psnr", "delta_psnr")}
    about_agent = []
    if "agent" in results.explorers:
        about_agent = explore_sections(root / "explore", plan["games"])
    write_page(
        out,
        root,
        f"preset {plan['preset']}",
        "report.html.j2",
        title="A world model of " + " and ".join(filter(None, [", ".join(games[:-1]), games[-1]])),
        lead=describe_main_gain(test, results.main, gains),
        about="A random agent played. A world model learned from its play to predict the next "
        "frames from the previous ones and the buttons pressed. Explorers that go where the model "
        "is uncertain played the games, and the model learned from the frames they collected. "
        f"The run took {format_duration(sum(seconds.values()))}; its training used neither human "
        "play nor the games' own rewards.",
        films=[film for place in places for film in place.films.values()],
        maps=[place.map for place in places],
        cards=_cards(results, list(counts[results.main].values())),
        explorer=about_agent,
        **_comparison(results),
        **_predictions(root, plan, results, models),
        **_horizon(results),
        **_screens(seen, counts),
        **_training(root, results),
        **_timings_and_settings(seconds, plan),
    )
    lines = []
    for explorer, by_game in counts.items():
        screens = ", ".join(
            f"{game_title(game)} {explored:,} against {random:,}"
            for game, (explored, random) in by_game.items()
        )
        lines.append(f"Distinct screens, {PLAYERS[explorer]} against random agent: {screens}")
    return [*headline(results), *lines]


def _cards(results: EvalResults, counts: Sequence[tuple[int, int]]) -> list[dict[str, str]]:
    """Return the main results, each next to its baseline."""
    copy, base, best = results.get(COPY), results.get("base"), results.get(results.main)
    lowest = min(results.get("base", game=game).reconstruction for game in results.games)
    explored, random = (sum(sides) for sides in zip(*counts, strict=True)) if counts else (0, 0)
    gain = best.mean_psnr - results.get("random").mean_psnr
    steps = f"{results.horizon} steps ahead"
    copying = "copying the last frame: {} dB"
    interval = "too few episodes for an interval"
    if best.delta_interval:
        interval = f"95 % interval {best.delta_interval}"
    number = format_number
    rows = (
        (number(base.reconstruction), "dB", "reconstruction", f"lowest game {number(lowest)} dB"),
        (number(best.one_step), "dB", "one step ahead", copying.format(number(copy.one_step))),
        (number(best.mean_psnr), "dB", f"mean, {steps}", copying.format(number(copy.mean_psnr))),
        (number(best.delta, 2), "dB", "gained by knowing the true actions", interval),
        (
            signed(gain, 2),
            "dB",
            f"{results.main} against random play",
            f"same fine-tuning, {steps}",
        ),
        (
            f"{explored:,}",
            "",
            f"distinct screens the {PLAYERS[results.main]} saw",
            f"random agent, as many frames: {random:,}",
        ),
    )
    return [dict(zip(("value", "unit", "label", "note"), row, strict=True)) for row in rows]


def _comparison(results: EvalResults) -> dict[str, Any]:
    """Return the comparison of the models in words, tables and bars."""
    columns = table_columns(results, distance=False)

    def table(title: str, columns: Sequence[Column], **where: str) -> dict[str, Any]:
        rows = [(model, results.get(model, **where)) for model in (COPY, *results.models)]
        return metrics_table(title, rows, columns)

    tables = [table("All held-out episodes", columns)]
    tables += [
        table(f"Only {TEST_NAMES[test]}", table_columns(results, distance=True), test=test)
        for test in results.tests
    ]
    tables += [table(game_title(game), columns, game=game) for game in results.games]

    bars, gains = [], []
    for game in [*results.games, *(["all"] if len(results.games) > 1 else [])]:
        copied = results.get(COPY, game=game).mean_psnr
        for model in results.models:
            row, names = results.get(model, game=game), (game_title(game), MODEL_NAMES[model])
            bars.append(ChartBar(*names, model, row.delta, row.delta_low, row.delta_high))
            gains.append(ChartBar(*names, model, row.mean_psnr - copied))
    title = f"Mean PSNR over {results.horizon} steps, above copying"
    return {
        "comparison": describe_comparison(results),
        "tables": tables,
        "table_note": f"{results.get('base').windows} clips of {results.horizon} predicted frames "
        "each, from held-out episodes. A dot marks the best of a column. Moving "
        "pixels: those that differ from the last given frame. Delta-PSNR: PSNR at the fourth frame "
        "with the true actions minus with random ones, the mean over clips and its 95 % interval.",
        "result_charts": [
            bar_chart(bars, "delta-PSNR, dB", "Gain from the true actions"),
            bar_chart(gains, "dB above copying", title),
        ],
    }


def _predictions(
    root: Path, plan: dict[str, Any], results: EvalResults, models: Mapping[str, GenieReduxG]
) -> dict[str, Any]:
    """Return film strips and animations of every game."""
    checkpoint = newest_checkpoint(root / "upscaler")
    upscaler = None if checkpoint is None else load_upscaler(checkpoint)
    sampling = sampling_of(plan)
    games = []
    for game in plan["games"]:
        strips, animation = [], None
        for test in results.tests:
            folder = root / "data" / f"test-{test}"
            excerpt = figures.choose_excerpt(folder, game, CONTEXT + results.horizon)
            if excerpt is None:
                continue
            rows, predicted = figures.film_rows(excerpt, models, MODEL_NAMES, sampling)
            caption = f"A held-out episode of {TEST_NAMES[test]} ({excerpt.session}), "
            caption += f"from frame {excerpt.start}."
            heads = figures.column_heads(excerpt)
            strips.append({"times": heads, "rows": rows, "caption": caption})
            # The last test set is animated.
            clips = [at_scale(frames, upscaler, 4) for frames in (excerpt.shown, *predicted)]
            animation = gif([frames for frames, _ in clips], clips[0][1], CONTEXT)
        if animation is not None:
            panels = ["Real", *(MODEL_NAMES[name] for name in results.models)]
            picture = embed_picture(animation)
            name = game_title(game)
            games.append({"name": name, "panels": panels, "gif": picture, "strips": strips})
    text = (
        f"Two frames and the buttons pressed are given, {results.horizon} frames are predicted. "
        "The excerpts were chosen by the amount of motion in them (the upper quartile of their "
        "game), not by how well a model predicts them. Below each time is the button that led to "
        "its frame."
    )
    if upscaler:
        text += " The animations are enlarged by the upscaler in this run's folder."
    return {"games": games, "games_text": text, "heat_high": format_number(HEAT_HIGH)}


def _horizon(results: EvalResults) -> dict[str, Any]:
    """Return PSNR against the number of steps ahead."""
    charts = []
    steps = range(1, results.horizon + 1)
    for game in results.games:
        lines = [
            Series(MODEL_NAMES[model], model, steps, results.get(model, game=game).psnr)
            for model in (COPY, *results.models)
        ]
        labels = ("steps ahead", "PSNR, dB", game_title(game))
        charts.append(line_chart(lines, *labels, markers=True, width=NARROW))
    above = [m for m in results.models if results.get(m).psnr[-1] > results.get(COPY).psnr[-1]]
    names = " and ".join(MODEL_PHRASES[model] for model in above) or "none of the models"
    verb = "are" if len(above) > 1 else "is"
    return {
        "horizon_text": "Quality of each model's predictions, and of copying the last given frame, "
        f"against the number of steps ahead. At step {results.horizon}, {names} {verb} above "
        "copying, over all games.",
        "horizon_charts": charts,
    }


def _screens(seen: SeenBy, counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> dict[str, Any]:
    """Return the distinct screens of the players.

    counts: those of each explorer and of the random agent after equally many frames, by game.
    """
    charts, montages, words = [], [], []
    for game, random in seen["more-random"].items():
        title = game_title(game)
        explored = {name: seen[name][game] for name in counts if game in seen[name]}
        lines = [
            Series(PLAYERS[name], name, *zip(*stats.curve, strict=True))
            for name, stats in {"random": random, **explored}.items()
        ]
        charts.append(line_chart(lines, "frames played", "distinct screens", title, width=NARROW))
        randoms = [random, *([seen["random"][game]] if game in seen["random"] else [])]
        sides = [
            figures.screen_montage(PLAYERS[name], stats, randoms, "any random play of this run")
            for name, stats in explored.items()
        ]
        sides.append(
            figures.screen_montage(
                PLAYERS["random"], random, list(explored.values()), "the explorers' data"
            )
        )
        montages.append({"name": title, "sides": sides})
        for name in explored:
            one, other = counts[name][game]
            more = "as many as"
            if one != other:
                share = abs(one - other) / max(other, 1)
                more = f"{share:.0%} {'more' if one > other else 'fewer'} than"
            words.append(f"{title}, {PLAYERS[name]}: {one:,}, {more} the random agent's {other:,}")
    return {
        "screens_text": [
            "Distinct screens seen in equally many frames. Two frames count as the same screen "
            "if their grey levels agree, to 16 levels, in each of 8 by 8 cells.",
            f"By game: {'; '.join(words)}.",
        ],
        "screen_charts": charts,
        "montages": montages,
    }


def _timings_and_settings(seconds: Mapping[str, float], plan: dict[str, Any]) -> dict[str, Any]:
    """Return the duration of each stage, and the settings."""
    longest = max(seconds.values())
    timings = [
        {"name": name, "share": round(100 * value / longest, 1), "text": format_duration(value)}
        for name, value in seconds.items()
    ]
    settings = []
    for name, value in plan.items():
        for key, item in value.items() if isinstance(value, dict) else [("", value)]:
            label = f"{name} {key}".replace("_", " ").strip()
            settings.append((label, ", ".join(item) if isinstance(item, list) else item))
    run_text = f"{len(timings)} stages in {format_duration(sum(seconds.values()))}, without this "
    return {"timings": timings, "settings": settings, "run_text": run_text + "report."}


def _codes(root: Path, tests: Sequence[str], length: int) -> tuple[str, Markup]:
    """Return the usage of the codebook in words and as a curve."""
    model = GenieReduxG.load(root / "models" / "base", "auto", "auto", compile=False)
    use = figures.count_code_use(model, [root / "data" / f"test-{test}" for test in tests], length)
    total = len(use.shares)
    used = sum(share > 0 for share in use.shares)
    words = (
        f"On held-out frames the tokenizer uses {used:,} of its {total:,} codes, with the entropy "
        f"of {use.perplexity:.0f} equally frequent ones. Its most frequent code is that of "
        f"{use.static:.0%} of the patches that did not change since the previous frame and of "
        f"{use.moving:.0%} of the others"
    )
    words += ": a code for static patches, as in the paper." if use.static > 2 * use.moving else "."
    ranks = sorted({round(10 ** (step / 20)) for step in range(61)} & set(range(1, total + 1)))
    shares = [use.shares[rank - 1] for rank in ranks]
    lines = [Series("codes, most frequent first", "base", ranks, shares)]
    title = "Codebook: frequency of each code"
    return words, line_chart(lines, "rank", "share of tokens", title, log_x=True, log_y=True)


def _training(root: Path, results: EvalResults) -> dict[str, Any]:
    """Return the training curves of the components and the usage of the codebook."""
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
            Series("validation", "archive", *read_metric(run, f"validation/{metric}")),
        ]
        charts.append(line_chart(lines, "steps", y_label, title, log_y=y_label == "loss"))
    for component, title, y_label, metric in (
        ("decoder", "Decoder fine-tuning", "PSNR, dB", "psnr"),
        ("dynamics", "Dynamics fine-tuning", "loss", "loss"),
    ):
        sides = ("random", *results.explorers)
        runs = {side: root / "finetune" / side / component for side in sides}
        lines = [
            Series(MODEL_NAMES[side], side, *read_metric(run, f"train/{metric}"))
            for side, run in runs.items()
        ]
        charts.append(line_chart(lines, "steps", y_label, title, log_y=y_label == "loss"))
    if "agent" in results.explorers:
        reward = Series("training", "base", *read_metric(root / "explore", "explore/reward"))
        charts.append(line_chart([reward], "epochs", "mean uncertainty", "Reward of the agent"))
    text, code_chart = _codes(root, results.tests, results.horizon + 2)
    return {"training_text": text, "training_charts": [*charts, code_chart]}
