"""Which experts prefer a domain: enters as GroupCounts, leaves as p and q values per domain and cell.

The unit is the group. Its tokens are correlated, so a test on tokens would call a third of all experts significant on
a random split of one domain. Labels are permuted over groups, and the statistic is studentised: a permutation test of
an unstudentised difference also reacts to domains that merely differ in spread (Janssen 1997; Chung and Romano 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.counts import Floats, GroupCounts

MINIMUM_HITS = 5
"""A cell is tested only if a domain of average taste would have chosen, and not chosen, the expert this often: one that
every token chooses tells as little as one that none does."""
CHUNK_ELEMENTS = 2_000_000
"""Elements of one temporary array: what keeps memory flat for any number of experts and permutations."""
BINS, BINS_PER_UNIT = 4096, 64
"""The null distribution is a histogram of statistics from -32 to 32; an observed one counts its whole bin against
itself."""
MOST_STRATA = 16


@dataclass(frozen=True, slots=True)
class PreferenceTests:
    """One-sided tests of 'this domain chooses this expert more often than the other domains do'."""

    statistic: NDArray[np.float64]
    """``[D, C]`` studentised difference of token shares."""
    p_value: NDArray[np.float64]
    """``[D, C]``; NaN for experts chosen too rarely or too often to test."""
    q_value: NDArray[np.float64]
    """``[D, C]`` Benjamini-Hochberg over all domains and cells; NaN as above."""


@dataclass(frozen=True, slots=True)
class RatioSample:
    """Groups prepared for fast ratio estimates of token shares under many weightings of the groups."""

    tokens: NDArray[np.float32]
    """``[G]``"""
    moments: NDArray[np.float32]
    """``[G, 3C]`` residual r = hits - q tokens at the overall share q, its square, and r times tokens."""
    overall: NDArray[np.float32]
    """``[C]`` overall token share q."""


def ratio_sample(tokens: Floats, hits: Floats) -> RatioSample:
    """Prepare ``tokens [G]`` and ``hits [G, C]``; residuals rather than counts, so that single precision is enough."""
    overall = hits.sum(axis=0, dtype=np.float64) / tokens.sum(dtype=np.float64)
    residual = hits - tokens[:, None] * overall
    moments = np.concatenate([residual, residual**2, residual * tokens[:, None]], axis=1)
    return RatioSample(tokens.astype(np.float32), moments.astype(np.float32), overall.astype(np.float32))


def ratio_estimates(
    sample: RatioSample, weights: NDArray[np.float32], least_variance: float = 1.0
) -> tuple[Floats, Floats]:
    """Token shares and their variances, each ``[R, C]``, for rows of group weights ``[R, G]`` (multiplicities).

    The share is the ratio estimator sum(hits) / sum(tokens); its variance is the linearised one over groups, with the
    small-sample factor G / (G - 1) (Cochran, Sampling Techniques, 6.4), and never below ``least_variance`` times that
    of independent tokens: a group's tokens agree more than chance, so a lower value is luck, by which rare experts
    would score high.
    """
    cells = len(sample.overall)
    groups = weights.sum(axis=1, keepdims=True)
    tokens = (weights @ sample.tokens)[:, None]
    squares = (weights @ sample.tokens**2)[:, None]
    moments = weights @ sample.moments
    residual, residual2, cross = moments[:, :cells], moments[:, cells : 2 * cells], moments[:, 2 * cells :]
    change = residual / tokens
    spread = residual2 - 2 * change * cross + change**2 * squares
    variance = spread * (groups / np.maximum(groups - 1, 1) / tokens**2)
    least = least_variance * sample.overall * (1 - sample.overall) / tokens
    return sample.overall + change, np.maximum(variance, least)


def studentised(sample: RatioSample, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[D, R, C]`` each domain's share minus the mean of the other domains', over its standard error.

    ``weights [D, R, G]``: R ways to deal the groups to the domains. NaN where nobody chose the expert.
    """
    domains, ways, groups = weights.shape
    share, variance = ratio_estimates(sample, weights.reshape(-1, groups))
    share, variance = share.reshape(domains, ways, -1), variance.reshape(domains, ways, -1)
    others = domains - 1
    difference = share - (share.sum(axis=0) - share) / others
    error2 = variance + (variance.sum(axis=0) - variance) / others**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(difference / np.sqrt(error2), dtype=np.float32)


def permuted_members(
    domain: NDArray[np.int64],
    domains: int,
    permutations: int,
    rows: int,
    rng: np.random.Generator,
    stratum: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Chunks ``[D, R, G]``, R up to ``rows``, of group memberships with the labels ``domain [G]`` permuted.

    Within each ``stratum [G]`` where these are given.
    """
    parts = [slice(None)] if stratum is None else [np.flatnonzero(stratum == part) for part in np.unique(stratum)]
    for start in range(0, permutations, rows):
        labels = np.tile(domain, (min(rows, permutations - start), 1))
        for part in parts:
            labels[:, part] = rng.permuted(labels[:, part], axis=1)
        yield (labels == np.arange(domains)[:, None, None]).astype(np.float32)


def chunk_rows(elements_per_row: int) -> int:
    """Rows of a chunk that holds about CHUNK_ELEMENTS."""
    return max(1, CHUNK_ELEMENTS // max(1, elements_per_row))


def preference_tests(counts: GroupCounts, permutations: int, rng: np.random.Generator) -> PreferenceTests:
    """Test every domain against the others on every expert.

    A p value from one cell's own permutations cannot be below 1 / permutations, too coarse for thousands of tests, so
    the null is pooled over cells of like skewness within a domain: studentised statistics of such cells share their
    null.
    """
    domains, cells = len(counts.domains), counts.hits.shape[1]
    sample = ratio_sample(counts.tokens, counts.hits)
    observed = studentised(sample, counts.members()[:, None, :])[:, 0, :]
    rarer = np.minimum(sample.overall, 1 - sample.overall)
    tested = rarer * counts.tokens.sum() / domains >= MINIMUM_HITS
    if not tested.any():
        nothing = np.full((domains, cells), np.nan)
        return PreferenceTests(observed.astype(np.float64), nothing, nothing)
    strata = _strata(sample, tested, max(1, min(MOST_STRATA, permutations // (50 * domains))))
    pools = (np.arange(domains)[:, None] * (strata.max() + 1) + strata) * BINS
    kept = RatioSample(sample.tokens, sample.moments[:, np.tile(tested, 3)], sample.overall[tested])
    null = np.zeros(int(pools.max()) + BINS, dtype=np.int64)
    rows = chunk_rows(domains * len(strata))
    for weights in permuted_members(counts.domain, domains, permutations, rows, rng, counts.stratum):
        null += np.bincount((pools[:, None, :] + _bin(studentised(kept, weights))).ravel(), minlength=len(null))
    above = null.reshape(-1, BINS)[:, ::-1].cumsum(axis=1)[:, ::-1]
    total = above[pools // BINS, 0]
    p_value = np.full((domains, cells), np.nan)
    p_value[:, tested] = (1 + above.ravel()[pools + _bin(observed[:, tested])]) / (1 + total)
    return PreferenceTests(observed.astype(np.float64), p_value, benjamini_hochberg(p_value))


def _bin(statistic: NDArray[np.float32]) -> NDArray[np.int64]:
    position = (statistic + np.float32(BINS / BINS_PER_UNIT / 2)) * BINS_PER_UNIT
    return np.asarray(np.clip(position, 0, BINS - 1), dtype=np.int64)


def _strata(sample: RatioSample, tested: NDArray[np.bool_], strata: int) -> NDArray[np.int64]:
    """``[tested cells]`` stratum of each, by the skewness of its residuals over groups, which no permutation
    changes."""
    residual = sample.moments[:, : len(sample.overall)][:, tested].astype(np.float64)
    skewness = (residual**3).mean(axis=0) / np.maximum((residual**2).mean(axis=0), 1e-12) ** 1.5
    rank = np.argsort(np.argsort(skewness, kind="stable"), kind="stable")
    return rank * min(strata, len(rank)) // len(rank)


def benjamini_hochberg(p_value: NDArray[np.float64]) -> NDArray[np.float64]:
    """q values of the same shape: the smallest false discovery rate at which a test counts; NaN stays and is no test.

    Benjamini and Hochberg 1995: q_(i) = min over j >= i of p_(j) m / j.
    """
    flat = p_value.ravel()
    tests = np.flatnonzero(~np.isnan(flat))
    order = tests[np.argsort(flat[tests], kind="stable")]
    scaled = flat[order] * len(order) / np.arange(1, len(order) + 1)
    q_value = np.full_like(flat, np.nan)
    q_value[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q_value.reshape(p_value.shape)
