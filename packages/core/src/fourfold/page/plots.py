"""Plots as inline SVG: no library, no script. Drawn narrow (420 units), so that text stays readable on a phone.

Every mark carries class ``mark``, ``whisker`` or ``line`` and takes its colour from the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

_WIDTH = 420
_BAR, _GAP, _LABEL = 16, 6, 130
#: Width of a character of the page's plots, and room for one more.
_CHARACTER = 7.2
_LEFT, _RIGHT, _TOP, _HEIGHT, _BOTTOM = 46, 10, 8, 190, 34
_COLOURS = 6
_HEAT_LEVELS = 9


class Span(NamedTuple):
    """A value with its interval, both ends None where there is none."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """One line of a plot; None leaves a gap."""

    name: str
    values: Sequence[float | None]


def bars(
    title: str, labels: Sequence[str], values: Sequence[float], *, unit: str = "", logarithmic: bool = False
) -> str:
    """Horizontal bars, one a line, longest at full width; ``logarithmic`` for counts of very different size."""
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    lengths = [math.log10(1 + value) if logarithmic else value for value in finite]
    longest = max(lengths, default=0) or 1
    texts = [(f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + unit for value in values]
    room = _CHARACTER * (1 + max(map(len, texts), default=0))
    parts, top = [], _GAP
    for label, text, length in zip(labels, texts, lengths, strict=True):
        # A label too long for its column stands on a line of its own.
        wide = len(label) > 19
        if wide:
            parts.append(_text(0, top + 12, label))
            top += 16
        left = 0 if wide else _LABEL
        width = (_WIDTH - left - room) * length / longest
        middle = top + _BAR * 0.75
        if not wide:
            parts.append(_text(_LABEL - 6, middle, label, "end"))
        parts.append(f'<rect class="mark" x="{left}" y="{top}" width="{max(width, 0.5):.1f}" height="{_BAR}"/>')
        parts.append(_text(left + width + 5, middle, text))
        top += _BAR + _GAP
    return _figure(f"{title} (logarithmic)" if logarithmic else title, top, parts)


def spans(title: str, rows: Sequence[Span], *, reference: float | None = None, unit: str = "") -> str:
    """Values as dots with their intervals on one axis, a dashed line at ``reference``."""
    ends = [end for row in rows for end in (row.low, row.high, row.value) if end is not None]
    low, high, ticks = _axis([*ends, *([] if reference is None else [reference])])
    left, right = 24, _WIDTH - 24

    def at(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = []
    bottom = _GAP + 38 * len(rows)
    for tick in ticks:
        parts.append(f'<line class="axis" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="0" y2="{bottom}"/>')
        parts.append(_text(at(tick), bottom + 14, f"{tick:g}{unit}", "faint middle"))
    if reference is not None:
        x = at(reference)
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        top = _GAP + 38 * number
        interval = "" if row.low is None or row.high is None else f" ({row.low:.4g} to {row.high:.4g})"
        parts.append(_text(0, top + 11, f"{row.label}: {row.value:.4g}{unit}{interval}"))
        y = top + 24
        if row.low is not None and row.high is not None:
            path = f"M{at(row.low):.1f} {y - 4}v8m0-4H{at(row.high):.1f}m0-4v8"
            parts.append(f'<path class="whisker" d="{path}"/>')
        parts.append(f'<circle class="mark" cx="{at(row.value):.1f}" cy="{y}" r="4"/>')
    return _figure(title, bottom + 20, parts)


def lines(title: str, xs: Sequence[int], series: Sequence[Series], *, x_label: str, logarithmic: bool = False) -> str:
    """Lines over whole numbers such as layers, with points; from zero, or logarithmic where values span decades."""
    values = [value for one in series for value in one.values if value is not None and (value > 0 or not logarithmic)]
    if logarithmic:
        low, high, ticks = _decades(values)
    else:
        low, high, ticks = _axis([0.0, *values])
    right, bottom = _WIDTH - _RIGHT, _TOP + _HEIGHT
    first, last = min(xs), max(xs)

    def across(x: float) -> float:
        return _LEFT + (right - _LEFT) * ((x - first) / (last - first) if last > first else 0.5)

    def up(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return bottom - _HEIGHT * share

    parts = []
    for tick in ticks:
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(_text(_LEFT - 5, up(tick) + 4, f"{tick:g}", "faint end"))
    every = max(1, math.ceil(len(xs) / 10))
    parts += [_text(across(x), bottom + 14, str(x), "faint middle") for x in xs[::every]]
    parts.append(_text((_LEFT + right) / 2, bottom + 29, x_label, "faint middle"))
    for number, one in enumerate(series):
        parts += _one_line(number % _COLOURS, xs, one.values, across, up, logarithmic)
    return _figure(
        f"{title} (logarithmic)" if logarithmic else title,
        _TOP + _HEIGHT + _BOTTOM,
        parts,
        legend=[one.name for one in series] if len(series) > 1 else [],
    )


def heat_map(title: str, labels: Sequence[str], rows: Sequence[Sequence[float]], *, x_label: str) -> str:
    """A row of cells a label, darker for more; cells of the same shade are one path, so that large maps stay small."""
    largest = max((value for row in rows for value in row), default=0) or 1
    columns = max((len(row) for row in rows), default=1)
    width, height = (_WIDTH - 30) / columns, max(5.0, min(12.0, 240 / max(len(rows), 1)))
    paths: list[list[str]] = [[] for _ in range(_HEAT_LEVELS)]
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            # Zero is a shade of its own, the palest.
            level = 0 if value <= 0 else 1 + min(_HEAT_LEVELS - 2, int((_HEAT_LEVELS - 1) * value / largest))
            paths[level].append(f"M{30 + x * width:.1f} {y * height:.1f}h{width:.2f}v{height:.1f}h-{width:.2f}z")
    parts = [
        f'<path class="mark" fill-opacity="{0.04 + 0.96 * level / (_HEAT_LEVELS - 1):.2f}" d="{"".join(path)}"/>'
        for level, path in enumerate(paths)
        if path
    ]
    every = max(1, math.ceil(len(labels) / 12))
    parts += [_text(25, (y + 0.5) * height + 4, label, "faint end") for y, label in enumerate(labels) if y % every == 0]
    bottom = height * len(rows)
    parts.append(_text((30 + _WIDTH) / 2, bottom + 15, x_label, "faint middle"))
    return _figure(title, bottom + 20, parts)


def _one_line(
    colour: int,
    xs: Sequence[int],
    values: Sequence[float | None],
    across: Callable[[float], float],
    up: Callable[[float], float],
    logarithmic: bool,
) -> list[str]:
    points = [
        (across(x), up(value))
        for x, value in zip(xs, values, strict=True)
        if value is not None and (value > 0 or not logarithmic)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline class="line s{colour}" points="{path}"/>'] if len(points) > 1 else []
    return parts + [f'<circle class="mark s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends that hold every value, and the round numbers between them."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return low, high, [round(low + number * step, 12) for number in range(round((high - low) / step) + 1)]


def _decades(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Powers of ten that hold every value."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    return 10.0**low, 10.0**high, [10.0**power for power in range(low, high + 1)]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _figure(title: str, height: float, parts: Sequence[str], legend: Sequence[str] = ()) -> str:
    entries = "".join(
        f'<span><b class="s{number % _COLOURS}">●</b> {escape(name)}</span>' for number, name in enumerate(legend)
    )
    return "\n".join(
        [
            f"<figure><figcaption>{escape(title)}</figcaption>",
            *([f'<div class="legend">{entries}</div>'] if entries else []),
            f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">',
            *parts,
            "</svg></figure>",
        ]
    )
