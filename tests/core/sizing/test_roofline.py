"""The speed model against published figures: its errors are stated, and no constant was fitted to one row."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from core.sizing.published import CHOSEN, CONTEXT, FITTED, HELD_OUT, Row, predict
from fourfold.hardware import gpu_by_name
from fourfold.sizing import BYTES_SHARE, KERNEL_S, read_shape
from fourfold.sizing.roofline import SMALL_KERNELS, bytes_per_token, kernel_bytes

DOCS = Path(__file__).parents[3] / "docs" / "sizing.md"


def fit(rows: tuple[Row, ...]) -> tuple[float, float]:
    """(share, kernel seconds) by least squares on the logarithm: ever finer grids."""
    shape = read_shape("gemma4-26b-a4b")
    reads = [
        (kernel_bytes(shape, CHOSEN[row.recipe], CONTEXT, 2), gpu_by_name(row.gpu).bandwidth, row.measured)
        for row in rows
    ]
    small = SMALL_KERNELS * len(shape.layers)

    def loss(point: tuple[float, float]) -> float:
        share, kernel = point
        found = 0.0
        for counts, bandwidth, measured in reads:
            seconds = sum(max(kernel, count / (share * bandwidth)) for count in counts) + kernel * small
            found += math.log(1 / seconds / measured) ** 2
        return found

    best, width = (0.7, 5e-6), 1.6
    for _ in range(12):
        steps = [width ** (k / 3) for k in range(-3, 4)]
        best = min(((best[0] * a, best[1] * b) for a in steps for b in steps), key=loss)
        width = 1 + (width - 1) * 0.6
    return best


def error(predicted: float, row: Row) -> float:
    """Percent."""
    return 100 * (predicted / row.measured - 1)


def test_the_constants_are_the_fit_to_all_rows() -> None:
    share, kernel = fit(FITTED)
    assert share == pytest.approx(BYTES_SHARE, rel=0.02)
    assert kernel == pytest.approx(KERNEL_S, rel=0.03)


def test_every_error_is_the_one_that_the_page_states() -> None:
    stated = {
        (gpu, recipe): (float(fitted), left_out)
        for gpu, recipe, fitted, left_out in re.findall(
            r"^\| `([\w-]+)` \| ([\w-]+) \| [\d.]+ \| [\d.]+ \| ([+-]\d+) % \| ([+-]\d+ %|not fitted) \|",
            DOCS.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
    }
    for row in FITTED:
        share, kernel = fit(tuple(other for other in FITTED if other is not row))
        left_out = error(predict(row, share=share, kernel_s=kernel), row)
        fitted, stated_left_out = stated[row.gpu, row.recipe]
        assert error(predict(row), row) == pytest.approx(fitted, abs=1), row
        assert left_out == pytest.approx(float(stated_left_out.removesuffix(" %")), abs=2), row
        assert abs(left_out) <= 27, row
    assert abs(error(predict(HELD_OUT[0]), HELD_OUT[0]) - stated["rtx-5090", "attention-bf16"][0]) <= 1


@pytest.mark.parametrize("gpu", ["gb10", "rtx-pro-6000-max-q", "h200"])
def test_the_order_of_recipes_on_a_gpu_is_the_measured_one(gpu: str) -> None:
    rows = [row for row in FITTED if row.gpu == gpu]
    assert sorted(rows, key=predict) == sorted(rows, key=lambda row: row.measured)


@pytest.mark.parametrize(("recipe", "gigabytes"), [("BF16", 7.79), ("all-linear", 3.35), ("experts-only", 5.73)])
def test_bytes_of_a_token_by_hand(recipe: str, gigabytes: float) -> None:
    """3.82 B active weights at 2 or 0.5625 bytes, keys that a full layer's v slot reads again, 500 tokens of cache."""
    attention = 25 * 2816 * (4096 * 2 + 2048 * 2) + 5 * 2816 * (8192 * 2 + 1024 * 2)
    dense, experts, head = 30 * 3 * 2816 * 2112, 30 * 8 * 3 * 2816 * 704, 262_144 * 2816
    router, cache = 30 * (128 * 2816 + 2816 + 128), 2 * 500 * (25 * 2048 + 5 * 1024)
    width = {"BF16": (2, 2, 2), "all-linear": (0.5625,) * 3, "experts-only": (2, 2, 0.5625)}[recipe]
    by_hand = width[0] * attention + width[1] * dense + width[2] * experts + 2 * (head + router + cache)
    shape = read_shape("gemma4-26b-a4b")
    assert bytes_per_token(shape, CHOSEN[recipe], context=500, kv_bytes=2) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand / 1e9 == pytest.approx(gigabytes, abs=0.01)
