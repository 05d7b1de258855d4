"""Whether masking an expert hurts the domain that prefers it: losses of documents enter, effects and verdicts leave.

The unit is the group of documents, as everywhere: a variant's rise of the loss is paired with the baseline inside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.across import ENOUGH_GROUPS
from moetool.statistics.student import LEVEL, student_quantile

Floats = NDArray[np.floating[Any]]
Verdict = Literal["confirmed", "refuted", "unclear"]
LEAST_CONTROLS = 4
"""With fewer, how much experts of one layer differ by nature is not known."""
CONTROL_LEVEL = 0.99
"""Of the interval against the controls: few experts matter much and many hardly, and with such lopsided rises one at
95 % would confirm 7 % of experts that are like their controls."""
OWN_SHARE = 0.5
"""Of a domain's rise: what must be its own, beyond other domains and other experts, or the preference is refuted."""


@dataclass(frozen=True, slots=True)
class GroupRises:
    """By how much the loss of each group of documents rises with each variant."""

    domains: tuple[str, ...]
    """Names, in the order of their first document."""
    domain: NDArray[np.int64]
    """``[G]`` index of the domain."""
    tokens: NDArray[np.float64]
    """``[G]`` predicted tokens."""
    nats: NDArray[np.float64]
    """``[V, G]`` loss with the variant minus the baseline, summed over the group's predicted tokens."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rise, or a difference of rises, in nats per token, with its 95 % interval (None: too few groups or experts)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class CausalEffect:
    """What masking a specialist does to the losses of the domains."""

    rises: tuple[Estimate, ...]
    """``[D]`` rise of each domain's loss."""
    beyond_others: Estimate
    """Rise of the own domain minus the mean rise of the other domains."""
    beyond_controls: Estimate | None
    """Rise of the own domain minus the mean of its rises with the control experts, at CONTROL_LEVEL; None without."""
    verdict: Verdict


def pick_controls(
    counts: NDArray[Any], target: int, number: int, rng: np.random.Generator, exclude: Collection[int] = ()
) -> list[int]:
    """Up to ``number`` experts of the target's layer, drawn from the twice as many whose ``counts [E]`` are closest."""
    others = np.array([e for e in range(len(counts)) if e != target and e not in exclude], dtype=np.int64)
    distance = np.abs(np.asarray(counts, dtype=np.float64)[others] - float(counts[target]))
    nearest = others[np.argsort(distance, kind="stable")[: 2 * number]]
    return sorted(rng.choice(nearest, min(number, len(nearest)), replace=False).tolist())


def group_rises(
    domains: Sequence[str], groups: Sequence[str], tokens: NDArray[np.int64], baseline: Floats, variant: Floats
) -> GroupRises:
    """Add up documents by group: ``tokens``, ``baseline`` ``[documents]`` and ``variant [V, documents]``.

    Losses are nats per predicted token. Documents without predicted tokens are left out.
    """
    used = np.flatnonzero(tokens > 0)
    names = [(domains[i], groups[i]) for i in used.tolist()]
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group = np.array([index[name] for name in names], dtype=np.int64)
    order = tuple(dict.fromkeys(domain for domain, _ in index))
    weight = tokens[used].astype(np.float64)
    nats, total = np.zeros((len(variant), len(index))), np.zeros(len(index))
    np.add.at(nats.T, group, ((variant[:, used] - baseline[used]) * weight).T)
    np.add.at(total, group, weight)
    domain = np.array([order.index(name) for name, _ in index], dtype=np.int64)
    return GroupRises(order, domain, total, nats)


def causal_effect(rises: GroupRises, variant: int, controls: Sequence[int], domain: int) -> CausalEffect:
    """The effect of a variant on its own ``domain``, on the others, and against the variants ``controls``.

    Needs two domains. Confirmed: the intervals of the rise, of what it is beyond the other domains and of what it is
    beyond the controls all lie above 0. Refuted: the interval of the rise lies below 0, or that of an excess below
    OWN_SHARE of the rise. Unclear otherwise, such as with fewer than ENOUGH_GROUPS groups or LEAST_CONTROLS controls.
    """
    parts = [_ratio(rises, variant, index) for index in range(len(rises.domains))]
    estimates = tuple(_estimate(*_combined([part], [1.0])) for part in parts)
    weights = [1.0 if index == domain else -1 / (len(parts) - 1) for index in range(len(parts))]
    beyond_others = _estimate(*_combined(parts, weights))
    own_with_controls = [_ratio(rises, control, domain)[0] for control in controls]
    beyond_controls = _beyond(estimates[domain].value, np.array(own_with_controls))
    return CausalEffect(
        estimates, beyond_others, beyond_controls, _verdict(estimates[domain], beyond_others, beyond_controls)
    )


def _ratio(rises: GroupRises, variant: int, domain: int) -> tuple[float, float, int]:
    """Rise per token, its variance and groups of a domain: the ratio estimator (Cochran, Sampling Techniques, 6.4)."""
    here = rises.domain == domain
    tokens, nats, groups = rises.tokens[here], rises.nats[variant, here], int(here.sum())
    rise = float(nats.sum() / tokens.sum())
    residual = nats - rise * tokens
    return rise, float((residual**2).sum() * groups / max(groups - 1, 1) / tokens.sum() ** 2), groups


def _combined(parts: Sequence[tuple[float, float, int]], weights: Sequence[float]) -> tuple[float, float, float]:
    """A weighted sum of independent ratios: value, variance, degrees of freedom (Welch 1947; 0: too few groups)."""
    value = sum(weight * rise for (rise, _, _), weight in zip(parts, weights, strict=True))
    variances = [weight**2 * variance for (_, variance, _), weight in zip(parts, weights, strict=True)]
    groups = [groups for _, _, groups in parts]
    if min(groups) < ENOUGH_GROUPS:
        return value, 0.0, 0.0
    scale = sum(variance**2 / (count - 1) for variance, count in zip(variances, groups, strict=True))
    return value, sum(variances), sum(variances) ** 2 / scale if scale else float(min(groups) - 1)


def _beyond(own: float, controls: Floats) -> Estimate | None:
    """The own rise minus the mean of the controls', with the prediction interval for one more expert of their kind."""
    if not len(controls):
        return None
    value = own - float(controls.mean())
    if len(controls) < LEAST_CONTROLS:
        return Estimate(value)
    return _estimate(value, float(controls.var(ddof=1)) * (1 + 1 / len(controls)), len(controls) - 1, CONTROL_LEVEL)


def _estimate(value: float, variance: float, degrees: float, level: float = LEVEL) -> Estimate:
    if not degrees:
        return Estimate(value)
    half = float(student_quantile(degrees, level)) * variance**0.5
    return Estimate(value, value - half, value + half)


def _verdict(own: Estimate, *beyond: Estimate | None) -> Verdict:
    if all(one is not None and one.low is not None and one.low > 0 for one in (own, *beyond)):
        return "confirmed"
    if own.high is not None and own.high < 0:
        return "refuted"
    bound = OWN_SHARE * max(own.value, 0.0)
    small = any(one is not None and one.high is not None and one.high < bound for one in beyond)
    return "refuted" if small else "unclear"
