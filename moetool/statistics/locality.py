"""How much a token's experts follow the token before it: choices enter, repeat rates and baselines leave.

Only neighbours count: two consecutive tokens of one document, both counted. ``follows`` is ``[N]``, True where a
counted token directly follows the one before it in the array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Chosen = NDArray[np.unsignedinteger[Any]]
Sets = NDArray[np.uint64]

CHUNK = 1 << 14
MATCHED_PAIRS = 1 << 21
MATCHED_SHUFFLES = 4


def first_choice(chosen: Chosen, weight: NDArray[np.floating[Any]] | None) -> Chosen:
    """``[N]`` the expert with the largest applied weight of ``[N, K]``; without weights, the first in stored order.

    The stored order alone would be wrong: several families choose with ``topk(sorted=False)``. Of experts with the
    same weight it is the first, that with the lowest number.
    """
    if weight is None:
        return chosen[:, 0]
    largest = weight == weight.max(axis=1, keepdims=True)
    first = np.where(largest, chosen, np.iinfo(chosen.dtype).max).min(axis=1)
    return np.where(largest.any(axis=1), first, chosen[:, 0])  # weights that are no numbers


def repeats(first: Chosen) -> NDArray[np.float32]:
    """``[N]`` 1 where the first choice is that of the token before in the array, else 0."""
    same = np.zeros(len(first), np.float32)
    same[1:] = first[1:] == first[:-1]
    return same


def first_repeat(first: Chosen, follows: NDArray[np.bool_]) -> float | None:
    """P(a1_t = a1_(t-1)) over neighbours (Mixtral, arXiv 2401.04088, table 5); None without neighbours."""
    return _share(repeats(first)[follows].astype(bool))


def first_repeat_matched(first: Chosen, experts: int) -> float | None:
    """sum_e f1_e^2, the repeat of two independent tokens with the same first choices."""
    if not len(first):
        return None
    share = np.bincount(first, minlength=experts) / len(first)
    return float(share @ share)


def expert_sets(chosen: Chosen, experts: int) -> Sets:
    """``[ceil(E/64), N]`` the chosen experts of each token as bits, so that sets intersect with one ``&``."""
    words = -(-experts // 64)
    sets = np.empty((words, len(chosen)), np.uint64)
    for start in range(0, len(chosen), CHUNK):
        part = chosen[start : start + CHUNK]
        marked = np.zeros((len(part), 64 * words), np.uint8)
        np.put_along_axis(marked, part.astype(np.intp), 1, axis=1)
        sets[:, start : start + CHUNK] = np.packbits(marked, axis=1, bitorder="little").view(np.uint64).T
    return sets


def shared_experts(sets: Sets, others: Sets) -> NDArray[np.uint16]:
    """``[N]`` how many experts two sets have in common, token by token; both are ``[ceil(E/64), N]``."""
    count = np.zeros(sets.shape[1], np.uint16)
    for word, other in zip(sets, others, strict=True):
        count += np.bitwise_count(word & other)
    return count


def any_repeat(sets: Sets, follows: NDArray[np.bool_]) -> float | None:
    """P(A_t and A_(t-1) meet) over neighbours (Mixtral, table 5); None without neighbours."""
    return _share(_meet(sets[:, 1:], sets[:, :-1])[follows[1:]])


def _meet(sets: Sets, others: Sets) -> NDArray[np.bool_]:
    met = np.zeros(sets.shape[1], np.bool_)
    for word, other in zip(sets, others, strict=True):
        met |= (word & other) != 0
    return met


def any_repeat_uniform(experts: int, experts_per_token: int) -> float:
    """1 - C(E-K, K) / C(E, K): any_repeat of independent uniform choices. It flatters: loads are not uniform."""
    return 1 - math.comb(experts - experts_per_token, experts_per_token) / math.comb(experts, experts_per_token)


def any_repeat_matched(sets: Sets, shuffle: NDArray[np.int64]) -> float | None:
    """P(two different tokens of the layer meet), the load-matched baseline of any_repeat; None below two tokens.

    ``shuffle`` is a permutation of the tokens. The shuffled tokens, closed to a ring, are compared at distances 1, 2,
    ...: each distance pairs every token once. Short traces are compared at every distance, which gives the exact mean
    over all pairs; long ones at no fewer than MATCHED_SHUFFLES distances and about MATCHED_PAIRS pairs.
    """
    tokens = sets.shape[1]
    if tokens < 2:
        return None
    ring, met = sets[:, shuffle], 0
    distances = min(tokens - 1, max(MATCHED_SHUFFLES, MATCHED_PAIRS // tokens))
    for distance in range(1, distances + 1):
        met += int(_meet(ring[:, distance:], ring[:, :-distance]).sum())
        met += int(_meet(ring[:, :distance], ring[:, -distance:]).sum())
    return float(met / (distances * tokens))


def overlap_uniform(experts: int, experts_per_token: int) -> float:
    """K/E: what overlap is for independent uniform choices."""
    return experts_per_token / experts


def overlap_matched(counts: NDArray[np.int64], tokens: int, experts_per_token: int) -> float | None:
    """sum_e q_e^2 / K, the overlap of two independent tokens with the same loads; ``counts`` is ``[E]``."""
    if not tokens:
        return None
    share = counts / tokens
    return float(share @ share / experts_per_token)


def _share(hits: NDArray[np.bool_] | np.bool_) -> float | None:
    return float(hits.mean()) if np.size(hits) else None
