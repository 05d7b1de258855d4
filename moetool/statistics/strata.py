"""A domain against the others at equal strata: tokens, groups and strata enter, adjusted lifts with intervals leave.

Strata are token classes or token ids. What is left of a lift when both sides are given the same mixture of strata does
not come from that mixture (direct standardisation; Cochran, Biometrics 24, 1968).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.student import student_quantile

LEAST_TOKENS, LEAST_GROUPS = 8, 2
"""Of a stratum, on both sides: of fewer, shares within it say nothing."""
PSEUDO_SHARE = 1e-4
"""Added to shares whose logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Side:
    """The tokens of one side that are in common strata; ``M`` tokens, ``S`` common strata, ``G`` groups of the side."""

    where: NDArray[np.int64]
    """``[M]`` their index among all tokens."""
    stratum: NDArray[np.int64]
    """``[M]``"""
    group: NDArray[np.int64]
    """``[M]``"""
    weight: NDArray[np.float64]
    """``[M]`` of each token: the share of its stratum in the standard, over the tokens of the side in it."""
    mixture: NDArray[np.float32]
    """``[G, S]`` sums of these weights."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides with the same mixture of strata."""

    own: Side
    others: Side
    coverage: float
    """Share of the own tokens that are in common strata."""
    overlap: float
    """What the two mixtures of strata have in common, 0 to 1: the sum of the smaller shares."""
    domains: int


@dataclass(frozen=True, slots=True)
class AdjustedLifts:
    """Lifts at equal strata, ``[E]`` each."""

    lift: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def compare_at_strata(
    stratum: NDArray[np.integer[Any]], group: NDArray[np.int64], own: NDArray[np.bool_], domains: int
) -> Comparison | None:
    """Prepare the comparison of ``own`` tokens with all others, for every layer; None without a common stratum.

    ``stratum``, ``group`` and ``own`` are ``[N]``; groups belong to one side. The standard mixture gives each common
    stratum the smaller of its two shares, which keeps weights even (overlap weights; Li, JASA 113, 2018).
    """
    strata = int(stratum.max(initial=0)) + 1
    sides = (np.flatnonzero(own), np.flatnonzero(~own))
    tokens = [np.bincount(stratum[side], minlength=strata) for side in sides]
    spread = [_groups_per_stratum(stratum[side], group[side], strata) for side in sides]
    common = np.ones(strata, bool)
    for count, groups in zip(tokens, spread, strict=True):
        common &= (count >= LEAST_TOKENS) & (groups >= LEAST_GROUPS)
    if not common.any():
        return None
    shares = [count[common] / max(len(side), 1) for count, side in zip(tokens, sides, strict=True)]
    standard = np.minimum(*shares)
    overlap = float(standard.sum())
    standard /= overlap
    number = np.cumsum(common) - 1
    made = [
        _side(side[common[stratum[side]]], stratum, group, number, standard / count[common])
        for side, count in zip(sides, tokens, strict=True)
    ]
    return Comparison(made[0], made[1], len(made[0].where) / max(len(sides[0]), 1), overlap, domains)


def _groups_per_stratum(stratum: NDArray[np.integer[Any]], group: NDArray[np.int64], strata: int) -> NDArray[np.int64]:
    pairs = np.unique(group * strata + stratum)
    return np.bincount(pairs % strata, minlength=strata)


def _side(
    where: NDArray[np.int64],
    stratum: NDArray[np.integer[Any]],
    group: NDArray[np.int64],
    number: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> Side:
    within = number[stratum[where]]
    _, of_side = np.unique(group[where], return_inverse=True)
    groups, strata = int(of_side.max()) + 1, len(weights)
    weight = weights[within]
    mixture = np.bincount(of_side * strata + within, weights=weight, minlength=groups * strata)
    return Side(where, within, of_side, weight, mixture.reshape(groups, strata).astype(np.float32))


def adjusted_lifts(comparison: Comparison, chosen: NDArray[np.unsignedinteger[Any]], experts: int) -> AdjustedLifts:
    """Lift of the own side over the mean of all domains at the standard mixture, for every expert of a layer.

    ``chosen`` is ``[N, K]``. With r the ratio of the two standardised shares, the lift is D r / (r + D - 1), as an
    unadjusted one is if all domains weigh the same. The interval of log r is a t interval with the linearised variance
    over groups (Cochran, Sampling Techniques, 5A and 6.4), groups of the smaller side less one degrees of freedom.
    """
    shares, variances, groups = [], [], []
    for side in (comparison.own, comparison.others):
        share, variance = _standardised(side, chosen, experts)
        shares.append(share + PSEUDO_SHARE)
        variances.append(variance / (share + PSEUDO_SHARE) ** 2)
        groups.append(len(side.mixture))
    ratio = np.log(shares[0] / shares[1])
    reach = student_quantile(max(min(groups) - 1.0, 1.0)) * np.sqrt(variances[0] + variances[1])
    ends = (_as_lift(np.exp(value), comparison.domains) for value in (ratio, ratio - reach, ratio + reach))
    return AdjustedLifts(*ends)


def _as_lift(ratio: NDArray[np.float64], domains: int) -> NDArray[np.float64]:
    return domains * ratio / (ratio + domains - 1)


def _standardised(
    side: Side, chosen: NDArray[np.unsignedinteger[Any]], experts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standardised token shares ``[E]`` and their variances over groups."""
    picked = chosen[side.where]
    groups, strata = side.mixture.shape
    slots = picked.shape[1]
    weight = np.repeat(side.weight, slots)
    cells = (side.group[:, None] * experts + picked).ravel()
    drawn = np.bincount(cells, weights=weight, minlength=groups * experts).reshape(groups, experts)
    hits = np.bincount((side.stratum[:, None] * experts + picked).ravel(), minlength=strata * experts)
    tokens = np.bincount(side.stratum, minlength=strata)
    within = (hits.reshape(strata, experts) / tokens[:, None]).astype(np.float32)
    residual = drawn - side.mixture @ within
    return drawn.sum(axis=0), (residual**2).sum(axis=0) * groups / max(groups - 1, 1)


def paired_ratio(
    own: NDArray[np.float64], others: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Ratio of two weighted mean shares over pairs of groups, and its 95 % interval.

    ``own`` and ``others`` are ``[P]`` shares in the two members of each pair (the same chapter in two languages).
    """
    weight = weight / weight.sum()
    first, second = float(weight @ own) + PSEUDO_SHARE, float(weight @ others) + PSEUDO_SHARE
    residual = weight * ((own - first) / first - (others - second) / second)
    pairs = len(own)
    error = math.sqrt(float((residual**2).sum()) * pairs / max(pairs - 1, 1))
    reach = float(student_quantile(max(pairs - 1.0, 1.0))) * error
    ratio = math.log(first / second)
    return math.exp(ratio), math.exp(ratio - reach), math.exp(ratio + reach)
