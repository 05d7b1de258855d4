"""Starts that the documents of a domain share: enters as a RoutingTrace, leaves as Templates and a mask.

A prompt template or a licence header routes alike in every document of a domain, and would pass for the domain's taste.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace

TEMPLATE_SHARE = 0.9
"""A start is a template if at least this share of a domain's documents has it."""
TEMPLATE_DOCUMENTS = 4
"""Fewer documents than this may share a start by chance."""
ROUTING_POSITIONS = 64
"""How far a template is followed where it is known by its routing alone."""

Positions = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Template:
    """A start that the documents of one domain share."""

    domain: str
    length: int
    """Tokens, after the special tokens."""
    documents: int
    """Documents that start with all of it."""
    from_routing: bool
    """Known by identical routing only: the trace has no token ids."""


def find_templates(trace: RoutingTrace) -> tuple[tuple[Template, ...], NDArray[np.bool_]]:
    """Starts shared by the documents of a domain (and task, if any), and ``[T]`` True for tokens that belong to one.

    A document that leaves the template early is masked as far as it follows it.
    """
    masked = np.zeros(len(trace.tokens), dtype=bool)
    found = []
    known = np.unique(trace.tokens).size > 1  # imported traces may have no token ids
    for domain, task in dict.fromkeys((document.domain, document.task) for document in trace.documents):
        starts: list[Positions] = [
            document.start + np.flatnonzero(trace.counted[document.start : document.start + document.tokens])
            for document in trace.documents
            if (document.domain, document.task) == (domain, task)
        ]
        lengths = _by_tokens(trace, starts) if known else _by_routing(trace, starts)
        longest = max(lengths, default=0)
        for positions, length in zip(starts, lengths, strict=True):
            masked[positions[:length]] = True
        if longest:
            found.append(Template(domain, longest, lengths.count(longest), not known))
    return tuple(found), masked


def _by_tokens(trace: RoutingTrace, starts: list[Positions]) -> list[int]:
    """How far each document follows the longest start that enough of them share."""
    needed = max(TEMPLATE_DOCUMENTS, TEMPLATE_SHARE * len(starts))
    lengths = [0] * len(starts)
    following, at = list(range(len(starts))), 0
    while True:
        tokens = {index: int(trace.tokens[starts[index][at]]) for index in following if len(starts[index]) > at}
        token, count = max(Counter(tokens.values()).items(), key=lambda item: item[1], default=(0, 0))
        if count < needed:
            return lengths
        following = [index for index, other in tokens.items() if other == token]
        at += 1
        for index in following:
            lengths[index] = at


def _by_routing(trace: RoutingTrace, starts: list[Positions]) -> list[int]:
    """The same without token ids: equal starts choose equal experts, so enough documents agree in the median layer.

    Experts that everybody chooses everywhere tell no template from text: then there is none.
    """
    nothing = [0] * len(starts)
    if len(starts) < TEMPLATE_DOCUMENTS:
        return nothing
    for at in range(ROUTING_POSITIONS):
        here = np.array([positions[at] for positions in starts if len(positions) > at], dtype=np.int64)
        if len(here) < TEMPLATE_SHARE * len(starts):
            return nothing
        common = [_most_common(layer.chosen[here]) for layer in trace.layers]
        if float(np.median(common)) < TEMPLATE_SHARE * len(starts):
            return [min(at, len(positions)) for positions in starts]
    return nothing


def _most_common(chosen: NDArray[np.unsignedinteger[Any]]) -> int:
    """How many tokens chose the most common set of experts."""
    return int(np.unique(np.sort(chosen, axis=1), axis=0, return_counts=True)[1].max())
