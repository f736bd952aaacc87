"""The pipeline's report: a self-contained page, whose text follows from its numbers."""

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs import action_names
from envs.utils.images import enlarged, gif, heat_map
from experiments.__main__ import execute
from experiments.commands import report
from experiments.reports import charts
from experiments.reports.charts import (
    COLOURS,
    STYLES,
    ChartBar,
    Series,
    bar_chart,
    format_short,
    line_chart,
)
from experiments.reports.comparison import MODEL_NAMES, Column, describe_comparison, metrics_table
from experiments.reports.figures import Excerpt, column_heads
from experiments.reports.images import code_colours, film_strip, montage, token_map
from experiments.reports.results import (
    ALL,
    COPY,
    EvalResults,
    Metrics,
    paired_gain,
    pool,
    read_results,
)
from experiments.reports.screens import ScreenStats, equal_frame_counts, unique_to

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Parser that collects the references of a page and checks the nesting of its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(values)
        self.links += [
            str(values[name]) for name in ("href", "src", "xlink:href", "data") if values.get(name)
        ]
        self.ids.add(str(values.get("id")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


@pytest.fixture(scope="module")
def html(finished_run: tuple[Path, str]) -> str:
    return (finished_run[0] / "report" / "index.html").read_text()


def test_page_is_well_formed_and_needs_no_network(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & page.tags
    for link in page.links:
        assert link.startswith(("data:image/png;base64,", "data:image/gif;base64,", "#")), link[:80]
        if link.startswith("#"):
            assert link[1:] in page.ids
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", html)
    assert "nan" not in re.sub(r"data:image/[^\"]*", "", html).lower().split()


def test_pictures_have_the_stated_format_and_size(html: str) -> None:
    page = Page(html)
    kinds = set()
    for image in page.images:
        assert image["alt"]
        found = re.fullmatch(r"data:image/(\w+);base64,(.*)", str(image["src"]))
        assert found is not None
        kind, data = found.groups()
        decoded = Image.open(io.BytesIO(base64.b64decode(data)))
        decoded.load()
        assert decoded.format == kind.upper()
        assert decoded.size == (int(str(image["width"])), int(str(image["height"])))
        kinds.add(kind)
        if kind == "gif":
            assert getattr(decoded, "n_frames", 1) > 1
    assert kinds == {"png", "gif"}


def test_page_shows_every_part(html: str) -> None:
    for part in ("result", "games", "horizon", "screens", "training", "run"):
        assert f'id="{part}"' in html
    for words in ("tokens", "uncertainty", "delta-PSNR", *MODEL_NAMES.values()):
        assert words in html
    drawn = re.findall(r'<figure class="chart">.*?</figure>', html, re.DOTALL)
    assert sum(len(drawn_points(chart, style)) > 1 for chart in drawn for style in STYLES) >= 10
    assert sum(len(drawn_bars(chart)) for chart in drawn) >= 6


def test_report_is_created_again_from_the_files_of_the_run(
    finished_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], html: str
) -> None:
    assert execute(["report", str(finished_run[0]), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "index.html").read_text() == html


def test_main_results_for_the_terminal(finished_run: tuple[Path, str]) -> None:
    printed = "".join(finished_run[1].splitlines()[-20:])
    for words in ("Reconstruction PSNR", "One step ahead", "steps ahead, mean", "Delta-PSNR"):
        assert words in printed
    assert "Distinct screens" in printed


def metrics(psnr: float, delta: float = 1.0, windows: int = 10) -> Metrics:
    row = (psnr + 2, psnr, psnr - 2)
    return Metrics(windows, row, (0.9,) * 3, row, 35.0, 20.0, delta, delta - 0.5, delta + 0.5)


def results(**psnr: float) -> EvalResults:
    models = ("base", "random", "archive")
    by_model = {
        model: {test: {ALL: metrics(psnr[model])} for test in ("random", "deep", ALL)}
        for model in (COPY, *models)
    }
    windows = {
        model: {
            test: {
                "session": np.array(["a", "a", "b", "b"]),
                "psnr": psnr[model] + np.array([-1.0, 1.0, -2.0, 2.0]),
                "delta_psnr": np.array([1.0, np.nan, 1.0, 1.0]),
            }
            for test in ("random", "deep")
        }
        for model in models
    }
    return EvalResults(
        by_model,
        windows,
        ("Counting",),
        ("archive",),
        ("random", "deep"),
        3,
        "FID-EfficientNetLite0",
    )


def test_words_follow_from_numbers() -> None:
    good = " ".join(describe_comparison(results(copy=20, base=24, random=25, archive=27)))
    assert "Explored play was worth 2.0 dB more than more random play." in good
    bad = " ".join(describe_comparison(results(copy=20, base=24, random=27, archive=25.5)))
    assert "More random play was worth 1.5 dB more than explored play." in bad
    same = " ".join(describe_comparison(results(copy=20, base=24, random=25, archive=25.05)))
    assert "made no difference" in same
    assert "the interval lies above zero for all of them" in good
    uncertain = results(copy=20, base=24, random=25, archive=27)
    for test in uncertain.by_model["base"].values():
        test["all"] = dataclasses.replace(test["all"], delta_low=-0.1)
    words = (
        "above zero for the one with more random play and the one with play from the archive only"
    )
    assert words in " ".join(describe_comparison(uncertain))


def test_gains_are_paired_by_window_and_intervals_are_over_episodes() -> None:
    gain = results(copy=20, base=24, random=25, archive=27).gain("archive", "deep", "psnr")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((2.0, 2.0, 2.0)), (
        "the same gain in every window"
    )
    better = results(copy=20, base=24, random=25, archive=27)
    better.windows["archive"]["deep"]["psnr"] += np.array([0.0, 0.0, 1.0, 1.0])
    gain = better.gain("archive", "deep", "psnr")
    assert gain.mean == pytest.approx(2.5)
    # Two episodes: deviation 0.707, error 0.5, t(1) = 12.706.
    assert gain.high - gain.mean == pytest.approx(12.706 * 0.5, rel=1e-3)
    both = [better, results(copy=20, base=24, random=25, archive=27)]
    assert paired_gain(both, "archive", "deep", "psnr").mean == pytest.approx(2.25)


@pytest.mark.parametrize(
    ("game", "last"), [("Counting", "jump"), ("CoinRun", "jump \N{RIGHTWARDS ARROW}")]
)
def test_film_strips_name_the_buttons_of_the_game(game: str, last: str) -> None:
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    actions = np.array([0] * 6 + [4], np.uint8)
    heads = column_heads(Excerpt(game, "session", 0, frames, actions, action_names([game])))
    assert [head["text"] for head in heads] == ["given", "given", "+1", "+2"]
    assert heads[-1]["button"] == last


def test_best_of_a_column_is_marked_only_where_there_is_one() -> None:
    rows = [("base", metrics(24.0)), ("random", metrics(25.0)), ("archive", metrics(25.0))]
    columns = [
        Column("psnr", lambda f: f.mean_psnr),
        Column("same", lambda f: 1.0),
        Column("less", lambda f: f.mean_psnr, -1),
    ]
    cells = [
        [cell["best"] for cell in row["cells"]] for row in metrics_table("", rows, columns)["rows"]
    ]
    assert cells == [[False, False, True], [True, False, False], [True, False, False]]


def test_pooled_metrics_are_weighted_by_windows() -> None:
    both = pool([metrics(20.0, delta=0.0, windows=30), metrics(24.0, delta=4.0, windows=10)])
    assert both.windows == 40
    assert both.mean_psnr == pytest.approx(21.0)
    assert both.delta == pytest.approx(1.0)
    assert both.delta_high - both.delta == pytest.approx(
        math.sqrt((0.75 * 0.5) ** 2 + (0.25 * 0.5) ** 2)
    )
    assert math.isnan(both.distance)


def test_metrics_of_a_run_are_those_of_its_evaluation(finished_run: tuple[Path, str]) -> None:
    folder = finished_run[0] / "evaluation"
    read = read_results(folder, ("archive", "agent"), ("random", "deep"))
    raw = json.loads((folder / "archive-random.json").read_text())
    assert read.get("archive", "random").psnr == tuple(
        raw["overall"]["prediction"]["by_step"]["psnr"]
    )
    assert read.get(COPY, "random", "Counting").psnr == tuple(
        raw["games"]["Counting"]["copy"]["by_step"]["psnr"]
    )
    assert read.horizon == 4
    assert read.far == {"deep": json.loads((folder / "base-deep.json").read_text())["far"]}
    assert "grey levels away" in " ".join(describe_comparison(read))


def drawn_points(chart: str, style: str) -> list[tuple[float, float]]:
    """Return the points of a style's line, in the chart's coordinates."""
    colour = re.escape(f"stroke: var(--{style})")
    found = re.search(rf'<path d="([^"]*)" style="fill: none; [^"]*{colour}', chart)
    return (
        [(float(x), float(y)) for x, y in re.findall(r"(\S+) (\S+) ?\n", found[1])] if found else []
    )


def drawn_bars(chart: str) -> list[str]:
    """Return the styles of a chart's bars, then those of its legend."""
    return re.findall(r'style="fill: var\(--(\w+)\)"', chart)


def texts(chart: str) -> list[str]:
    """Return all text in a chart."""
    return re.findall(r">([^<>\s][^<>]*)</text>", chart)


def lines(y: list[float], **settings: Any) -> str:
    """Draw one line."""
    series = Series("a", "base", range(1, len(y) + 1), y)
    return line_chart([series], "x", "y", "t", **settings)


def test_charts_leave_out_what_is_not_a_number() -> None:
    series = [Series("a<b", "base", [0, 1, 2], [1.0, math.nan, 3.0])]
    chart = line_chart(series, "x", "y", "t", markers=True)
    assert "nan" not in chart
    assert len(drawn_points(chart, "base")) == 2
    assert "a&lt;b" in texts(chart)
    assert {"x", "y"} < set(texts(chart))
    assert "<figcaption>t</figcaption>" in chart
    assert "Nothing was recorded" in line_chart([], "x", "y", "t")
    assert 2 < len(drawn_points(lines([float(n % 7) for n in range(9000)]), "base")) <= 160
    bars = bar_chart(
        [ChartBar("g", "a", "base", -1.0), ChartBar("g", "b", "random", 2, 1, 3)], "", ""
    )
    assert drawn_bars(bars) == ["base", "random"] * 2
    assert bars.count("stroke: var(--ink); stroke-width: 1.4") == 1  # one interval
    assert {"g", "a", "b"} < set(texts(bars))
    assert "nan" not in bars.lower()


def test_charts_follow_the_colours_of_the_page() -> None:
    chart = lines([1.0, 2.0])
    assert not re.search("#[0-9a-f]{6}", chart)
    style_sheet = (Path(charts.__file__).parent / "templates/report_style.html.j2").read_text()
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour};" in style_sheet
        assert style_sheet.count(f"--{name}: ") == 2  # light and dark
    assert chart == lines([1.0, 2.0])


def test_axes_have_round_numbers() -> None:
    def ticks(y: list[float], **settings: Any) -> list[str]:
        """Return the labels of the y axis, which follow those of the x axis and its label."""
        found = texts(lines(y, **settings))
        return found[found.index("x") + 1 : found.index("y")]

    assert ticks([0, 97]) == ["0", "20", "40", "60", "80", "100"]
    assert ticks([-0.6, 1.1]) == ["\N{MINUS SIGN}0.5", "0.0", "0.5", "1.0"]
    assert "5.0" in ticks([5, 5])
    assert ticks([0.0003, 0.04], log_y=True) == ["0.001", "0.01"]
    assert ticks([0.45, 6.0], log_y=True) == ["0.5", "1", "2", "5"]
    assert {"2", "5"} < set(ticks([3.0, 3.0], log_y=True))
    # A log axis has no zero.
    assert len(drawn_points(lines([1.0, 0.0, 0.1], log_y=True), "base")) == 2
    values = [format_short(v) for v in (12300, 38.44, 0.5, 0.01234, math.inf)]
    assert values == ["12,300", "38.4", "0.50", "0.0123", "-"]


def test_pictures_repeat_pixels(rng: np.random.Generator) -> None:
    rows = [rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8) for _ in range(2)]
    strip = film_strip(rows, 2)
    assert strip.shape == (2 * 16 + 4, 3 * 16 + 8, 4)
    assert (strip[20:36:2, 20:36:2, :3] == rows[1][1]).all()  # second row, second frame
    assert (enlarged(rows[0], 4)[:, 1::4, 2::4] == rows[0]).all()
    assert strip[17, 0, 3] == 0  # gaps are transparent
    moving = Image.open(io.BytesIO(gif(rows, 4, context=1)))
    assert moving.n_frames == 3  # type: ignore[attr-defined]
    assert montage([row[0] for row in rows], 4, 1).shape == (8, 4 * 10 - 2, 4)


def test_maps_of_tokens_and_heat(rng: np.random.Generator) -> None:
    colours = code_colours(rng.normal(size=(16, 4)).astype(np.float32))
    assert colours.shape == (16, 3)
    tokens = np.zeros((2, 4, 4), np.int64)
    tokens[1, 2, 3] = 5
    shown = token_map(tokens, colours, 16)
    assert shown.shape == (2, 16, 16, 3)
    assert (shown[1, 8:12, 12:16] == colours[5]).all()
    assert (shown[0] == shown[0, 0, 0]).all()  # the most frequent code has a single colour
    heat = heat_map(
        np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4),
        np.zeros((2, 16, 16, 3), np.uint8),
        1.0,
    )
    assert heat[0, 0, 0].sum() < heat[1, -1, -1].sum()


def test_screens_only_one_agent_saw(rng: np.random.Generator) -> None:
    a, b = (rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8).repeat(8, 0) for _ in range(2))
    a = np.kron(rng.integers(0, 256, (6, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    here, there = ScreenStats(), ScreenStats()
    here.add(a)
    here.add(a)  # nothing new
    there.add(np.concatenate([a[:4], b[:1]]))
    assert len(here.ids) == 6
    assert here.curve == [(0, 0), *((n, n) for n in range(1, 7)), (12, 6)]
    assert [here.after(frames) for frames in (0, 5, 6, 100)] == [0, 5, 6, 6]
    # After the five frames that the other has played.
    assert equal_frame_counts(here, there) == (5, 5)
    alone = unique_to(here, [there], 5)
    assert sorted(frame.tobytes() for frame in alone) == sorted(frame.tobytes() for frame in a[4:])
    assert unique_to(here, [here], 5) == []


def test_generate_draws_the_prediction_of_an_episode(
    finished_run: tuple[Path, str], tmp_path: Path
) -> None:
    run = finished_run[0]
    data, model = str(run / "data/test-random"), str(run / "models/base")
    argv = ["generate", model, "--data", data, "--out", str(tmp_path), "--horizon", "3"]
    argv += ["--sampling-steps", "1"]
    assert execute(argv) == 0
    (strip,), (video,) = tmp_path.glob("*.png"), tmp_path.glob("*.gif")
    assert Image.open(strip).size == (5 * 64 * 4 + 4 * 8, 2 * 64 * 4 + 8)
    assert Image.open(video).n_frames == 5  # type: ignore[attr-defined]
    assert execute([*argv, "--episodes", "7"]) == 2
    assert execute([*argv, "--start", "59"]) == 2


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_report_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finish it with"):
        report.run(report.Args(run=tmp_path))
