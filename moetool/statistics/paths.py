"""How the choice of one layer tells that of the next: choices of neighbouring MoE layers enter, flows leave.

``flows`` is ``[E, E']``, the counted tokens that chose i in one layer and j in the next, over all K x K' pairs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Chosen = NDArray[np.unsignedinteger[Any]]
Counts = NDArray[np.int64]

CHUNK = 1 << 16
MOST_CORRECTION = 0.2
"""Of the entropies: with fewer tokens the expansion below fails, and nothing can be said of paths."""


def flow_counts(chosen: Chosen, following: Chosen, experts: int, following_experts: int) -> Counts:
    """``[E, E']`` N_ij, tokens that chose i of ``chosen [N, K]`` and j of ``following [N, K']``."""
    flows = np.zeros(experts * following_experts, np.int64)
    for start in range(0, len(chosen), CHUNK):
        part = chosen[start : start + CHUNK].astype(np.int64) * following_experts
        behind = following[start : start + CHUNK].astype(np.int64)
        for column in range(part.shape[1]):
            flows += np.bincount((part[:, column : column + 1] + behind).ravel(), minlength=len(flows))
    return flows.reshape(experts, following_experts)


def path_information(flows: Counts) -> float | None:
    """I / sqrt(H H') of the slot shares of two layers: 0 if the choices are unrelated, 1 if one names the other.

    1 needs K = K' = 1: of K experts, each meets all K' of the next layer. None where a layer uses one expert only.
    Compare with ``path_information_matched``: counts of few tokens look related.
    """
    nats, normaliser = _information(flows)
    return nats / normaliser if normaliser > 0 else None


def path_information_matched(flows: Counts, tokens: int, per_token: int, following_per_token: int) -> float | None:
    """The same for tokens whose two choices are paired at random, each layer keeping its choices.

    Under random pairing N_ij is hypergeometric with mean n_i m_j / T and variance n_i m_j (T-n_i)(T-m_j) / (T^2 (T-1)).
    To second order I is half the sum of variance / (mean T K K'), which adds up to (E-K)(E'-K') / (2 K K' (T-1)), E and
    E' counting the experts that were used: the analogue of the Miller-Madow correction. None where that is more than
    MOST_CORRECTION, as there are too few tokens for it.
    """
    _, normaliser = _information(flows)
    if normaliser <= 0 or tokens < 2:
        return None
    used, following_used = (int(flows.any(axis=axis).sum()) for axis in (1, 0))
    spread = (used - per_token) * (following_used - following_per_token)
    nats = spread / (2 * per_token * following_per_token * (tokens - 1))
    return nats / normaliser if nats <= MOST_CORRECTION * normaliser else None


def _information(flows: Counts) -> tuple[float, float]:
    """Mutual information in nats and sqrt(H H')."""
    total = int(flows.sum())
    if not total:
        return 0.0, 0.0
    joint = flows / total
    first, second = joint.sum(axis=1), joint.sum(axis=0)
    seen = joint > 0
    nats = float((joint[seen] * np.log(joint[seen] / np.outer(first, second)[seen])).sum())
    return max(nats, 0.0), math.sqrt(_entropy(first) * _entropy(second))


def _entropy(share: NDArray[np.float64]) -> float:
    share = share[share > 0]
    return max(0.0, float(-(share * np.log(share)).sum())) if len(share) > 1 else 0.0


def strongest_flows(flows: Counts, per_token: int, following_per_token: int, top: int) -> dict[str, list[Any]]:
    """Columns of the ``top`` largest flows: experts, ``tokens`` N_ij, ``share`` N_ij / n_i, ``share_matched`` m_j / T.

    ``share_matched`` is what the share would be if the choice of the next layer did not depend on this one.
    """
    tokens = flows.sum() / (per_token * following_per_token)
    order = np.argsort(-flows, axis=None, kind="stable")[:top]
    order = order[flows.ravel()[order] > 0]
    first, second = np.divmod(order, flows.shape[1])
    largest = flows.ravel()[order]
    return {
        "expert": first.tolist(),
        "next_expert": second.tolist(),
        "tokens": largest.tolist(),
        "share": (largest * following_per_token / flows.sum(axis=1)[first]).tolist(),
        "share_matched": (flows.sum(axis=0)[second] / per_token / max(tokens, 1)).tolist(),
    }
