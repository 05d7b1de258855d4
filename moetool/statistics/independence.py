"""Whether the groups of a domain look independent: enters as GroupCounts, leaves as a p value per domain.

Excerpts of one book given as separate groups are alike, and neighbours most of all. Every test here takes groups as
independent, so such a corpus would make its p values too small and its intervals too narrow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.counts import GroupCounts

ORDERS = 999
"""Random orders of a domain's groups; the smallest p value is 1 / (1 + ORDERS)."""


def neighbour_p_values(counts: GroupCounts, rng: np.random.Generator) -> NDArray[np.float64]:
    """``[D]`` share of random orders in which neighbouring groups are as alike as in the given order; NaN below 8
    groups.

    Likeness is the cosine of two groups' deviations from their domain's token shares, each cell in its own standard
    error.
    """
    p_value = np.full(len(counts.domains), np.nan)
    for index in range(len(counts.domains)):
        members = np.flatnonzero(counts.domain == index)
        if len(members) < 8:
            continue
        hits, tokens = counts.hits[members], counts.tokens[members][:, None]
        share = hits.sum(axis=0) / tokens.sum()
        deviation = (hits - tokens * share) / np.sqrt(np.maximum(tokens * share, 1e-9))
        deviation /= np.maximum(np.linalg.norm(deviation, axis=1, keepdims=True), 1e-9)
        alike = deviation @ deviation.T
        order = rng.permuted(np.tile(np.arange(len(members)), (ORDERS, 1)), axis=1)
        null = alike[order[:, 1:], order[:, :-1]].mean(axis=1)
        p_value[index] = (1 + (null >= np.diagonal(alike, 1).mean()).sum()) / (1 + ORDERS)
    return p_value
