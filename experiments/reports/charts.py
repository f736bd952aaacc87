"""Charts of the reports as inline SVG, which follow the page's light or dark colours."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

WIDTH, HEIGHT = 460, 290
NARROW = 340
MAX_POINTS = 160
NOTHING = Markup('<p class="nothing">Nothing was recorded for this chart.</p>')
COLOURS = {
    "base": "#0067a5",
    "random": "#b8620a",
    "archive": "#00795a",
    "agent": "#7b4fb3",
    "copy": "#77736b",
    "ink": "#1c1b19",
    "soft": "#5d5a54",
    "rule": "#dedad1",
}
"""Colours of the page's style sheet by CSS variable. The SVG refers to the variables."""
DASHES: dict[str, Any] = {
    "base": "--",
    "random": "-.",
    "archive": "-",
    "agent": (0, (7, 2)),
    "copy": ":",
}
STYLES = tuple(DASHES)
"""Names of the styles that a series can have."""
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "autoexplore",
    "font.size": 11,
    "font.sans-serif": ["DejaVu Sans"],
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["soft"]
    ),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    "axes.axisbelow": True,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Series:
    """One line. style: one of STYLES. x and y have the same length."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class ChartBar:
    """One bar, with its interval if `low` and `high` are finite. group: the label below it."""

    group: str
    name: str
    style: str
    value: float
    low: float = math.nan
    high: float = math.nan


def cycle_styles(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Series]:
    """Return named curves (x, y) as series with the styles in turn."""
    return [
        Series(name, STYLES[index % len(STYLES)], *xy)
        for index, (name, xy) in enumerate(curves.items())
    ]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str,
    *,
    markers: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    width: int = WIDTH,
) -> Markup:
    """Draw lines as SVG, or return a sentence if there is no point to draw.

    Points that are not finite, or not positive on a log axis, are left out.
    """
    lines = [line for line in (_drawable(line, log_x, log_y) for line in series) if line.x]
    if not lines:
        return NOTHING
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(width, x_label, y_label)
        for line in lines:
            marker = "o" if markers or len(line.x) == 1 else ""
            style, colour = DASHES[line.style], COLOURS[line.style]
            look = {"linestyle": style, "marker": marker, "color": colour}
            axes.plot(line.x, line.y, label=line.name, **look)
        axes.margins(x=0 if max(len(line.x) for line in lines) > 1 else None)
        if log_x:
            axes.set_xscale("log")
            _set_log_ticks(axes.xaxis, [x for line in lines for x in line.x])
        if log_y:
            axes.set_yscale("log")
            _set_log_ticks(axes.yaxis, [y for line in lines for y in line.y])
        return _svg(figure, title)


def bar_chart(bars: Sequence[ChartBar], y_label: str, title: str) -> Markup:
    """Draw grouped bars with their intervals as SVG; zero is always on the axis."""
    bars = [bar for bar in bars if math.isfinite(bar.value)]
    if not bars:
        return NOTHING
    groups = list(dict.fromkeys(bar.group for bar in bars))
    names = list(dict.fromkeys(bar.name for bar in bars))
    bar_width = 0.8 / len(names)
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(WIDTH, "", y_label)
        labels = dict(zip(names, names, strict=True))  # the first bar of a name is in the legend
        for bar in bars:
            x = groups.index(bar.group) + (names.index(bar.name) - (len(names) - 1) / 2) * bar_width
            label = labels.pop(bar.name, "_nolegend_")
            axes.bar(x, bar.value, 0.9 * bar_width, color=COLOURS[bar.style], label=label)
            if math.isfinite(bar.low) and math.isfinite(bar.high):
                interval = [[bar.value - bar.low], [bar.high - bar.value]]
                line: Any = {"ecolor": COLOURS["ink"], "capsize": 4, "elinewidth": 1.4}
                axes.errorbar(x, bar.value, interval, fmt="none", **line)
        axes.axhline(0, color=COLOURS["soft"], linewidth=1.2)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_xticks(range(len(groups)), groups)
        return _svg(figure, title)


def format_short(value: float) -> str:
    """Return a number with about three digits: 12,300, 38.4, 0.012; a dash if it is not finite."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else None
    return f"{value:.3g}" if digits is None else f"{value:,.{digits}f}"


def _drawable(series: Series, log_x: bool, log_y: bool) -> Series:
    """Return the points that can be drawn, averaged over neighbours to MAX_POINTS at most."""
    points = [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    if len(points) > MAX_POINTS:
        size = math.ceil(len(points) / MAX_POINTS)
        chunks = [points[start : start + size] for start in range(0, len(points), size)]
        points = [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
    return Series(series.name, series.style, [x for x, _ in points], [y for _, y in points])


def _figure(width: int, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure((width / 72, HEIGHT / 72), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.ticklabel_format(style="plain", useOffset=False)
    axes.locator_params("y", nbins=6)
    axes.locator_params("x", nbins=6, integer=True, min_n_ticks=1)
    return figure, axes


def _set_log_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Label the powers of ten, and 2 and 5 times them if the values span under two decades."""
    fine = max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if fine else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _svg(figure: Figure, title: str) -> Markup:
    """Return the figure as an HTML element, with its title above and a legend below."""
    figure.legend(loc="outside lower left", ncols=2, fontsize=11)
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=no_metadata)
    # Remove clip paths, and ids that every chart of a page would repeat.
    drawn = re.sub(r' id="[\w.]+_\d+"| clip-path="[^"]*"', "", file.getvalue())
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    title = escape(title)
    drawn = drawn[drawn.index("<svg ") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ')
    return Markup(f'<figure class="chart"><figcaption>{title}</figcaption>{drawn}</figure>')
