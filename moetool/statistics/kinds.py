"""What a preference for a domain is for: confirmed specialists and the trace enter, a Kind of each leaves.

A preference counts as one for the domain only if it survives giving all domains the same mixture of token classes and,
where counts allow, comparing the same tokens only. It is one for the language if the same texts in another language do
not share it. On the groups that confirmed the preference; the same texts are compared on all that have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.statistics.counts import GroupCounts, LayerCells
from moetool.statistics.parallel import map_in_order
from moetool.statistics.strata import AdjustedLifts, Comparison, adjusted_lifts, compare_at_strata, paired_ratio
from moetool.statistics.token_text import KeptTokens
from moetool.statistics.translations import Pairs, Translations

DOMAIN, LANGUAGE, PATTERN, MIXED = "domain", "language", "pattern", "mixed"
LEAST_OVERLAP = 0.25
"""Where the mixtures of classes have less in common, classes that hardly any other domain has are the explanation."""
LEAST_TOKENS_SEEN, LEAST_TOKEN_COVERAGE = 0.05, 0.2
"""Of less than the first share of a domain's tokens, a comparison of the same tokens decides nothing; of less than the
second, only one that leaves less than half."""
HALVED = 0.5
"""A preference whose logarithm shrinks below this part is mixed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Why an expert prefers a domain, as far as the trace tells; numbers are None where it does not."""

    kind: str
    """Empty where the preference is too weak to tell: neither it nor its absence is sure at equal classes."""
    explained_by: str
    """The token class, or the domain in another language, that explains it; empty where nothing does."""
    class_lift: float | None
    """At the same mixture of token classes."""
    class_low: float | None
    token_lift: float | None
    """Among the same tokens."""
    token_low: float | None
    token_coverage: float
    """Share of the domain's tokens that other domains have too, often enough."""


def find_kinds(
    trace: RoutingTrace,
    every: KeptTokens,
    counts: GroupCounts,
    confirmation: NDArray[np.int64],
    domain: NDArray[np.int64],
    cell: NDArray[np.int64],
    lift: NDArray[np.float64],
    translations: Translations,
) -> list[Kind]:
    """The kind of each specialist: ``domain``, ``cell`` and ``lift`` are ``[N]``.

    ``every`` are the tokens that ``counts`` counts, ``confirmation`` the groups that measured the lifts.
    """
    tokens = every.select(np.isin(every.group, confirmation))
    wanted, domains = np.unique(domain), len(counts.domains)
    together = tokens.classes_together
    by_class = {index: _compare(tokens, together, index, domains) for index in wanted.tolist()}
    by_token = {index: _compare(tokens, tokens.word, index, domains) for index in wanted.tolist()}
    masks = {name: tokens.classes.mask(name)[tokens.position] for name in tokens.classes.names}
    commoner = {index: _commoner(masks, tokens.domain == index) for index in wanted.tolist()}
    place = np.searchsorted(counts.starts, cell, side="right") - 1

    def of_layer(number: int) -> dict[int, Kind]:
        cells, layer = counts.layers[number], trace.layers[number]
        chosen = np.asarray(layer.chosen[tokens.position])
        preferred = _preferred(masks, chosen, cells.experts)
        found: dict[int, Kind] = {}
        for index in np.unique(domain[place == number]).tolist():
            members = np.flatnonzero((place == number) & (domain == index))
            adjusted = _adjust(by_class[index], chosen, cells), _adjust(by_token[index], chosen, cells)
            adds = (commoner[index][:, None] * preferred).argmax(axis=0)  # how much commoner here, times how preferred
            causes = [tokens.classes.names[most] for most in adds.tolist()]
            for member in members.tolist():
                expert = int(cell[member]) - cells.start
                language = _language(counts, index, int(cell[member]), translations[index])
                found[member] = _decide(
                    float(lift[member]), by_class[index], by_token[index], adjusted, expert, causes[expert], language
                )
        return found

    kinds: dict[int, Kind] = {}
    for part in map_in_order(of_layer, np.unique(place).tolist()):
        kinds |= part
    return _consistent([kinds[member] for member in range(len(cell))], domain, cell, counts)


def _consistent(
    kinds: list[Kind], domain: NDArray[np.int64], cell: NDArray[np.int64], counts: GroupCounts
) -> list[Kind]:
    """An expert that follows the language of one domain may follow it in another one too."""
    spoken = {
        int(place): counts.domains[own]
        for kind, own, place in zip(kinds, domain, cell, strict=True)
        if kind.kind == LANGUAGE and kind.explained_by.startswith("not in ")
    }
    return [
        replace(kind, kind=MIXED, explained_by=f"language of {spoken[int(place)]}")
        if kind.kind == DOMAIN and int(place) in spoken
        else kind
        for kind, place in zip(kinds, cell, strict=True)
    ]


def _compare(tokens: KeptTokens, stratum: NDArray[np.int64], domain: int, domains: int) -> Comparison | None:
    return compare_at_strata(stratum, tokens.group, tokens.domain == domain, domains)


def _adjust(
    comparison: Comparison | None, chosen: NDArray[np.unsignedinteger[Any]], cells: LayerCells
) -> AdjustedLifts | None:
    return None if comparison is None else adjusted_lifts(comparison, chosen, cells.experts)


def _commoner(masks: Mapping[str, NDArray[np.bool_]], own: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``[Q]`` share of each class among the own tokens, less that among the others."""
    return np.array([member[own].mean() - member[~own].mean() for member in masks.values()])


def _preferred(
    masks: Mapping[str, NDArray[np.bool_]], chosen: NDArray[np.unsignedinteger[Any]], experts: int
) -> NDArray[np.float64]:
    """``[Q, E]`` how much more of each class an expert gets than of the other tokens, at least 0.

    Of two classes that are complements, the one that the expert avoids would explain as much.
    """
    more = np.empty((len(masks), experts))
    for place, member in enumerate(masks.values()):
        shares = [
            np.bincount(chosen[rows].ravel(), minlength=experts) / max(int(rows.sum()), 1) for rows in (member, ~member)
        ]
        more[place] = np.maximum(shares[0] - shares[1], 0)
    return more


def _language(counts: GroupCounts, domain: int, cell: int, siblings: Mapping[int, Pairs]) -> str:
    """The domain whose same texts the expert surely chooses less for; empty where there is none."""
    for other, pair in siblings.items():
        own, others = (counts.hits[groups, cell] / counts.tokens[groups] for groups in pair)
        weight = np.minimum(*(counts.tokens[groups] for groups in pair)).astype(np.float64)
        if paired_ratio(own.astype(np.float64), others.astype(np.float64), weight)[1] > 1:
            return counts.domains[other]
    return ""


def _decide(
    lift: float,
    by_class: Comparison | None,
    by_token: Comparison | None,
    adjusted: tuple[AdjustedLifts | None, AdjustedLifts | None],
    expert: int,
    cause: str,
    language: str,
) -> Kind:
    """The rules, in this order; the numbers beside them."""
    class_lift, class_low = _values(adjusted[0], expert)
    token_lift, token_low = _values(adjusted[1], expert)
    coverage = by_token.coverage if by_token else 0.0
    covered = by_class is not None and by_class.overlap >= LEAST_OVERLAP
    foreign = cause.startswith("script_") or cause == "fragment"
    survives = class_lift is not None and class_low is not None and class_low > 1
    shrunk = class_lift is None or log(class_lift) < HALVED * log(max(lift, 1.0))
    kind, explained = DOMAIN, ""
    if language:
        kind, explained = LANGUAGE, f"not in {language}"
    elif not covered and survives and not foreign:
        kind, explained = MIXED, cause
    elif not covered or (not survives and shrunk):
        kind, explained = (LANGUAGE if foreign else PATTERN), cause
    elif not survives:
        kind = ""
    elif shrunk:
        kind, explained = MIXED, cause
    elif _words_explain(lift, token_lift, token_low, coverage):
        kind, explained = MIXED, "vocabulary"
    return Kind(kind, explained, class_lift, class_low, token_lift, token_low, coverage)


def _words_explain(lift: float, token_lift: float | None, token_low: float | None, coverage: float) -> bool:
    """Whether the preference is not seen among the same tokens, or, where few are shared, clearly not there."""
    if token_lift is None or token_low is None or coverage < LEAST_TOKENS_SEEN:
        return False
    return token_low <= 1 and (coverage >= LEAST_TOKEN_COVERAGE or log(token_lift) < HALVED * log(max(lift, 1.0)))


def _values(adjusted: AdjustedLifts | None, expert: int) -> tuple[float | None, float | None]:
    return (None, None) if adjusted is None else (float(adjusted.lift[expert]), float(adjusted.low[expert]))
