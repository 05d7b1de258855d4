"""Which experts of one layer are chosen together: choices enter, pair counts, their null and the top pairs leave."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Matrix = NDArray[np.float64]

CHUNK = 1 << 16
MINIMUM_TOKENS = 20
"""Experts with fewer tokens are in no pair: one token alone would make every partner certain."""


def pair_counts(chosen: NDArray[np.unsignedinteger[Any]], experts: int) -> Counts:
    """``[E, E]`` N_ij, tokens that chose both i and j, over **all** pairs of ``chosen [N, K]``; diagonal 0."""
    upper = np.zeros(experts * experts, np.int64)
    for start in range(0, len(chosen), CHUNK):
        part = chosen[start : start + CHUNK].astype(np.int64)
        for column in range(part.shape[1] - 1):
            cells = part[:, column : column + 1] * experts + part[:, column + 1 :]
            upper += np.bincount(cells.ravel(), minlength=len(upper))
    matrix = upper.reshape(experts, experts)
    return matrix + matrix.T


def expected_pairs(counts: Counts, experts_per_token: int, tolerance: float = 1e-9, iterations: int = 2000) -> Matrix:
    """``[E, E]`` expected N_ij without affinities, each expert keeping its load and each token its K experts.

    The quasi-independence model (Goodman, JASA 63, 1968): N_ij = x_i x_j off the diagonal, every row adding up to
    (K-1) N_i. At equal loads the lift is (K-1)E / (K(E-1)) < 1: slots compete. For K = 2 it is the exact
    maximum-entropy choice of K experts at these loads; for larger K it is a close approximation unless an expert
    takes nearly every token.
    """
    margin = (experts_per_token - 1) * counts.astype(np.float64)
    expected = np.zeros((len(counts), len(counts)))
    if not margin.any():
        return expected
    used = margin > 0
    margin = margin[used]
    factor = margin / np.sqrt(margin.sum())
    for _ in range(iterations):
        fitted = factor * (factor.sum() - factor)
        # The square root keeps the symmetric iteration from swinging between two solutions.
        factor *= np.sqrt(margin / fitted)
        if np.abs(fitted / margin - 1).max() < tolerance:
            break
    pairs = np.outer(factor, factor)
    np.fill_diagonal(pairs, 0)
    expected[np.ix_(used, used)] = pairs
    return expected


def coactivation_max(pairs: Counts, counts: Counts) -> float | None:
    """The largest C_ij = N_ij / N_i among experts i with MINIMUM_TOKENS tokens; None for K = 1 or too few tokens."""
    cell = _largest(pairs, counts)
    return None if cell is None else float(pairs[cell] / counts[cell[0]])


def coactivation_max_matched(pairs: Counts, expected: Matrix, counts: Counts) -> float | None:
    """C_ij of that same pair under the null of ``expected_pairs``: high where j is merely popular."""
    cell = _largest(pairs, counts)
    return None if cell is None else float(expected[cell] / counts[cell[0]])


def _largest(pairs: Counts, counts: Counts) -> tuple[int, int] | None:
    if not pairs.any():
        return None
    conditional = np.where(counts[:, None] >= MINIMUM_TOKENS, pairs / np.maximum(counts, 1)[:, None], 0.0)
    row, column = divmod(int(conditional.argmax()), len(counts))
    return (row, column) if conditional[row, column] > 0 else None


def strongest_pairs(pairs: Counts, expected: Matrix, counts: Counts, tokens: int, top: int) -> dict[str, list[Any]]:
    """Columns of up to ``top`` pairs that co-occur more than the null, the most surprising first.

    ``expert`` is the rarer of the two, ``other`` its partner; ``coactivation`` N_ij/N_i; ``lift`` N_ij T/(N_i N_j);
    ``lift_matched`` the same of the null; ``jaccard`` N_ij/(N_i + N_j - N_ij); ``deviate`` the Freeman-Tukey deviate
    sqrt(N) + sqrt(N+1) - sqrt(4X+1), about standard normal for independent tokens under the null; neighbouring tokens
    are dependent, so it ranks and tests nothing.
    """
    first, second = np.triu_indices(len(counts), 1)
    observed, null = pairs[first, second], expected[first, second]
    deviate = np.sqrt(observed) + np.sqrt(observed + 1) - np.sqrt(4 * null + 1)
    kept = (counts[first] >= MINIMUM_TOKENS) & (counts[second] >= MINIMUM_TOKENS) & (observed > null)
    order = np.flatnonzero(kept)[np.argsort(-deviate[kept], kind="stable")[:top]]
    swap = counts[first] > counts[second]
    rarer, other = np.where(swap, second, first)[order], np.where(swap, first, second)[order]
    observed, null = observed[order], null[order]
    product = counts[rarer].astype(np.float64) * counts[other] / max(tokens, 1)
    return {
        "expert": rarer.tolist(),
        "other": other.tolist(),
        "tokens": observed.tolist(),
        "coactivation": (observed / counts[rarer]).tolist(),
        "lift": (observed / product).tolist(),
        "lift_matched": (null / product).tolist(),
        "jaccard": (observed / (counts[rarer] + counts[other] - observed)).tolist(),
        "deviate": deviate[order].tolist(),
    }
