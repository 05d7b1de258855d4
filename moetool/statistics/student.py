"""Intervals of few groups: degrees of freedom enter, quantiles of Student's t leave."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of every interval that is not said to be of another."""


def student_quantile(degrees: NDArray[np.floating[Any]] | float, level: float = LEVEL) -> NDArray[np.float64]:
    """Upper end of the central ``level`` of Student's t for at least 1 degree of freedom, expanded around the normal
    one.

    Abramowitz and Stegun 26.7.5: within 0.1 % from 3 degrees up, 11 % too small at 1.
    """
    x = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return np.asarray(sum(term / degrees**power for power, term in enumerate(terms)), dtype=np.float64)
