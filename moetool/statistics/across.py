"""From layers to one number: a statistic's values of all layers enter, mean, worst, percentiles and intervals leave.

Experts of different layers are unrelated, so layers are never added up; each is a value of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.student import LEVEL, student_quantile

Worse = Literal["high", "low"]
PERCENTILES = (50, 75, 90, 95)
ENOUGH_GROUPS = 8
"""Independent groups of documents, below which no interval is given: it would be too narrow."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A statistic over the layers that have it."""

    mean: float
    worst: float
    best: float
    worst_layer: int
    percentiles: tuple[float, ...]
    """At PERCENTILES."""


def spread(layers: Sequence[int], values: Sequence[float | int | None], worse: Worse) -> Spread | None:
    """Mean, worst (the first of equals) and percentiles over layers; None if no layer has a value."""
    known = [(layer, float(value)) for layer, value in zip(layers, values, strict=True) if value is not None]
    if not known:
        return None
    numbers = np.array([value for _, value in known])
    place = int(numbers.argmax() if worse == "high" else numbers.argmin())
    percentiles = tuple(float(value) for value in np.percentile(numbers, PERCENTILES))
    best = float(numbers.min() if worse == "high" else numbers.max())
    return Spread(float(numbers.mean()), float(numbers[place]), best, known[place][0], percentiles)


def has_intervals(group_domain: NDArray[np.int32]) -> bool:
    """Whether groups ``[G]`` of documents are enough for intervals: ENOUGH_GROUPS, at least two in every domain."""
    return len(group_domain) >= ENOUGH_GROUPS and int(np.unique(group_domain, return_counts=True)[1].min()) >= 2


def interval(
    value: float, replicates: NDArray[np.float64], groups: int, limits: tuple[float, float], quadratic: bool = False
) -> tuple[float, float] | None:
    """The 95 % interval of ``value`` from ``replicates [R]``, ``groups`` drawn with replacement within each domain.

    The basic bootstrap, 2 v - quantiles (Davison and Hinkley 1997, 5.2.1): a largest load, an entropy or a Gini
    coefficient of few documents is biased, its replicates once more by as much, and mirroring takes that back; spread
    as Student's t for few groups. Where noise adds to the square (``quadratic``), squares are mirrored too and the
    wider ends kept: at perfect balance the interval then reaches 0. Widened to hold the value, which is not corrected,
    and cut to the attainable ``limits``. In simulations (flat and skewed loads, 8 to 40 groups) those of entropy, cv
    and Gini hold the truth in 92 to 100 % of the cases, those of a largest load that two experts tie for in 82 % at
    worst.
    None where a replicate is undefined.
    """
    if not np.isfinite(replicates).all():
        return None
    wider = float(student_quantile(max(groups - 1.0, 1.0))) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    wider *= math.sqrt(groups / max(groups - 1, 1))
    ends = [value]
    for power in (1, 2) if quadratic else (1,):
        powers = replicates**power
        mean = powers.mean()
        lower, upper = np.quantile(powers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - mean
        centre = 2 * value**power - mean
        ends += [max(0.0, end) ** (1 / power) for end in (centre - wider * upper, centre - wider * lower)]
    low, high = limits
    return float(np.clip(min(ends), low, high)), float(np.clip(max(ends), low, high))
