"""A map on which documents that route alike lie together: enters as GroupCounts, leaves as a point for each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.counts import GroupCounts

AXES = 2
LEAST_VARIANCE = 1e-12
"""Groups whose mean squared distance from their mean is less are equal up to rounding."""


@dataclass(frozen=True, slots=True)
class DocumentMap:
    """Groups of documents in the plane of their two largest principal components."""

    points: NDArray[np.float64]
    """``[G, 2]`` in units of Hellinger distance: two groups lie at most 1 apart."""
    explained_share: NDArray[np.float64]
    """``[2]`` share of the variance between groups that each axis shows; NaN where all groups are equal."""


def map_documents(counts: GroupCounts) -> DocumentMap:
    """Place the groups by their routing profiles.

    The profile is the square root of the slot shares of every layer: the Euclidean distance of two of them is the root
    of their mean squared Hellinger distance over layers, in which rare and frequent experts weigh alike. The principal
    components come from the ``[G, G]`` matrix of inner products, because there are fewer groups than cells. The first
    group that lies at least half as far out as the farthest one is on the positive side of an axis.
    """
    profile = _profiles(counts)
    profile -= profile.mean(axis=0)
    inner = profile @ profile.T
    variance = np.trace(inner)
    points, explained = np.zeros((len(inner), AXES)), np.full(AXES, np.nan)
    if variance > LEAST_VARIANCE * len(inner):
        values, vectors = np.linalg.eigh(inner)
        largest = np.maximum(values[::-1][:AXES], 0)
        points = _turned(vectors[:, ::-1][:, :AXES]) * np.sqrt(largest)
        explained = largest / variance
    return DocumentMap(points, explained)


def _profiles(counts: GroupCounts) -> NDArray[np.float64]:
    """``[G, C]`` roots of slot shares, scaled so that distances are means over layers."""
    slots = counts.tokens[:, None].astype(np.float64) * counts.experts_per_token
    return np.sqrt(counts.hits / slots / (2 * len(counts.layers)))


def _turned(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns with the sign that a decomposition leaves open."""
    far = np.abs(vectors) >= np.abs(vectors).max(axis=0) / 2
    first = np.take_along_axis(vectors, far.argmax(axis=0)[None], axis=0)
    return vectors * np.sign(first)
