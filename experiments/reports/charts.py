"""Charts of the report as inline SVG: they follow the page's light or dark colours and stay sharp at any width.

A series is told apart by colour (Okabe and Ito's palette, safe for the colour-blind), by its dashes and by its name at
its end. Hovering a point shows its value through an SVG title, without a script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 270
NARROW = 340
LEFT, RIGHT, TOP, BOTTOM = 60, 18, 14, 42
MAX_POINTS = 160
NOTHING = '<p class="nothing">Nothing was recorded for this chart.</p>'


@dataclass(frozen=True)
class Series:
    """One line. style: a class of the page, e.g. `base`, `random`, `explored`, `copy`. x and y: equal length."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """One bar with an interval. group: the text below; value and interval in the chart's unit."""

    group: str
    name: str
    style: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """One axis: what it spans, and the values told on it. log: equal ratios are equally far apart."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], *, log: bool = False, snug: bool = False) -> "Axis":
        """An axis that covers values. snug: it ends at the outermost of them, not at round numbers beyond."""
        low, high = min(values), max(values)
        if log:
            ticks = log_ticks(low, high)
            return cls(min(low, ticks[0]), max(high, ticks[-1]), ticks, log=True)
        if not snug:
            ticks = tuple(nice_ticks(low, high, 5))
            return cls(ticks[0], ticks[-1], ticks)
        low = 0.0 if 0 < low <= 0.06 * high else low  # steps are logged from the first few on: show where they start
        return cls(low, max(high, low + 1e-9), tuple(tick for tick in nice_ticks(low, high, 6) if low <= tick <= high))

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at the low end to 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / (math.log(self.high / self.low) or 1)
        return (value - self.low) / ((self.high - self.low) or 1)

    def texts(self) -> list[str]:
        """The ticks in figures: all with as many decimals as the finest of them, or each by itself on a log axis."""
        return [f"{tick:g}" for tick in self.ticks] if self.log else tick_texts(self.ticks)


@dataclass(frozen=True)
class Plane:
    """The drawing area: turns values into the SVG's coordinates and draws the axes."""

    across: Axis
    up: Axis
    width: int = WIDTH

    def x(self, value: float) -> float:
        return LEFT + self.across.share(value) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        """Horizontal grid lines with their values, values below the x axis, and both labels."""
        parts = []
        for tick, told in zip(self.up.ticks, self.up.texts(), strict=True):
            parts.append(f'<path class="grid" d="M{LEFT} {self.y(tick):.1f}H{self.width - RIGHT}"/>')
            parts.append(_text("tick", LEFT - 7, self.y(tick) + 4, "end", told))
        for tick, told in zip(self.across.ticks, self.across.texts(), strict=True):
            parts.append(_text("tick", self.x(tick), HEIGHT - BOTTOM + 18, "middle", told))
        parts.append(_text("axis", self.width - RIGHT, HEIGHT - 4, "end", x_label))
        turned = f"translate(11 {(HEIGHT - BOTTOM + TOP) / 2:.0f}) rotate(-90)"
        parts.append(f'<text class="axis" transform="{turned}" text-anchor="middle">{escape(y_label)}</text>')
        return "".join(parts)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str,
    markers: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    width: int = WIDTH,
) -> str:
    """An SVG of the lines. Points without a place (not finite, or not positive on a log axis) are left out; without any
    point, a sentence that says so.
    """
    kept = [one for one in (_drawable(one, log_x=log_x, log_y=log_y) for one in series) if one.x]
    if not kept:
        return NOTHING
    across = Axis.over([x for one in kept for x in one.x], log=log_x, snug=True)
    plane = Plane(across, Axis.over([y for one in kept for y in one.y], log=log_y), width)
    parts = [plane.axes(x_label, y_label)]
    for one in kept:
        points = [(plane.x(x), plane.y(y)) for x, y in zip(one.x, one.y, strict=True)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s-{one.style}" points="{drawn}"/>')
        shown = "dot" if markers or len(points) == 1 else "dot hidden"
        for (x, y), x_value, y_value in zip(points, one.x, one.y, strict=True):
            note = f"{one.name}: {short(y_value)} at {short(x_value)}"
            parts.append(
                f'<circle class="{shown} f-{one.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
                f"<title>{escape(note)}</title></circle>"
            )
    return _figure(parts, title, [(one.name, one.style) for one in kept], width)


def bar_chart(bars: Sequence[Bar], *, y_label: str, title: str) -> str:
    """An SVG of grouped bars with their intervals as whiskers; zero is always on the axis."""
    bars = [bar for bar in bars if math.isfinite(bar.value)]
    if not bars:
        return NOTHING
    groups = list(dict.fromkeys(bar.group for bar in bars))
    names = list(dict.fromkeys((bar.name, bar.style) for bar in bars))
    ends = [0.0, *(v for bar in bars for v in (bar.value, bar.low, bar.high) if math.isfinite(v))]
    plane = Plane(Axis(0.0, float(len(groups)), ()), Axis.over(ends))
    width = min(38.0, (plane.x(1) - plane.x(0)) * 0.8 / len(names))
    parts = [plane.axes("", y_label)]
    for place, group in enumerate(groups):
        parts.append(_text("tick", plane.x(place + 0.5), HEIGHT - BOTTOM + 18, "middle", group))
        for bar in bars:
            if bar.group == group:
                left = plane.x(place + 0.5) + (names.index((bar.name, bar.style)) - len(names) / 2) * width
                parts.append(_bar(bar, plane, left, width))
    parts.append(f'<path class="zero" d="M{LEFT} {plane.y(0):.1f}H{WIDTH - RIGHT}"/>')
    return _figure(parts, title, names, WIDTH, filled=True)


def _bar(bar: Bar, plane: Plane, left: float, width: float) -> str:
    top, foot = plane.y(max(bar.value, 0)), plane.y(min(bar.value, 0))
    note = f"{bar.name}, {bar.group}: {short(bar.value)} [{short(bar.low)}, {short(bar.high)}]"
    drawn = (
        f'<rect class="bar f-{bar.style}" x="{left + 1.5:.1f}" y="{top:.1f}" width="{width - 3:.1f}" '
        f'height="{max(foot - top, 0.8):.1f}"><title>{escape(note)}</title></rect>'
    )
    if not (math.isfinite(bar.low) and math.isfinite(bar.high)):
        return drawn
    middle, low, high = left + width / 2, plane.y(bar.low), plane.y(bar.high)
    path = f"M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 4:.1f} {low:.1f}h8M{middle - 4:.1f} {high:.1f}h8"
    return drawn + f'<path class="whisker" d="{path}"/>'


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high]."""
    span = (high - low) or abs(high) or 1.0
    rough = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten that cover [low, high]; 1, 2 and 5 times them where the range is less than two decades."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    decades = [10.0**power for power in range(first, max(last, first + 1) + 1)]
    if last - first > 2:
        return tuple(decades)
    fine = [factor * decade for decade in decades for factor in (1, 2, 5)]
    start = max(place for place, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
    end = min(place for place, tick in enumerate(fine) if tick >= high * (1 - 1e-9) and place > start)
    return tuple(fine[start : end + 1])


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """An axis's values, all with as many decimals as the finest of them needs."""
    decimals = next((d for d in range(6) if all(abs(round(t, d) - t) < 1e-9 for t in ticks)), 6)
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def short(value: float) -> str:
    """A number as a person writes it: 12,300, 38.4, 0.012."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else None
    return f"{value:.3g}" if digits is None else f"{value:,.{digits}f}"


def _drawable(series: Series, *, log_x: bool, log_y: bool) -> Series:
    """The points that have a place; more than MAX_POINTS are averaged over neighbours, so that the page stays small."""
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


def _text(style: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(parts: list[str], title: str, names: Sequence[tuple[str, str]], width: int, *, filled: bool = False) -> str:
    """The drawing with its title above and the names of its lines or bars below."""
    marks = {style: f'<rect class="bar f-{style}" x="7" width="12" height="8"/>' for _, style in names}
    if not filled:
        marks = {style: f'<path class="line s-{style}" d="M1 4H25"/>' for _, style in names}
    legend = "".join(
        f'<li><svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">{marks[style]}</svg>{escape(name)}</li>'
        for name, style in names
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )
