"""Statistics of scores on prompts, and of two models on the same prompts.

A prompt adds ``total`` and ``count`` to a metric, and the score is the sum of totals over the sum of counts: a plain
mean where every count is 1 (GSM8K), a ratio where prompts carry several checks (IFEval's instructions). Prompts are the
independent units throughout: what lies inside one is never taken for more data.

Intervals: Wilson (1927) for plain proportions, Bonett and Price for their paired differences (2012) and ratios (2006);
else the percentile bootstrap over prompts, paired for two models. A bootstrap whose resamples are all alike has no
width, which would be flattery: there is no interval then. Tests: McNemar's exact (a two-sided binomial on the prompts
that only one model got right), else the sign-flip permutation test on differences. Whatever is drawn has a recorded
seed. Where there are fewer than two prompts, there is no interval and no test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fourfold.results import Interval, PairedTest

Array = npt.NDArray[np.float64]

#: Two-sided 95 % quantile of the normal distribution.
Z95 = 1.959963984540054
BOOTSTRAP_RESAMPLES = 10_000
PERMUTATION_RESAMPLES = 20_000
#: Up to this many differing prompts, all sign patterns are tried instead of drawn.
EXACT_PERMUTATIONS = 14
_CHUNK_CELLS = 4_000_000
#: Sums in another order differ in the last bits: what lies closer is the same.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Sample:
    """One metric on n prompts: float64 ``totals`` [n] and ``counts`` [n], all counts positive.

    ``proportion`` says that a total is how many of its count are right; else it may be anything, such as nats.
    """

    totals: Array
    counts: Array
    proportion: bool = True

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.totals)

    @property
    def score(self) -> float | None:
        """Sum of totals over sum of counts; None without a prompt."""
        return float(self.totals.sum() / self.counts.sum()) if self.n else None

    @property
    def is_plain_proportion(self) -> bool:
        """One check a prompt, right or wrong."""
        return self.proportion and bool(np.all(self.counts == 1) and np.all((self.totals == 0) | (self.totals == 1)))

    @property
    def is_at_an_end(self) -> bool:
        """A proportion of which nothing is right, or everything."""
        return self.proportion and bool(np.all(self.totals == 0) or np.all(self.totals == self.counts))


def wilson_interval(right: int, n: int) -> Interval | None:
    """Wilson's 95 % interval of ``right`` out of ``n``; None where n < 2."""
    if n < 2:
        return None
    share, z2 = right / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bounds are 0 and 1 exactly; rounding must not put the share outside.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == n else min(1.0, centre + half)
    return Interval(low=low, high=high, method="wilson")


def standard_error(sample: Sample) -> float | None:
    """Standard error of the score over prompts, n - 1 in the denominator; None where n < 2.

    For unequal counts the linearised one of a ratio; for equal counts both are the usual s / sqrt(n).
    """
    if sample.n < 2:
        return None
    ratio = sample.totals.sum() / sample.counts.sum()
    residuals = sample.totals - ratio * sample.counts
    variance = float(residuals @ residuals) / (sample.n - 1)
    return math.sqrt(variance * sample.n) / float(sample.counts.sum())


def score_interval(sample: Sample, seed: int) -> Interval | None:
    """95 % interval of the score: Wilson where it is a plain proportion, bootstrap over prompts otherwise; None where
    n < 2 or no resample scores otherwise.
    """
    if sample.n < 2:
        return None
    if sample.is_plain_proportion:
        return wilson_interval(int(sample.totals.sum()), sample.n)
    if sample.is_at_an_end:
        # As if each prompt were one check.
        return wilson_interval(sample.n if sample.totals.any() else 0, sample.n)
    sums = _resampled_sums((sample.totals, sample.counts), seed)
    return _percentile_interval(sums[0] / sums[1], "bootstrap", seed)


def difference_interval(baseline: Sample, candidate: Sample, seed: int) -> Interval | None:
    """95 % interval of candidate - baseline on the same prompts; None where n < 2 or no resample differs otherwise."""
    _require_pairs(baseline, candidate)
    if baseline.n >= 2 and baseline.is_plain_proportion and candidate.is_plain_proportion:
        _, gained, lost = _paired_counts(baseline, candidate)
        share_gained, share_lost = (gained + 1) / (baseline.n + 2), (lost + 1) / (baseline.n + 2)
        centre = share_gained - share_lost
        half = Z95 * math.sqrt((share_gained + share_lost - centre * centre) / (baseline.n + 2))
        return Interval(low=max(-1.0, centre - half), high=min(1.0, centre + half), method="bonett-price")
    return _paired_interval(baseline, candidate, seed, lambda base, cand: cand - base)


def retained_interval(baseline: Sample, candidate: Sample, seed: int) -> Interval | None:
    """95 % interval of candidate / baseline on the same prompts.

    None where n < 2, where no resample's is another, and where the baseline scores 0, or does in some resample: the
    quotient has no upper end then.
    """
    _require_pairs(baseline, candidate)
    if baseline.n >= 2 and baseline.is_plain_proportion and candidate.is_plain_proportion:
        return _paired_ratio(*_paired_counts(baseline, candidate))
    return _paired_interval(baseline, candidate, seed, lambda base, cand: cand / base if base.all() else None)


def _paired_counts(baseline: Sample, candidate: Sample) -> tuple[int, int, int]:
    """(right by both, by the candidate alone, by the baseline alone)."""
    both = int(np.sum((baseline.totals == 1) & (candidate.totals == 1)))
    return both, int(candidate.totals.sum()) - both, int(baseline.totals.sum()) - both


def _paired_ratio(both: int, gained: int, lost: int) -> Interval | None:
    """Bonett and Price, Statistics in Medicine 25 (2006) 3039: two Wilson intervals at a z that knows of the pairs."""
    if both + lost == 0:
        return None
    n, ours, theirs = both + gained + lost, both + gained, both + lost
    spread = math.sqrt((gained + lost + 2) / ((ours + 1) * (theirs + 1)))
    parts = [math.sqrt((1 - (x + 1) / (n + 2)) / (x + 1)) for x in (ours, theirs)]
    z = Z95 * spread / sum(parts)
    (low, high), (their_low, their_high) = _wilson_at(ours, n, z), _wilson_at(theirs, n, z)
    return Interval(low=low / their_high, high=high / their_low, method="bonett-price") if their_low > 0 else None


def _wilson_at(right: int, n: int, z: float) -> tuple[float, float]:
    centre, half = 2 * right + z * z, z * math.sqrt(z * z + 4 * right * (1 - right / n))
    return max(0.0, (centre - half) / (2 * (n + z * z))), min(1.0, (centre + half) / (2 * (n + z * z)))


def _paired_interval(
    baseline: Sample, candidate: Sample, seed: int, combine: Callable[[Array, Array], Array | None]
) -> Interval | None:
    if baseline.n < 2:
        return None
    sums = _resampled_sums((baseline.totals, baseline.counts, candidate.totals, candidate.counts), seed)
    values = combine(sums[0] / sums[1], sums[2] / sums[3])
    return None if values is None else _percentile_interval(values, "paired-bootstrap", seed)


def paired_test(baseline: Sample, candidate: Sample, seed: int) -> PairedTest | None:
    """Two-sided test that both score the same on these prompts; None where n < 2."""
    _require_pairs(baseline, candidate)
    if baseline.n < 2:
        return None
    if baseline.is_plain_proportion and candidate.is_plain_proportion:
        only_baseline = int(np.sum((baseline.totals == 1) & (candidate.totals == 0)))
        only_candidate = int(np.sum((baseline.totals == 0) & (candidate.totals == 1)))
        return PairedTest(
            name="mcnemar-exact",
            p_value=mcnemar_exact(only_baseline, only_candidate),
            only_baseline=only_baseline,
            only_candidate=only_candidate,
        )
    return _permutation_test(baseline, candidate, seed)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: twice the smaller binomial tail at 1/2, at most 1."""
    n, k = only_first + only_second, min(only_first, only_second)
    tail = term = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)  # the next binomial coefficient, exactly
        tail += term
    # Of integers: 2^n as a float would overflow beyond 1,023 discordant prompts.
    p_value: float = 2 * tail / (1 << n)
    return min(1.0, p_value)


def _permutation_test(baseline: Sample, candidate: Sample, seed: int) -> PairedTest:
    """Sign flips of what each prompt adds to the difference; statistic: the absolute sum."""
    shares = candidate.totals / candidate.counts.sum() - baseline.totals / baseline.counts.sum()
    shares = shares[shares != 0]
    observed = abs(shares.sum())
    reached = observed * (1 - _ROUNDING)
    if len(shares) <= EXACT_PERMUTATIONS:
        patterns = np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares)) & 1
        sums = np.abs((2.0 * patterns - 1) @ shares)
        return PairedTest(name="paired-permutation", p_value=float(np.mean(sums >= reached)))
    rng = np.random.default_rng(seed)
    hits = 0
    rows = max(1, _CHUNK_CELLS // len(shares))
    for start in range(0, PERMUTATION_RESAMPLES, rows):
        size = min(rows, PERMUTATION_RESAMPLES - start)
        signs = rng.integers(0, 2, size=(size, len(shares))) * 2.0 - 1
        hits += int(np.sum(np.abs(signs @ shares) >= reached))
    # The observed pattern is one of those that could have been drawn, so p is never 0.
    p_value = (1 + hits) / (1 + PERMUTATION_RESAMPLES)
    return PairedTest(name="paired-permutation", p_value=p_value, seed=seed, resamples=PERMUTATION_RESAMPLES)


def _resampled_sums(columns: tuple[Array, ...], seed: int) -> Array:
    """Sums of each column over prompts drawn with replacement, the same draw for all: [columns, resamples]."""
    rng = np.random.default_rng(seed)
    n = len(columns[0])
    stacked = np.stack(columns, axis=1)
    sums = np.empty((BOOTSTRAP_RESAMPLES, len(columns)))
    rows = max(1, _CHUNK_CELLS // n)
    for start in range(0, BOOTSTRAP_RESAMPLES, rows):
        size = min(rows, BOOTSTRAP_RESAMPLES - start)
        drawn = rng.integers(0, n, size=(size, n))
        sums[start : start + size] = stacked[drawn].sum(axis=1)
    return sums.T


def _percentile_interval(values: Array, method: str, seed: int) -> Interval | None:
    if np.ptp(values) <= _ROUNDING * np.abs(values).max():
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval.model_validate(
        {"low": float(low), "high": float(high), "method": method, "seed": seed, "resamples": BOOTSTRAP_RESAMPLES}
    )


def _require_pairs(baseline: Sample, candidate: Sample) -> None:
    if baseline.n != candidate.n:
        raise ValueError(f"paired statistics need the same prompts: {baseline.n} against {candidate.n}")
