"""Bars as inline SVG: no library, no script, scales with the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _BAR, _GAP, _LABEL, _VALUE = 640, 18, 6, 190, 90


def bars(
    title: str, labels: Sequence[str], values: Sequence[float], *, unit: str = "", logarithmic: bool = False
) -> str:
    """Horizontal bars, one a line, longest at full width; ``logarithmic`` for counts of very different size."""
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    lengths = [math.log10(1 + value) if logarithmic else value for value in finite]
    longest = max(lengths, default=0) or 1
    room = _WIDTH - _LABEL - _VALUE
    height = len(labels) * (_BAR + _GAP) + _GAP
    lines = [
        f"<figure><figcaption>{escape(title)}{' (logarithmic)' if logarithmic else ''}</figcaption>",
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">',
    ]
    for number, (label, value, length) in enumerate(zip(labels, values, lengths, strict=True)):
        top = _GAP + number * (_BAR + _GAP)
        width = room * length / longest
        middle = top + _BAR * 0.72
        lines.append(f'<text class="label" x="{_LABEL - 8}" y="{middle:.1f}">{escape(label)}</text>')
        lines.append(f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_BAR}"/>')
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        lines.append(f'<text x="{_LABEL + width + 6:.1f}" y="{middle:.1f}">{text}{escape(unit)}</text>')
    lines.append("</svg></figure>")
    return "\n".join(lines)
