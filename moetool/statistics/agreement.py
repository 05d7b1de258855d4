"""How alike two models route the same tokens: two LayerSamples enter, agreement by layer, domain and margin leaves.

``A`` is the first model and ``B`` the second; both chose K of E experts for the same ``N`` counted tokens. Everything
but margins is a function of sums over groups of documents: one line serves the corpus, a domain and an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import TraceLayer
from moetool.statistics.locality import first_choice, shared_experts
from moetool.statistics.registry import Quantity
from moetool.statistics.router import MARGIN
from moetool.statistics.sample import Chosen, CountedTokens, Floats, LayerSample
from moetool.statistics.student import student_quantile

Sums = NDArray[np.float64]

CHUNK = 1 << 13
DECILES = 10


@dataclass(frozen=True, slots=True)
class Tally:
    """What two models chose in one layer, added up over tokens; ``R`` rows, each a group or several of them.

    What the traces cannot tell is NaN.
    """

    layer: TraceLayer
    """Of A; B's has the same experts and experts per token."""
    tokens: Sums
    """``[R]``"""
    shared: Sums
    """``[R]`` experts that both chose."""
    same_sets: Sums
    """``[R]`` tokens with the same experts in both."""
    same_first: Sums
    """``[R]`` tokens with the same first choice."""
    distance: Sums
    """``[R]`` total variation between the weights."""
    weighed: Sums
    """``[R]`` tokens whose weights are known in both."""
    loads: Sums
    """``[2, R, E]`` tokens by expert, of A and of B."""
    first_loads: Sums
    """``[2, R, E]`` tokens by first choice."""

    def add_up(self, weights: NDArray[Any]) -> Tally:
        """The sums of rows ``weights [R', R]`` of these."""
        return Tally(self.layer, *(weights @ getattr(self, name) for name in _SUMS))


_SUMS = tuple(field.name for field in fields(Tally) if field.name != "layer")


@dataclass(frozen=True, slots=True)
class AgreementStatistic(Quantity):
    """One value per MoE layer, or per layer and domain: a function of a Tally."""

    compute: Callable[[Tally], Sums] = lambda tally: tally.tokens * np.nan
    """``[R]``; NaN where undefined."""
    parts: Callable[[Tally], tuple[Sums, Sums]] | None = None
    """Numerator and denominator ``[R]``, sums over tokens, of what is their ratio; ``compute`` is not used then."""

    def value(self, tally: Tally) -> Sums:
        """``[R]``; NaN where undefined."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.parts is None:
                return self.compute(tally)
            above, below = self.parts(tally)
            return np.asarray(above / below)


def agreement_parts(tally: Tally) -> tuple[Sums, Sums]:
    """mean_t |A_t and A'_t| / K: agreement, or router saturation of training steps (OLMoE, arXiv 2409.02060, eq. 5)."""
    return tally.shared, tally.tokens * tally.layer.experts_per_token


def agreement_baseline(tally: Tally) -> Sums:
    """sum_e q_e q'_e / K: the agreement of independent choices with these loads."""
    first, second = tally.loads
    return np.asarray((first * second).sum(axis=-1) / tally.tokens**2 / tally.layer.experts_per_token)


def agreement_limit(tally: Tally) -> Sums:
    """sum_e min(q_e, q'_e) / K: the highest agreement that these loads allow."""
    return np.asarray(np.minimum(*tally.loads).sum(axis=-1) / tally.tokens / tally.layer.experts_per_token)


def agreement_least(layer: TraceLayer) -> float:
    """max(0, 2K - E) / K: two sets of K out of E experts share that much at least."""
    return max(0, 2 * layer.experts_per_token - layer.experts) / layer.experts_per_token


def corrected_agreement(tally: Tally) -> Sums:
    """(agreement - baseline) / (1 - baseline), as in Cohen's kappa: 0 by chance, 1 if all agree."""
    shared, slots = agreement_parts(tally)
    baseline = agreement_baseline(tally)
    return np.asarray((shared / slots - baseline) / (1 - baseline))


def top1_baseline(tally: Tally) -> Sums:
    """sum_e f1_e f1'_e: the top-1 agreement of independent first choices with these loads."""
    first, second = tally.first_loads
    return np.asarray((first * second).sum(axis=-1) / tally.tokens**2)


# fmt: off
AGREEMENT_STATISTICS: tuple[AgreementStatistic, ...] = (
    AgreementStatistic("agreement", "Agreement", "ratio",
        "Share of a token's K experts that both chose, which over training steps is router saturation: compare with "
        "agreement_baseline.", parts=agreement_parts),
    AgreementStatistic("agreement_baseline", "By chance", "ratio",
        "The same for independent choices with the loads of A and of B.", compute=agreement_baseline),
    AgreementStatistic("agreement_uniform", "Uniform", "ratio",
        "The same for independent uniform choices, K/E.", True,
        lambda tally: np.full(len(tally.tokens), tally.layer.experts_per_token / tally.layer.experts)),
    AgreementStatistic("agreement_least", "Least", "ratio",
        "The least agreement that two choices of K out of E can have.", True,
        lambda tally: np.full(len(tally.tokens), agreement_least(tally.layer))),
    AgreementStatistic("agreement_limit", "At most", "ratio",
        "The highest agreement that the two loads allow: 1 where they are the same.", True, agreement_limit),
    AgreementStatistic("corrected_agreement", "Beyond chance", "ratio",
        "(agreement - baseline) / (1 - baseline): 0 by chance, 1 if all agree.", compute=corrected_agreement),
    AgreementStatistic("top1_agreement", "Top-1", "ratio",
        "Share of the tokens whose largest weight is on the same expert: compare with top1_baseline.",
        parts=lambda tally: (tally.same_first, tally.tokens)),
    AgreementStatistic("top1_baseline", "Top-1 by chance", "ratio",
        "The same for independent first choices with the loads of A and of B.", True, top1_baseline),
    AgreementStatistic("exact_agreement", "Same set", "ratio",
        "Share of the tokens that chose the same K experts, in any order.",
        parts=lambda tally: (tally.same_sets, tally.tokens)),
    AgreementStatistic("weight_distance", "Weight distance", "ratio",
        "Half the sum over experts of the distance of a token's weights, as shares: 0 if the same, 1 if no expert is.",
        parts=lambda tally: (tally.distance, tally.weighed)),
)
# fmt: on


def weight_distances(
    chosen: Chosen, weight: Floats, other_chosen: Chosen, other_weight: Floats, experts: int
) -> NDArray[np.float32]:
    """``[N]`` total variation between the weights of two choices ``[N, K]``, as shares over experts, 0 to 1.

    NaN for tokens whose weights are not finite, are negative or add up to nothing in one of them.
    """
    distance = np.empty(len(chosen), np.float32)
    row = np.arange(min(CHUNK, len(chosen)))[:, None] * experts
    table = np.zeros(row.size * experts, np.float32)
    for start in range(0, len(chosen), CHUNK):
        part = slice(start, start + CHUNK)
        share, other_share = _shares(weight[part]), _shares(other_weight[part])
        other_place = row[: len(share)] + other_chosen[part]
        table[other_place] = other_share
        more = np.maximum(share - table[row[: len(share)] + chosen[part]], 0).sum(axis=1)
        table[other_place] = 0
        distance[part] = np.where(np.isnan(other_share[:, 0]), np.nan, np.minimum(more, 1))
    return distance


def _shares(weight: Floats) -> NDArray[np.float32]:
    weight = np.asarray(weight, np.float32)
    total = weight.sum(axis=1, keepdims=True)
    known = np.isfinite(total) & (total > 0) & (weight >= 0).all(axis=1, keepdims=True)
    return np.asarray(np.divide(weight, total, where=known, out=np.full_like(weight, np.nan)))


def tally_groups(first: LayerSample, second: LayerSample, shared: NDArray[np.uint16]) -> Tally:
    """Sums over every group of documents; ``shared`` is ``[N]``, the experts that both chose."""
    group, groups = first.tokens.group, len(first.tokens.group_tokens)
    layer, unknown = first.layer, np.full(groups, np.nan)

    def by_group(values: NDArray[Any]) -> Sums:
        return np.asarray(np.bincount(group, weights=values, minlength=groups))

    weighted = first.weight is not None and second.weight is not None
    if weighted or layer.experts_per_token == 1:
        firsts = [first_choice(sample.chosen, sample.weight) for sample in (first, second)]
        cells = [np.bincount(group * layer.experts + chosen, minlength=groups * layer.experts) for chosen in firsts]
        same_first, first_loads = by_group(firsts[0] == firsts[1]), np.stack(cells).astype(np.float64)
    else:
        same_first, first_loads = unknown, np.full(2 * groups * layer.experts, np.nan)
    distance, weighed = unknown, np.zeros(groups)
    if first.weight is not None and second.weight is not None:
        apart = weight_distances(first.chosen, first.weight, second.chosen, second.weight, layer.experts)
        known = np.isfinite(apart)
        distance, weighed = by_group(np.where(known, apart, 0)), by_group(known)
    return Tally(
        layer,
        first.tokens.group_tokens.astype(np.float64),
        by_group(shared),
        by_group(shared == layer.experts_per_token),
        same_first,
        distance,
        weighed,
        np.stack([first.group_counts, second.group_counts]).astype(np.float64),
        first_loads.reshape(2, groups, layer.experts),
    )


def influence(above: Sums, below: Sums) -> Sums:
    """``[..., G]`` what each group adds to the ratio sum(above) / sum(below), linearised: (X_g - R N_g) / N."""
    total = below.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above - above.sum(axis=-1, keepdims=True) / total * below) / total)


def standard_error(influences: Sums, domain: NDArray[np.integer[Any]]) -> tuple[Sums, float]:
    """``[...]`` standard errors of what ``influences [..., G]`` belong to, and the quantile of their 95 % t interval.

    Groups are drawn within their ``domain [G]``; the variance is the linearised one, with the factor G / (G - 1) per
    domain (Cochran, Sampling Techniques, 1977, 6.4 and 6.11). Influences of a mean over layers are means of theirs.
    """
    variance = np.zeros(influences.shape[:-1])
    strata = np.unique(domain)
    for stratum in strata:
        own = influences[..., domain == stratum]
        groups = own.shape[-1]
        variance += ((own - own.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1) * groups / (groups - 1)
    return np.sqrt(variance), float(student_quantile(max(float(len(domain) - len(strata)), 1.0)))


@dataclass(frozen=True, slots=True)
class Margins:
    """Boundary margins of A, by what B did with the token; NaN where there is none."""

    changed: tuple[float, float]
    """Mean and median margin of the tokens that chose another set in B."""
    kept: tuple[float, float]
    deciles: Sequence[tuple[int, float, float, int, float, float]]
    """By tenths of the margin, 1 to 10: from, to, tokens, agreement, share of equal sets. Equal margins stay together,
    so that a tenth may be missing."""

    @property
    def ratio(self) -> float:
        """Median margin of the changed over that of the kept: near 0 if close calls changed alone, 1 if any did."""
        return self.changed[1] / self.kept[1] if self.kept[1] else float("nan")


def split_margins(margin: Floats, shared: NDArray[np.uint16], experts_per_token: int) -> Margins:
    """Compare ``margin [N]`` of the tokens that share all K experts with that of the others; NaN is left out."""
    known = np.isfinite(margin)
    margin, shared = margin[known].astype(np.float32), shared[known]
    same = shared == experts_per_token
    middle = [(float(part.mean(dtype=np.float64)), float(np.median(part))) if part.size else (np.nan, np.nan)
              for part in (margin[~same], margin[same])]  # fmt: skip
    if not margin.size:
        return Margins(middle[0], middle[1], ())
    edges = np.quantile(margin, np.linspace(0, 1, DECILES + 1))
    place = np.searchsorted(edges[1:-1], margin)
    tokens = np.bincount(place, minlength=DECILES)
    sums = [np.bincount(place, weights=values, minlength=DECILES) for values in (shared / experts_per_token, same)]
    rows = [
        (i + 1, float(edges[i]), float(edges[i + 1]), int(n), float(sums[0][i] / n), float(sums[1][i] / n))
        for i, n in enumerate(tokens)
        if n
    ]
    return Margins(middle[0], middle[1], rows)


@dataclass(frozen=True, slots=True)
class LayerAgreement:
    """How alike two models route in one layer."""

    layer: TraceLayer
    groups: Tally
    """A row per group of documents."""
    shared: NDArray[np.uint16]
    """``[N]`` experts that both chose."""
    margins: Margins | None
    """None without scores of A."""
    identical: bool | None
    """The same experts with the same weights for every token; None where only one of the two has weights."""


def compare_layers(first: LayerSample, second: LayerSample) -> LayerAgreement:
    """Compare one layer of A and of B; the samples are of the same tokens, experts and experts per token."""
    shared = shared_experts(first.sets, second.sets)
    margins = None
    if first.scores is not None:
        margins = split_margins(first.scores[:, MARGIN], shared, first.layer.experts_per_token)
    return LayerAgreement(
        first.layer, tally_groups(first, second, shared), shared, margins, _are_identical(first, second, shared)
    )


def _are_identical(first: LayerSample, second: LayerSample, shared: NDArray[np.uint16]) -> bool | None:
    if (shared < first.layer.experts_per_token).any():
        return False
    if first.weight is None or second.weight is None:
        return True if first.weight is second.weight else None
    own, other = (
        np.take_along_axis(weight, np.argsort(chosen, axis=1), axis=1)
        for weight, chosen in ((first.weight, first.chosen), (second.weight, second.chosen))
    )
    return np.array_equal(own, other, equal_nan=True)


def members_of(tokens: CountedTokens, domains: int) -> NDArray[np.float64]:
    """``[D, G]`` 1 where the group belongs to the domain."""
    return np.asarray(tokens.group_domain == np.arange(domains)[:, None], dtype=np.float64)
