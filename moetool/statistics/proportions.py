"""Intervals of proportions near 0 or 1: a proportion and its linearised standard error enter, both ends leave."""

from __future__ import annotations

import math


def score_interval(value: float, error: float, quantile: float, most: float) -> tuple[float, float]:
    """Wilson's interval of a proportion of clustered counts, within 0 and 1 and never without width.

    ``error`` is the standard error from the clusters, ``quantile`` that of Student's t, ``most`` the counts. The
    effective size is value (1 - value) / error^2, at most the counts: few clusters with a failure say little about how
    failures cluster, and without any the error is 0. In the middle this is value +- quantile x error (Franco et al.,
    Comparative study of confidence intervals for proportions in complex sample surveys, 2019).
    """
    spread = value * (1 - value)
    size = min(spread / error**2, most) if error > 0 else most
    shrink = quantile**2 / size
    middle = (value + shrink / 2) / (1 + shrink)
    half = quantile * math.sqrt(spread / size + shrink / (4 * size)) / (1 + shrink)
    return max(middle - half, 0.0), min(middle + half, 1.0)
