"""Which domains are the same texts in two languages: tokens and groups enter, pairs of groups leave.

Groups of two domains with the same name may be one chapter in two languages, or merely two chapters 7. Translations
share what is not translated (numbers, names, code), so a chapter is more like its own translation than like that of
another one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.statistics.counts import GroupCounts
from moetool.statistics.token_text import KeptTokens

PARALLEL_GROUPS, PARALLEL_SHARE = 8, 0.3
"""Names that two domains must share: so many, and this share of the smaller one's."""
ORDERS, LEVEL = 999, 0.01
"""Random pairings that the given one is held against."""

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
Translations = dict[int, dict[int, Pairs]]
"""Per domain the domains that are its translations, with the groups of both that belong together."""


def find_translations(
    trace: RoutingTrace, tokens: KeptTokens, counts: GroupCounts, rng: np.random.Generator
) -> Translations:
    """Pairs of domains whose groups of one name are surely more alike than others.

    Only names that the corpus gives itself count: a running id says nothing of another domain.
    """
    named = {(document.domain, document.group) for document in trace.documents if document.group != document.id}
    places = [
        {
            counts.names[group]: group
            for group in np.flatnonzero(counts.domain == index).tolist()
            if (name, counts.names[group]) in named
        }
        for index, name in enumerate(counts.domains)
    ]
    sizes = counts.groups_of_domain()
    found: Translations = {index: {} for index in range(len(places))}
    for one in range(len(places)):
        for other in range(one + 1, len(places)):
            shared = sorted(places[one].keys() & places[other].keys())
            if len(shared) < max(PARALLEL_GROUPS, PARALLEL_SHARE * min(sizes[one], sizes[other])):
                continue
            own, others = (np.array([places[index][name] for name in shared]) for index in (one, other))
            if _alike_in_pairs(tokens, own, others, rng):
                found[one][other], found[other][one] = (own, others), (others, own)
    return found


def _alike_in_pairs(
    tokens: KeptTokens, own: NDArray[np.int64], others: NDArray[np.int64], rng: np.random.Generator
) -> bool:
    """Whether the given pairing is more alike than all but LEVEL of random ones."""
    words = len(tokens.ids)
    bags = []
    for groups in (own, others):
        rows = np.isin(tokens.group, groups)
        place = np.searchsorted(np.sort(groups), tokens.group[rows])
        bag = np.bincount(place * words + tokens.word[rows], minlength=len(groups) * words).reshape(-1, words)
        bags.append((bag > 0)[np.argsort(np.argsort(groups))].astype(np.float32))
    rare = np.log1p(2 * len(own) / (1 + sum(bag.sum(axis=0) for bag in bags)))
    first, second = (_unit(bag * rare) for bag in bags)
    alike = first @ second.T
    paired = np.diagonal(alike).mean()
    order = rng.permuted(np.tile(np.arange(len(own)), (ORDERS, 1)), axis=1)
    null = alike[np.arange(len(own)), order].mean(axis=1)
    return bool((1 + (null >= paired - 1e-9).sum()) / (1 + ORDERS) <= LEVEL)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit
