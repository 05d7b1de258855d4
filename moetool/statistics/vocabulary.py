"""How far the choice of experts follows which token it is: tokens and their choices enter, shares and tables leave.

Shapes beside the legend of ``capture/trace.py``: ``N`` counted tokens; ``V`` kinds of tokens (token ids or classes of
tokens), numbered from 0 without large gaps, as ``np.unique(ids, return_inverse=True)`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.patterns import LiftEstimates, lift_estimates

Integers = NDArray[np.integer[Any]]

MINIMUM_OCCURRENCES = 20
"""Occurrences of a token from which on its choices say something."""
MINIMUM_TOKEN_GROUPS = 3
PREFERRED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Choices:
    """Which kinds of tokens chose which experts."""

    domain: Integers
    """``[N]``"""
    kind: Integers
    """``[N]``"""
    chosen: Integers
    """``[N, K]``"""
    count: NDArray[np.integer[Any]] | None = None
    """``[N]`` how often the same row occurred; None for once each."""

    def select(self, rows: NDArray[np.bool_]) -> Choices:
        """The choices of some rows ``[N]``."""
        return Choices(
            self.domain[rows], self.kind[rows], self.chosen[rows], None if self.count is None else self.count[rows]
        )


@dataclass(frozen=True, slots=True)
class IdentityShare:
    """How much of the information about the domain would be there if only the kind of token decided."""

    information_bits: float
    """I(E;D), slot-weighted, domains weighted equally."""
    explained_bits: float
    """The same of the choices that the kinds of tokens of each domain predict."""

    @property
    def share(self) -> float | None:
        """Explained over all information; None where there is none."""
        return self.explained_bits / self.information_bits if self.information_bits > 0 else None


@dataclass(frozen=True, slots=True)
class VocabularySpecialization:
    """How concentrated the experts of a layer are on tokens that are mostly theirs; shares of 0 to 1."""

    observed: float
    null: float
    """Where every occurrence chooses alike, with as many occurrences of as many tokens."""
    tokens: int
    """Occurrences that counted: of tokens frequent enough."""

    @property
    def excess(self) -> float:
        """Observed minus null."""
        return self.observed - self.null


@dataclass(frozen=True, slots=True)
class TokenIndex:
    """Where each kind of token occurs, counted once for all experts: ``P`` pairs of a group and a kind in it."""

    group: Integers
    """``[N]``"""
    pair: NDArray[np.int64]
    """``[N]`` pair of each token, among all."""
    kind: NDArray[np.int64]
    """``[R]`` kinds that occur often enough."""
    kept: NDArray[np.bool_]
    """True for the ``P`` pairs, among all, of such kinds; the following are of these."""
    group_of_pair: NDArray[np.int64]
    """``[P]``"""
    column: NDArray[np.int64]
    """``[P]`` position of the pair's kind in ``kind``."""
    count: NDArray[np.int64]
    """``[P]`` occurrences of the kind in the group."""
    share: NDArray[np.float64]
    """``[P]`` ``count`` over the tokens of the group."""


@dataclass(frozen=True, slots=True)
class PreferredTokens:
    """Kinds of tokens that one expert prefers, the surest preference first; ``[R]``. All but the order is of the
    confirmation half."""

    kind: NDArray[np.int64]
    count: NDArray[np.int64]
    """Occurrences."""
    chosen: NDArray[np.int64]
    """Occurrences that chose the expert."""
    share: NDArray[np.float64]
    """``chosen`` over ``count``."""
    expected_share: NDArray[np.float64]
    """``share`` over ``lift``: what the other tokens of the same groups would choose."""
    lift: NDArray[np.float64]
    """Against the other tokens of the same groups, see ``patterns``."""
    low: NDArray[np.float64]
    """Lower end of the 95 % interval of the lift over groups."""


def identity_share(learnt: Choices, applied: Choices, experts: int) -> IdentityShare:
    """Predict the choices of each domain in ``applied`` from the kinds of its tokens, as learnt on ``learnt``.

    With P(v|D) the shares of kinds among the tokens of a domain and q(e|v) the choices of a kind, domains weighted
    equally, the prediction is P'(e|D) = sum_v P(v|D) q(e|v); both informations are Jensen-Shannon divergences between
    domains. A kind that was not learnt is predicted by q(e), which tells nothing.

    Where both are the same tokens, the share reads too high: a kind that occurs once explains its choice completely.
    Kinds that occur in one domain only explain whatever that domain does, in either form.
    """
    kinds = 1 + int(max(learnt.kind.max(), applied.kind.max()))
    domains = 1 + int(max(learnt.domain.max(), applied.domain.max()))
    rates = _choice_rates(learnt, kinds, domains, experts)
    weight = _domain_weights(applied, domains)
    kind_share = np.bincount(applied.domain * np.int64(kinds) + applied.kind, weight, domains * kinds)
    slots = applied.chosen.shape[1]
    cell = (applied.domain * np.int64(experts))[:, None] + applied.chosen
    observed = np.bincount(cell.ravel(), np.repeat(weight, slots) / slots, domains * experts)
    predicted = kind_share.reshape(domains, kinds) @ rates
    return IdentityShare(_js_bits(observed.reshape(domains, experts)), _js_bits(predicted))


def cross_fitted_identity_share(choices: Choices, second: NDArray[np.bool_], experts: int) -> IdentityShare:
    """``identity_share`` learnt on each half of the tokens, applied to the other, and averaged.

    ``second [N]`` is True for the tokens of one half of the groups of every domain.
    """
    halves = choices.select(~second), choices.select(second)
    one, other = identity_share(*halves, experts), identity_share(*halves[::-1], experts)
    return IdentityShare(
        (one.information_bits + other.information_bits) / 2, (one.explained_bits + other.explained_bits) / 2
    )


def _domain_weights(choices: Choices, domains: int) -> NDArray[np.float64]:
    """``[N]`` weights of the rows that add up to 1 in each domain."""
    count = np.ones(len(choices.kind)) if choices.count is None else choices.count.astype(np.float64)
    return np.asarray(count / np.bincount(choices.domain, count, domains)[choices.domain], dtype=np.float64)


def _choice_rates(choices: Choices, kinds: int, domains: int, experts: int) -> NDArray[np.float64]:
    """``[V, E]`` q(e|v), rows that add up to 1, domains weighted equally."""
    weight = np.repeat(_domain_weights(choices, domains), choices.chosen.shape[1])
    cell = (choices.kind * np.int64(experts))[:, None] + choices.chosen
    hits = np.asarray(np.bincount(cell.ravel(), weight, kinds * experts), dtype=np.float64).reshape(kinds, experts)
    hits[~hits.any(axis=1)] = hits.sum(axis=0)
    hits /= hits.sum(axis=1, keepdims=True)
    return hits


def _js_bits(shares: NDArray[Any]) -> float:
    """Jensen-Shannon divergence in bits of the rows ``[D, E]``, weighted equally."""
    mean = np.broadcast_to(shares.mean(axis=0), shares.shape)
    here = shares > 0
    return float((shares[here] * np.log2(shares[here] / mean[here])).sum() / len(shares))


def vocabulary_specialization(
    kind: Integers, chosen: Integers, experts: int, minimum: int = MINIMUM_OCCURRENCES
) -> VocabularySpecialization | None:
    """Vocabulary specialization of a layer, weighted by frequency; None where no token occurs ``minimum`` times.

    With N_v occurrences of token v, N_ve of which choose expert e, the specialization of an expert is
    sum_v N_ve (N_ve / N_v) / sum_v N_ve: over its hits, how much of their token goes to it (OLMoE, arXiv 2409.02060,
    eq. 8, which weighs tokens alike, so that those that occur once or twice decide). Experts are weighted by their
    hits. Under independent choices with the expert's share q, N_ve is binomial and E[N_ve^2] = N_v q (1 - q) +
    N_v^2 q^2; summed over the V' tokens with T' occurrences, the ratio is q + (1 - q) V' / T'. That tokens of one
    document agree is no part of this null.
    """
    occurrences = np.bincount(kind)
    frequent = occurrences[kind] >= minimum
    used, place = np.unique(kind[frequent], return_inverse=True)
    if not len(used):
        return None
    cell = (place * np.int64(experts))[:, None] + chosen[frequent]
    hits = np.bincount(cell.ravel(), minlength=len(used) * experts).reshape(-1, experts).astype(np.float64)
    load = hits.sum(axis=0)
    share = load / len(place)
    null = share + (1 - share) * len(used) / len(place)
    observed = (hits**2 / occurrences[used][:, None]).sum() / load.sum()
    return VocabularySpecialization(float(observed), float(load @ null / load.sum()), len(place))


def index_tokens(kind: Integers, group: Integers) -> TokenIndex:
    """Prepare ``kind [N]`` and ``group [N]``; kinds with MINIMUM_OCCURRENCES in MINIMUM_TOKEN_GROUPS are kept."""
    occurrences = np.bincount(kind)
    kinds = len(occurrences)
    pairs, pair, size = np.unique(group * np.int64(kinds) + kind, return_inverse=True, return_counts=True)
    enough = np.bincount(pairs % kinds, minlength=kinds) >= MINIMUM_TOKEN_GROUPS
    used = np.flatnonzero(enough & (occurrences >= MINIMUM_OCCURRENCES))
    kept = np.isin(pairs % kinds, used)
    of_pair = pairs[kept] // kinds
    column = np.searchsorted(used, pairs[kept] % kinds)
    share = size[kept] / np.bincount(group)[of_pair]
    return TokenIndex(group, pair, used, kept, of_pair, column, size[kept], share)


def preferred_tokens(index: TokenIndex, hit: NDArray[np.bool_], halves: tuple[Integers, Integers]) -> PreferredTokens:
    """Tokens that an expert prefers: the best PREFERRED_TOKENS of one half of the groups, of which the other half keeps
    those with a 95 % interval above 1, so that being the best of thousands by luck is not enough.

    ``hit [N]`` is True for the tokens that chose the expert; ``halves`` are groups. The lift is that of ``patterns``
    with one kind of token as the class.
    """
    own = np.bincount(index.pair, hit)[index.kept]
    others = np.bincount(index.group, hit)[index.group_of_pair] - own
    columns = len(index.kind)
    first, second = (np.isin(index.group_of_pair, half) for half in halves)

    def lifts_on(rows: NDArray[np.bool_]) -> LiftEstimates:
        share = index.share[rows]
        return lift_estimates(own[rows] * (1 - share), others[rows] * share, index.column[rows], columns)

    ranking, _ = lifts_on(first).interval()
    best = np.argsort(-ranking, kind="stable")[:PREFERRED_TOKENS]
    lifts = lifts_on(second).select(best)
    low, _ = lifts.interval()
    seen = (ranking[best] > 1) & (low > 1)
    count, chosen = (
        np.bincount(index.column[second], part[second], columns).astype(np.int64)[best[seen]]
        for part in (index.count, own)
    )
    lift, share = np.exp(lifts.log_lift[seen]), chosen / count
    return PreferredTokens(index.kind[best[seen]], count, chosen, share, share / lift, lift, low[seen])
