"""Served log-probabilities against the reference's, up to the first tie.

A W4A4 forward pass rounds some 10^5 activations a token. Two correct implementations add float32 numbers in another
order, differ by 1e-7, and now and then an activation lies that close to the middle between two grid values: one of them
rounds it up. From there the prompt goes another way, by up to 1 and more. So each prompt is compared up to its first
break, the breaks are counted, and most positions must lie before one. W4A16 rounds nothing, and may not break.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Above, a difference is no rounding error of float32 sums.
BREAK = 1e-3


@dataclass(frozen=True)
class Agreement:
    """What a comparison found; positions before a prompt's first break are ``compared``."""

    positions: int
    compared: int
    worst: float
    top1: int
    breaks: tuple[tuple[int, int, float], ...]


def compare(ids: np.ndarray, served: np.ndarray, reference: list[np.ndarray]) -> Agreement:
    """``ids`` and ``served`` [positions, k], of all prompts one after the other; ``reference`` a prompt each."""
    assert len(ids) == sum(map(len, reference))
    start = compared = top1 = 0
    worst, breaks = 0.0, []
    for prompt, rows in enumerate(reference):
        part = slice(start, start + len(rows))
        difference = np.abs(np.take_along_axis(rows, ids[part], axis=1) - served[part]).max(1)
        broken = np.flatnonzero(difference > BREAK)
        until = int(broken[0]) if len(broken) else len(rows)
        if len(broken):
            breaks.append((prompt, until, float(difference[until])))
        if until:
            worst = max(worst, float(difference[:until].max()))
            first = ids[part][:until][np.arange(until), served[part][:until].argmax(1)]
            top1 += int((first == rows[:until].argmax(1)).sum())
        compared += until
        start += len(rows)
    return Agreement(start, compared, worst, top1, tuple(breaks))
