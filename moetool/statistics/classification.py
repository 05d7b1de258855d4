"""Naming a document's domain from its routing alone: enters as GroupCounts, leaves as accuracy on held-out groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.counts import GroupCounts

PSEUDO_HIT = 0.5
"""Added to every expert's hits in every domain (Krichevsky-Trofimov), so that an expert not seen there rules nothing
out."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Held-out classification of groups by domain."""

    predicted: NDArray[np.int64]
    """``[G]`` domain named for each group."""
    correct: NDArray[np.bool_]
    """``[G]``"""
    domain_accuracy: NDArray[np.float64]
    """``[D]`` share of the domain's groups named right."""
    accuracy: float
    """Mean over domains, so that a large domain cannot be won by naming it always."""
    chance: float
    """1 / D, what any guess reaches in that mean."""


def classify_groups(counts: GroupCounts) -> Classification | None:
    """Name each group's domain by the largest log-likelihood of its choices, learned without it.

    To learn a domain from one group less makes it a little worse everywhere, so one group of every other domain is
    left out too: otherwise the right domain would be named less often than by chance where there is nothing to learn.
    All layers count alike, experts by smoothed slot shares (multinomial naive Bayes). None where a domain has a
    single group.
    """
    domains, groups = len(counts.domains), len(counts.tokens)
    if counts.groups_of_domain().min() < 2:
        return None
    members = [np.flatnonzero(counts.domain == index) for index in range(domains)]
    rank = np.zeros(groups, dtype=np.int64)
    for group in members:
        rank[group] = np.arange(len(group))
    score = np.empty((groups, domains))
    for index, group in enumerate(members):
        left_out = group[rank % len(group)]
        hits = counts.hits[group].sum(axis=0) - counts.hits[left_out]
        tokens = counts.tokens[group].sum() - counts.tokens[left_out]
        slots = tokens[:, None] * counts.experts_per_token + PSEUDO_HIT * _experts(counts)
        score[:, index] = (counts.hits * np.log((hits + PSEUDO_HIT) / slots)).sum(axis=1, dtype=np.float64)
    predicted = score.argmax(axis=1)
    correct = predicted == counts.domain
    by_domain = np.array([correct[group].mean() for group in members])
    return Classification(predicted, correct, by_domain, float(by_domain.mean()), 1 / domains)


def _experts(counts: GroupCounts) -> NDArray[np.float32]:
    """``[C]`` E of the layer of each cell."""
    sizes = [layer.experts for layer in counts.layers]
    return np.repeat(np.array(sizes, dtype=np.float32), sizes)
