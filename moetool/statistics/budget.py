"""Which tokens count when domains are compared: enters as a RoutingTrace, leaves as a mask of its tokens.

Domains differ in size and documents in length. Each domain gets the same number of tokens, and no group of documents
more than a few times what is usual in its domain. The evidence grows with the number of groups and hardly with the
tokens of one group, so a domain that has too many tokens keeps all its groups and loses tokens of its longest ones: a
random part of a group's tokens, not its end, because position in a document also moves the routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.errors import MoetoolError
from moetool.statistics.counts import Units, domain_units
from moetool.statistics.templates import Template, find_templates

GROUP_CAP = 4
"""A group counts for at most this many times the median group of its domain."""

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """The tokens that a comparison of domains counts."""

    keep: NDArray[np.bool_]
    """``[T]``"""
    text: NDArray[np.bool_]
    """``[T]`` counted tokens outside templates, before the budget."""
    templates: tuple[Template, ...]
    available: NDArray[np.int64]
    """``[D]`` counted tokens outside templates."""
    budget_tokens: int
    """Tokens that each domain keeps."""


def sample_tokens(trace: RoutingTrace, seed: int) -> Sample:
    """Mask templates and give every domain the same number of tokens.

    Raises MoetoolError where there are fewer than two domains or a domain has no token left.
    """
    if len(trace.domains) < 2:
        raise MoetoolError(
            f"specialization compares domains, and all {len(trace.documents)} documents are of the domain "
            f"{trace.domains[0] if trace.domains else None!r}",
            "name two or more: --text python=FILE --text law=FILE",
        )
    templates, masked = find_templates(trace)
    keep = trace.counted & ~masked
    units = domain_units(trace)
    kept, available, budget = level_tokens(trace, keep, units, np.random.default_rng([seed, 1]))
    for name, count in zip(trace.domains, available, strict=True):
        if count == 0:
            raise MoetoolError(
                f"the domain {name!r} has no tokens to count", "give it longer documents or leave it out"
            )
    return Sample(kept, keep, templates, available, budget)


def level_tokens(
    trace: RoutingTrace, keep: NDArray[np.bool_], units: Units, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """Thin the tokens with ``keep [T]`` so that every label has as many: the mask, what each has, and the budget."""
    unit = np.repeat(units.of_document, [document.tokens for document in trace.documents])
    tokens = np.bincount(unit[keep], minlength=len(units.label))
    available = np.bincount(units.label, weights=tokens, minlength=len(units.labels)).astype(np.int64)
    if not available.all():
        return np.zeros_like(keep), available, 0
    quota, budget = token_quotas(tokens, units.label, rng)
    return thin(keep, unit, quota, rng), available, budget


def token_quotas(tokens: Integers, domain: Integers, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Tokens that each group keeps ``[G]`` and the budget of each domain.

    ``tokens [G]`` and ``domain [G]``. The budget is what the smallest domain has under the cap per group; elsewhere the
    longest groups are levelled until the domain meets it.
    """
    quota = np.array(tokens, dtype=np.int64)
    domains = range(int(domain.max()) + 1)
    for index in domains:
        members = quota[domain == index]
        quota[domain == index] = np.minimum(members, int(GROUP_CAP * np.median(members[members > 0])))
    budget = min(int(quota[domain == index].sum()) for index in domains)
    for index in domains:
        groups = rng.permutation(np.flatnonzero(domain == index))
        quota[groups] = _level(quota[groups], budget)
    return quota, budget


def _level(tokens: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Lower the largest entries to one level, so that the sum is the budget; the remainder goes to the first of
    them."""
    low, high = 0, int(tokens.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(tokens, middle).sum() <= budget else (low, middle - 1)
    levelled = np.minimum(tokens, low)
    levelled[np.flatnonzero(tokens > low)[: budget - int(levelled.sum())]] += 1
    return levelled


def thin(
    keep: NDArray[np.bool_], group: Integers, quota: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """``[T]`` a random ``quota [G]`` of the kept tokens of each group; ``group [T]``."""
    position = np.flatnonzero(keep)
    order = np.lexsort((rng.random(len(position)), group[position]))
    of_group = group[position][order]
    first = np.searchsorted(of_group, np.arange(len(quota)))
    chosen = np.arange(len(order)) - first[of_group] < quota[of_group]
    result = np.zeros_like(keep)
    result[position[order[chosen]]] = True
    return result
