"""How evenly the experts of one layer are used: counts per expert enter, numbers leave.

``counts`` is ``[E]``, the counted tokens that chose each expert; its sum is tokens times K. A layer without counted
tokens has no load: every function then returns None (arrays: zeros).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


def slot_share(counts: Counts) -> Shares:
    """``[E]`` f_e, share of all token-expert slots that expert e got; adds up to 1."""
    return counts / max(int(counts.sum()), 1)


def token_share(counts: Counts, tokens: int) -> Shares:
    """``[E]`` q_e, share of the counted tokens that chose expert e; adds up to K (OLMoE, arXiv 2409.02060, eq. 7)."""
    return counts / max(tokens, 1)


def utilization(counts: Counts) -> Shares:
    """``[E]`` u_e = E f_e, load over the mean load: 1 at perfect balance (ESFT token score, arXiv 2407.01906)."""
    return len(counts) * slot_share(counts)


def weight_share(
    chosen: NDArray[np.unsignedinteger[Any]], weight: NDArray[np.floating[Any]] | None, experts: int
) -> Shares | None:
    """``[E]`` share of the applied weight that went to each expert (ESFT gate score, normalised).

    ``chosen`` and ``weight`` are ``[N, K]``. Shares, because what the weights of a token add up to differs between
    families; a weight that is not finite is left out. None without weights or where they add up to nothing.
    """
    if weight is None:
        return None
    known = np.where(np.isfinite(weight), weight, 0).ravel()
    total = np.bincount(chosen.ravel(), weights=known, minlength=experts)
    return total / total.sum() if total.sum() > 0 else None


def max_violation(counts: Counts) -> float | None:
    """max n / mean n - 1, in [0, E/K - 1] (loss-free balancing, arXiv 2408.15664)."""
    return float(counts.max() / counts.mean() - 1) if counts.any() else None


def max_violation_limit(experts: int, experts_per_token: int) -> float:
    """E/K - 1, reached when K experts take every token: a token cannot choose one expert twice."""
    return experts / experts_per_token - 1


def min_violation(counts: Counts) -> float | None:
    """(mean n - min n) / mean n, in [0, 1]: 1 where an expert was never chosen (arXiv 2408.15664)."""
    return float(1 - counts.min() / counts.mean()) if counts.any() else None


def cv(counts: Counts) -> float | None:
    """Population standard deviation (ddof 0) over mean of the load; NeMo divides by E - 1 instead."""
    return float(counts.std() / counts.mean()) if counts.any() else None


def cv_uniform(experts: int, experts_per_token: int, tokens: int) -> float | None:
    """sqrt((1 - K/E) / (T K/E)): cv of independent tokens that choose K of E uniformly; None without tokens."""
    share = experts_per_token / experts
    return math.sqrt((1 - share) / (tokens * share)) if tokens else None


def gini(counts: Counts) -> float | None:
    """sum_i (2i - E - 1) f_(i) / E with f sorted, i from 1: in [0, 1 - K/E]."""
    if not counts.any():
        return None
    experts = len(counts)
    rank = np.arange(1, experts + 1)
    return float((2 * rank - experts - 1) @ np.sort(counts) / (experts * counts.sum()))


def gini_limit(experts: int, experts_per_token: int) -> float:
    """1 - K/E, the Gini coefficient when K experts take every token."""
    return 1 - experts_per_token / experts


def _entropy_nats(counts: Counts) -> float:
    share = slot_share(counts[counts > 0])
    return float(-(share @ np.log(share)))


def load_entropy(counts: Counts) -> float | None:
    """H(f) / ln E: 1 at perfect balance, at least ln K / ln E; None for a single expert."""
    return _entropy_nats(counts) / math.log(len(counts)) if counts.any() and len(counts) > 1 else None


def load_entropy_limit(experts: int, experts_per_token: int) -> float:
    """ln K / ln E, the least load entropy: K experts take every token. 1 for a single expert."""
    return math.log(experts_per_token) / math.log(experts) if experts > 1 else 1.0


def effective_experts(counts: Counts) -> float | None:
    """exp(H(f)), the number of evenly used experts with the same entropy: in [K, E]."""
    return math.exp(_entropy_nats(counts)) if counts.any() else None


def group_loads(counts: Counts, groups: int) -> Counts:
    """``[groups]`` choices that fell into each group of neighbouring experts (group-limited routing, DeepSeek-V3)."""
    loads: Counts = counts.reshape(groups, -1).sum(axis=1)
    return loads


def group_max_violation(counts: Counts, groups: int) -> float | None:
    """max - 1 of group load over mean group load, in [0, min(groups, E/K) - 1]; None for ungrouped routers."""
    return max_violation(group_loads(counts, groups)) if groups else None


def group_max_violation_limit(experts: int, experts_per_token: int, groups: int) -> float | None:
    """min(groups, E/K) - 1: the K choices of every token in one group, or in as few as hold them."""
    return min(groups, experts / experts_per_token) - 1 if groups else None


def busiest_expert(counts: Counts) -> int | None:
    """The expert with the highest load, the lowest id among equals."""
    return int(counts.argmax()) if counts.any() else None


def balance_loss(counts: Counts, probability: Shares | None) -> float | None:
    """E sum_e f_e P_e: 1 at balance (Switch, arXiv 2101.03961, eq. 4; f divided by K as in Megatron-LM).

    ``probability`` is ``[E]``, P_e, the mean router probability over the counted tokens; None without it.
    """
    if probability is None or not counts.any():
        return None
    return float(len(counts) * (slot_share(counts) @ probability))


def balance_loss_hf(layers: Sequence[tuple[Counts, Shares | None]], tokens: int) -> float | None:
    """The loss as transformers' ``load_balancing_loss_func`` computes it: E sum_e q_e P_e, K at balance.

    ``layers`` has ``(counts [E], probability [E])`` of each layer, over the same ``tokens``. With more than one
    layer, q and P are averaged over the layers **before** they are multiplied, which hides imbalance: opposite layers
    cancel. It is there only to be compared with a training log. None where a layer has no probabilities, or the
    layers differ in their experts.
    """
    known = [(counts, probability) for counts, probability in layers if probability is not None]
    if not tokens or not known or len(known) < len(layers) or len({len(counts) for counts, _ in known}) > 1:
        return None
    share = np.mean([token_share(counts, tokens) for counts, _ in known], axis=0)
    mean_probability = np.mean([probability for _, probability in known], axis=0)
    return float(len(share) * (share @ mean_probability))
