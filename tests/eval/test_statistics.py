"""Statistics against published tables, brute force and textbook formulas; none is checked against itself."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from fourfold.evaluate.statistics import (
    EXACT_PERMUTATIONS,
    Sample,
    difference_interval,
    mcnemar_exact,
    paired_test,
    retained_interval,
    score_interval,
    standard_error,
    wilson_interval,
)


def sample(totals: object, counts: object = None) -> Sample:
    values = np.asarray(totals, dtype=np.float64)
    return Sample(values, np.ones_like(values) if counts is None else np.asarray(counts, dtype=np.float64))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: the score interval.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_the_published_table(right: int, n: int, low: float, high: float) -> None:
    interval = wilson_interval(right, n)
    assert interval is not None
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    mirrored = wilson_interval(n - right, n)
    assert mirrored is not None
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low))


def test_mcnemar_agrees_with_enumeration() -> None:
    for n in range(1, 13):
        outcomes = [sum(bits) for bits in itertools.product((0, 1), repeat=n)]
        for k in range(n + 1):
            at_least_as_far = sum(abs(2 * heads - n) >= abs(2 * k - n) for heads in outcomes)
            assert mcnemar_exact(k, n - k) == float(Fraction(at_least_as_far, 2**n))
    assert mcnemar_exact(0, 0) == 1.0


def test_mcnemar_does_not_overflow_and_agrees_with_the_normal_limit() -> None:
    b, c = 5200, 4800
    corrected = (abs(b - c) - 1) / math.sqrt(b + c)
    assert mcnemar_exact(b, c) == pytest.approx(math.erfc(corrected / math.sqrt(2)), rel=1e-2)
    assert mcnemar_exact(9000, 0) == 0.0


def test_permutation_test_agrees_with_enumeration() -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 4, size=9).astype(float)
    candidate = base + rng.normal(0.4, 1, size=9)
    differences = candidate - base
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in
            itertools.product((-1, 1), repeat=9)]  # fmt: skip
    expected = np.mean([value >= abs(differences.sum()) * (1 - 1e-12) for value in sums])
    test = paired_test(sample(base), sample(candidate), seed=0)
    assert test is not None
    assert (test.name, test.seed, test.p_value) == ("paired-permutation", None, expected)


def test_drawn_permutations_come_near_the_exact_value_and_record_their_seed() -> None:
    rng = np.random.default_rng(5)
    n = EXACT_PERMUTATIONS + 4
    base, candidate = rng.random(n), rng.random(n) + 0.3
    differences = candidate - base
    signs = (np.arange(2**n)[:, None] >> np.arange(n) & 1) * 2 - 1
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-12))
    test = paired_test(sample(base), sample(candidate), seed=11)
    assert test is not None
    assert test.seed == 11
    assert test.p_value == pytest.approx(exact, abs=0.01)
    assert 0.001 < exact < 0.5


def test_standard_error_is_the_textbook_one_and_that_of_a_ratio_is_the_jackknifes() -> None:
    values = np.array([0.0, 1, 1, 0, 1, 1, 1, 0])
    assert standard_error(sample(values)) == pytest.approx(values.std(ddof=1) / math.sqrt(8))
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, size=400)
    totals = rng.binomial(counts, 0.7)
    left_out = (totals.sum() - totals) / (counts.sum() - counts)
    jackknife = math.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    assert standard_error(sample(totals, counts)) == pytest.approx(jackknife, rel=0.01)


def test_bootstrap_interval_is_the_normal_one_for_many_prompts() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, size=1500)
    interval = score_interval(sample(values), seed=7)
    error = standard_error(sample(values))
    assert interval is not None and error is not None
    assert (interval.method, interval.seed, interval.resamples) == ("bootstrap", 7, 10_000)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


@pytest.mark.parametrize("checks", [1, 2])
def test_paired_intervals_use_the_pairs(checks: int) -> None:
    """Two models that err on the same hard prompts differ by far less than independent ones would.

    With one check a prompt by the closed form, with two by the bootstrap.
    """
    rng = np.random.default_rng(2)
    base = (rng.random(1000) < 0.8).astype(float)
    candidate = base.copy()
    candidate[np.flatnonzero(base)[:20]] = 0
    counts = np.full(1000, checks)
    pair = sample(base * checks, counts), sample(candidate * checks, counts)
    difference, retained = difference_interval(*pair, seed=0), retained_interval(*pair, seed=0)
    assert difference is not None and retained is not None
    assert {difference.method, retained.method} == {"bonett-price" if checks == 1 else "paired-bootstrap"}
    paired_error = (candidate - base).std(ddof=1) / math.sqrt(1000)
    assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * paired_error, rel=0.1)
    assert retained.low < candidate.mean() / base.mean() < retained.high
    assert difference.high < 0 and retained.high < 1


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.05])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(drop: float) -> None:
    """Coverage in simulated pairs, near the ceiling where a bootstrap collapses."""
    rng = np.random.default_rng(12)
    n, runs, differences, ratios = 600, 800, 0, 0
    for _ in range(runs):
        base = (rng.random(n) < 0.97).astype(float)
        flipped = rng.random(n) < 0.02
        candidate = np.where(flipped, rng.random(n) < 0.97, base) * (rng.random(n) >= drop)
        truth = -0.97 * drop
        difference = difference_interval(sample(base), sample(candidate), 0)
        ratio = retained_interval(sample(base), sample(candidate), 0)
        assert difference is not None and ratio is not None
        differences += difference.low <= truth <= difference.high
        ratios += ratio.low <= 1 - drop <= ratio.high
    assert differences / runs >= 0.93
    assert ratios / runs >= 0.93


def test_models_that_agree_everywhere_are_not_said_to_be_equal() -> None:
    """Thirty of thirty twice: no p, and an interval that thirty prompts allow."""
    right = sample([1.0] * 30)
    difference, retained = difference_interval(right, right, 0), retained_interval(right, right, 0)
    assert difference is not None and retained is not None
    assert difference.low < -0.05 and difference.high > 0.05
    assert retained.low < 0.95 and retained.high > 1.05
    checks = sample([2.0] * 30, [2.0] * 30)
    assert difference_interval(checks, checks, 0) is retained_interval(checks, checks, 0) is None
    interval = score_interval(checks, 0)
    assert interval is not None and (round(interval.low, 3), interval.high) == (0.886, 1.0)


def test_below_two_prompts_nothing_is_claimed() -> None:
    one = sample([1.0])
    assert standard_error(one) is score_interval(one, 0) is paired_test(one, one, 0) is None
    assert wilson_interval(1, 1) is difference_interval(one, one, 0) is retained_interval(one, one, 0) is None
    assert one.score == 1.0
    assert sample([]).score is None


def test_no_interval_is_made_of_resamples_that_are_all_alike() -> None:
    counts = np.full(6, 2.0)
    right = np.array([2.0, 1, 2, 1, 2, 1])
    assert difference_interval(Sample(right, counts), Sample(right - 1, counts), 0) is None
    zeros = np.zeros(6)
    assert score_interval(Sample(zeros, counts, proportion=False), 0) is None  # of nats: 0, and no share
    none_right = score_interval(Sample(zeros, counts), 0)
    assert none_right is not None and (none_right.low, none_right.method) == (0, "wilson")


def test_a_baseline_of_zero_retains_nothing_that_could_be_said() -> None:
    assert retained_interval(sample([0.0] * 5), sample([1.0] * 5), 0) is None


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts: 2 against 3"):
        paired_test(sample([1, 0]), sample([1, 0, 1]), 0)


def test_error_rates_of_the_paired_test() -> None:
    """Planted: of equal models few are told apart; of models a known 4 points apart most are."""
    rng = np.random.default_rng(8)
    n, runs = 600, 300

    def rejected(drop: float) -> float:
        hits = 0
        for _ in range(runs):
            chance = np.where(rng.random(n) < 0.85, 0.97, 0.2)
            base = (rng.random(n) < chance).astype(float)
            candidate = (rng.random(n) < np.clip(chance - drop, 0, 1)).astype(float)
            test = paired_test(sample(base), sample(candidate), 0)
            assert test is not None and test.name == "mcnemar-exact"
            hits += test.p_value < 0.05
        return hits / runs

    assert rejected(0.0) <= 0.06
    assert rejected(0.06) >= 0.9
