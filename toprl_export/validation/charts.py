"""The report's plots as inline SVG: no script, no font and no file from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
LEFT = 58
RIGHT = 12
TOP = 34
BOTTOM = 30
LEGEND_LINE = 20


@dataclass(frozen=True)
class Series:
    """One colour's values, one per group; ``spans`` are (low, high) whiskers around them."""

    name: str
    colour: str
    values: tuple[float, ...]
    spans: tuple[tuple[float, float], ...] | None = None


def dot_chart(title: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """Points with whiskers, side by side in each group; values and axis are shares, shown in per cent."""
    height = 300
    lows = [low for one in series for low, _ in one.spans or zip(one.values, one.values, strict=True)]
    floor = max(0.0, math.floor(min(lows) * 10 - 0.5) / 10)
    axis = _Axis(floor, 1.0, TOP, height - BOTTOM)
    parts = [axis.grid([floor + (1 - floor) * step / 5 for step in range(6)], "{:.0%}")]
    for at, (group, centre, width) in enumerate(_columns(groups)):
        parts.append(_text(centre, height - 10, group, "middle"))
        for place, one in enumerate(series):
            x = centre + (place - (len(series) - 1) / 2) * min(46.0, width * 0.8 / len(series))
            low, high = one.spans[at] if one.spans else (one.values[at], one.values[at])
            stroke = f'stroke="{one.colour}" stroke-width="2"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axis(low):.1f}" y2="{axis(high):.1f}" {stroke}/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{axis(one.values[at]):.1f}" r="5" fill="{one.colour}"/>')
            parts.append(_text(x + 8, axis(one.values[at]) + 4, f"{one.values[at] * 100:.1f}", "start", "small"))
    return _svg(title, height, [*parts, _legend(series)], series)


def column_chart(title: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """Columns side by side in each group, from zero."""
    height = 280
    ticks = _ticks(max(max(one.values) for one in series))
    axis = _Axis(0.0, ticks[-1], TOP, height - BOTTOM)
    parts = [axis.grid(ticks, "{:g}")]
    for at, (group, centre, width) in enumerate(_columns(groups)):
        parts.append(_text(centre, height - 10, group, "middle"))
        thick = min(44.0, width * 0.84 / len(series))
        for place, one in enumerate(series):
            x = centre + (place - len(series) / 2) * thick
            y = axis(one.values[at])
            size = f'width="{thick - 3:.1f}" height="{max(axis.bottom - y, 0.5):.1f}"'
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{one.colour}"/>')
            parts.append(_text(x + thick / 2 - 1.5, y - 4, _short(one.values[at]), "middle", "small"))
    return _svg(title, height, [*parts, _legend(series)], series)


def stacked_bars(title: str, rows: Sequence[str], series: Sequence[Series], unit: str) -> str:
    """One horizontal bar for each row, made of the series' values end to end, with the sum behind it."""
    left, line = 190, 30
    totals = [sum(one.values[at] for one in series) for at in range(len(rows))]
    scale = (WIDTH - left - 90) / max(*totals, 1e-9)
    parts = [_legend(series)]
    for at, row in enumerate(rows):
        y = TOP + at * line
        parts.append(_text(left - 8, y + 15, row, "end"))
        x = float(left)
        for one in series:
            size = one.values[at] * scale
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{size:.1f}" height="21" fill="{one.colour}"/>')
            if size > 34:
                parts.append(_text(x + size / 2, y + 15, _short(one.values[at]), "middle", "small light"))
            x += size
        parts.append(_text(x + 6, y + 15, f"{_short(totals[at])} {unit}", "start"))
    return _svg(title, TOP + len(rows) * line + 6, parts, series)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    top: float
    bottom: float

    def __call__(self, value: float) -> float:
        """The height on the page of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - self.top)

    def grid(self, ticks: Sequence[float], form: str) -> str:
        """A line and a label for each tick."""
        lines = []
        for tick in ticks:
            y = self(tick)
            lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(_text(LEFT - 8, y + 4, form.format(tick), "end", "small"))
        return "".join(lines)


def _columns(groups: Sequence[str]) -> list[tuple[str, float, float]]:
    """Each group's label, centre and width."""
    width = (WIDTH - LEFT - RIGHT) / len(groups)
    return [(group, LEFT + width * (at + 0.5), width) for at, group in enumerate(groups)]


def _ticks(highest: float) -> list[float]:
    """From zero to a round number not below ``highest``, in four to eight round steps."""
    magnitude = 10.0 ** math.floor(math.log10(max(highest, 1e-9)))
    step = next(magnitude * part for part in (0.2, 0.25, 0.5, 1, 2) if highest <= magnitude * part * 8)
    return [step * at for at in range(math.ceil(highest / step) + 1)]


def _legend(series: Sequence[Series]) -> str:
    """Names in as many lines as they need, above the plot, which starts at `TOP`."""
    parts: list[str] = []
    x, y = float(LEFT), -LEGEND_LINE * (_legend_lines(series) - 1)
    for one in series:
        width = _legend_width(one)
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + LEGEND_LINE
        parts.append(f'<rect x="{x:.1f}" y="{y + 6}" width="12" height="12" rx="2" fill="{one.colour}"/>')
        parts.append(_text(x + 17, y + 16, one.name, "start"))
        x += width
    return "".join(parts)


def _legend_width(one: Series) -> float:
    return 17 + 7.2 * len(one.name) + 20


def _legend_lines(series: Sequence[Series]) -> int:
    lines, x = 1, float(LEFT)
    for one in series:
        if x > LEFT and x + _legend_width(one) > WIDTH:
            lines, x = lines + 1, float(LEFT)
        x += _legend_width(one)
    return lines


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _svg(title: str, height: int, parts: Sequence[str], series: Sequence[Series]) -> str:
    label, above = escape(title, quote=True), LEGEND_LINE * (_legend_lines(series) - 1)
    box = f"0 {-above} {WIDTH} {height + above}"
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
