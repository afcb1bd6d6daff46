"""KL divergence and top-1 agreement of two truncated next-token distributions, position by position.

A server returns the k most probable tokens of a position (and the token that stands there), so both distributions are
known on their tops alone. On the tokens A that both returned the terms are exact; everything else is one remainder of
known mass, r_P = 1 - P(A) and r_Q = 1 - Q(A), and ::

    KL(P || Q) = sum over A of p log(p / q)  +  r_P log(r_P / r_Q)  +  r_P KL(P's remainder || Q's remainder)

The last term is unknown and not negative. What is reported is the sum of the first two: a lower bound of the KL (by the
log-sum inequality), short of it by r_P times a divergence inside the remainder. r_P is reported beside it. With the
whole vocabulary r_P is 0 and the KL is exact, up to the float32 of the server.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Masses below this are the rounding of float32 log-probabilities, not a remainder.
ROUNDING = 1e-6
#: Pads rows of unequal length; no token has this id.
NO_TOKEN = -1


@dataclass(frozen=True)
class Distributions:
    """T positions: int32 ``ids`` [T, k], most probable first and padded with NO_TOKEN, float32 ``logprobs`` [T, k]."""

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @property
    def num_positions(self) -> int:
        """T."""
        return len(self.ids)


@dataclass(frozen=True)
class PositionDivergence:
    """Per position, float64 or bool [T]: ``kl`` in nats (a lower bound), ``same_top`` and ``remainder`` r_P."""

    kl: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]
    remainder: npt.NDArray[np.float64]


def divergence(baseline: Distributions, candidate: Distributions) -> PositionDivergence:
    """KL(baseline || candidate) at each position; both cover the same positions.

    Raises:
        ValueError: they have different numbers of positions.
    """
    if baseline.num_positions != candidate.num_positions:
        raise ValueError(f"{baseline.num_positions} positions against {candidate.num_positions}")
    rows = [_position(baseline, candidate, t) for t in range(baseline.num_positions)]
    return PositionDivergence(
        kl=np.array([row[0] for row in rows], dtype=np.float64),
        same_top=baseline.ids[:, 0] == candidate.ids[:, 0],
        remainder=np.array([row[1] for row in rows], dtype=np.float64),
    )


def _position(baseline: Distributions, candidate: Distributions, t: int) -> tuple[float, float]:
    _, first, second = np.intersect1d(_known(baseline, t), _known(candidate, t), True, return_indices=True)
    log_p = baseline.logprobs[t, first].astype(np.float64)
    log_q = candidate.logprobs[t, second].astype(np.float64)
    p = np.exp(log_p)
    rest_p, rest_q = 1 - float(p.sum()), 1 - float(np.exp(log_q).sum())
    kl = float((p * (log_p - log_q)).sum())
    if rest_p <= ROUNDING:
        return max(0.0, kl), 0.0
    return max(0.0, kl + rest_p * float(np.log(rest_p / max(rest_q, ROUNDING)))), rest_p


def _known(distributions: Distributions, t: int) -> npt.NDArray[np.int32]:
    row: npt.NDArray[np.int32] = distributions.ids[t]
    kept: npt.NDArray[np.int32] = row[row != NO_TOKEN]
    return kept
