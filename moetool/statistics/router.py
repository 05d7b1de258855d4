"""How sure the router of one layer is: enters as scalars per token, leaves as means; None where the trace lacks them.

``scores`` is ``[N, 4]``, see ``capture.trace.SCORE_COLUMNS``; an entry that is not finite is unknown and left out of
the mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

ENTROPY, TOP1, MARGIN, LOGSUMEXP = range(4)
SPREAD = 0.02
"""A quantity is called constant over tokens if its 1st and 99th percentile are closer than this share: float16
stores three digits, and what is not constant by construction varies by tens of percent."""


def mean_known(values: Floats) -> float | None:
    """Mean over the finite values, in float64; None if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if known.size else None


def normalised_entropy(scores: Floats | None, experts: int) -> Floats | None:
    """``[N]`` H(p_t) / ln E: 1 where the router prefers nobody, 0 where it is certain; None for a single expert."""
    return None if scores is None or experts < 2 else scores[:, ENTROPY].astype(np.float64) / math.log(experts)


def router_entropy(scores: Floats | None, experts: int) -> float | None:
    """Mean of ``normalised_entropy``."""
    entropy = normalised_entropy(scores, experts)
    return None if entropy is None else mean_known(entropy)


def top1_probability(scores: Floats | None) -> float | None:
    """Mean of the largest router probability: at least 1/E."""
    return None if scores is None else mean_known(scores[:, TOP1])


def boundary_margin(scores: Floats | None) -> float | None:
    """Mean of s_(K) - s_(K+1) in the score used for selecting; small means that rounding can change the choice."""
    return None if scores is None else mean_known(scores[:, MARGIN])


def weight_concentration(weight: Floats | None) -> float | None:
    """Mean of exp(H(w_t)), w_t the applied weights of a token as shares: 1 if one expert gets all, K if all the same.

    Tokens whose weights are not finite or add up to nothing are left out.
    """
    if weight is None:
        return None
    share = weight.astype(np.float32)
    total = share.sum(axis=1, keepdims=True)
    known = np.isfinite(total[:, 0]) & (total[:, 0] > 0) & (share >= 0).all(axis=1)
    share = share[known] / total[known]
    nats = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(axis=1)
    return mean_known(np.exp(nats))


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def quantiles(values: Floats | None) -> list[float] | None:
    """The QUANTILES over tokens; entries that are not finite are left out, None if none is left."""
    if values is None:
        return None
    known = values[np.isfinite(values)].astype(np.float64)
    return [float(value) for value in np.quantile(known, QUANTILES)] if known.size else None


def boundary_margin_p05(scores: Floats | None) -> float | None:
    """The 5 % quantile of the boundary margin over tokens."""
    found = None if scores is None else quantiles(scores[:, MARGIN])
    return found[0] if found else None


def bias_changed_share(rerouted: NDArray[np.uint8] | None, experts_per_token: int) -> float | None:
    """Share of the choices that the correction bias changed, 0 to 1; None for routers without one.

    ``rerouted`` is ``[N]``, experts of each token that the same selection without bias would have refused.
    """
    if rerouted is None or not len(rerouted):
        return None
    return float(rerouted.mean(dtype=np.float64) / experts_per_token)


def z_loss(scores: Floats | None, scoring: str | None) -> float | None:
    """Mean of (logsumexp of logits)^2, softmax routers only: (ln E)^2 at zero logits (ST-MoE, arXiv 2202.08906)."""
    if scores is None or scoring != "softmax":
        return None
    return mean_known(scores[:, LOGSUMEXP].astype(np.float64) ** 2)


def topk_mass(weight: Floats | None, scores: Floats | None, scoring: str | None) -> float | None:
    """Mean router probability that the chosen experts hold together: at least K/E; None where the trace cannot tell.

    ``weight`` is ``[N, K]``, as applied. A trace holds no probabilities of the chosen, but the weights of a softmax
    router are mostly proportional to them. With ``scores`` the largest probability p1 gives the factor: mass = p1
    sum(w) / max(w). It is used where the weights are visibly normalised (their sum is constant) or visibly scaled
    probabilities (max(w) / p1 is constant); a selection bias that refuses the likeliest expert makes it an upper
    bound. Without ``scores`` the sum of the weights is the mass if it varies and stays within 1, as unnormalised
    weights do. Sigmoid routers mostly have a bias: None.
    """
    if weight is None or scoring != "softmax":
        return None
    total, largest = weight.sum(axis=1, dtype=np.float64), weight.max(axis=1).astype(np.float64)
    known = np.isfinite(total) & (largest > 0)
    if scores is None:
        total = total[known]
        return float(total.mean()) if len(total) and not _constant(total) and total.max() <= 1 + SPREAD else None
    top1 = scores[:, TOP1].astype(np.float64)
    known &= np.isfinite(top1) & (top1 > 0)
    top1, largest, total = top1[known], largest[known], total[known]
    if not len(total) or not (_constant(total) or _constant(largest / top1)):
        return None
    return mean_known(top1 * total / largest)


def _constant(values: NDArray[np.float64]) -> bool:
    low, high = np.quantile(values, [0.01, 0.99])
    return bool(high - low <= SPREAD * high)
