"""What happens within a stretch of text: choices enter, batch balance, autocorrelation and distinct experts leave.

A run is a stretch of counted tokens that follow each other in one document. ``follows`` is ``[N]``, True where a token
directly follows the one before it in the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.locality import shared_experts

Chosen = NDArray[np.unsignedinteger[Any]]
Counts = NDArray[np.int64]
Follows = NDArray[np.bool_]
Sets = NDArray[np.uint64]
"""``[ceil(E/64), N]``, see ``locality.expert_sets``."""

BATCH_TOKENS = 1024
"""Tokens of a window whose load is looked at by itself."""
LAGS = (1, 2, 4, 8, 16, 32)
"""Distances in tokens, and lengths of windows in which distinct experts are counted."""
SHUFFLES = 4


def batch_max_violation(chosen: Chosen, experts: int) -> float | None:
    """Mean of max n / mean n - 1 over windows of BATCH_TOKENS tokens, which follow each other in the corpus' order.

    ``chosen`` is ``[N, K]``; the rest after the last whole window is left out, None below one window. Above 0 even at
    perfect balance: compare with ``batch_max_violation_matched`` (arXiv 2408.15664 calls it MaxVio_batch).
    """
    windows, per_token = len(chosen) // BATCH_TOKENS, chosen.shape[1]
    if not windows:
        return None
    window = np.repeat(np.arange(windows, dtype=np.int64) * experts, BATCH_TOKENS)
    cells = window[:, None] + chosen[: windows * BATCH_TOKENS]
    busiest = np.bincount(cells.ravel(), minlength=windows * experts).reshape(windows, experts).max(axis=1)
    return float(busiest.mean() * experts / (BATCH_TOKENS * per_token) - 1)


def batch_max_violation_matched(chosen: Chosen, experts: int, seed: int) -> float | None:
    """The same for the tokens of the trace in random order, mean of SHUFFLES orders: loads and K are kept."""
    if len(chosen) < BATCH_TOKENS:
        return None
    random = np.random.default_rng(seed)
    found = [batch_max_violation(chosen[random.permutation(len(chosen))], experts) for _ in range(SHUFFLES)]
    return sum(value for value in found if value is not None) / SHUFFLES


def position_in_run(follows: Follows) -> Counts:
    """``[N]`` how many tokens of its run are before each token."""
    index = np.arange(len(follows))
    return index - np.maximum.accumulate(np.where(follows, 0, index))


def overlap(sets: Sets, position: Counts, lag: int, experts_per_token: int) -> float | None:
    """Mean of |A_t and A_(t-lag)| / K over tokens of one run; None where no run is long enough."""
    later = position[lag:] >= lag
    pairs = int(later.sum())
    if not pairs:
        return None
    shared = int(shared_experts(sets[:, lag:], sets[:, :-lag]).sum(where=later, dtype=np.int64))
    return shared / pairs / experts_per_token


def autocorrelation(overlap: float | None, matched: float | None) -> float | None:
    """Correlation of the indicators 1[e in A_t] at a lag, pooled over experts: sum_e Cov_e / sum_e Var_e.

    With ``overlap`` at that lag and ``matched`` = sum_e q_e^2 / K it is (overlap - matched) / (1 - matched): 0 for
    unrelated tokens, 1 if every token chooses the same. None where the choice never varies.
    """
    return None if overlap is None or matched is None or matched >= 1 else (overlap - matched) / (1 - matched)


def distinct_experts(sets: Sets, position: Counts, lengths: tuple[int, ...] = LAGS) -> dict[int, float | None]:
    """Mean number of distinct experts in windows of each length, a power of 2, at every place in a run."""
    result: dict[int, float | None] = {}
    union, length = sets, 1
    for wanted in sorted(lengths):
        while length < wanted and length < union.shape[1]:
            union = union[:, length:] | union[:, :-length]  # of 2 * length tokens, up to and including the last
            length *= 2
        whole = position[length - 1 :] >= length - 1 if length == wanted else np.zeros(union.shape[1], bool)
        windows = int(whole.sum())
        counted = int(shared_experts(union, union).sum(where=whole, dtype=np.int64))
        result[wanted] = counted / windows if windows else None
    return result


def distinct_uniform(experts: int, experts_per_token: int, length: int) -> float:
    """E (1 - (1 - K/E)^W): distinct experts of W independent tokens that choose uniformly."""
    return experts * (1 - (1 - experts_per_token / experts) ** length)


def distinct_matched(counts: Counts, tokens: int, length: int) -> float | None:
    """sum_e 1 - (1 - q_e)^W: distinct experts of W independent tokens with these loads."""
    return float((1 - (1 - counts / tokens) ** length).sum()) if tokens else None
