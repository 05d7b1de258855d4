"""What a routing choice tells about the domain: enters as GroupCounts, leaves as bits per layer with their null."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.counts import GroupCounts
from moetool.statistics.intervals import bootstrap_members
from moetool.statistics.significance import chunk_rows, permuted_members
from moetool.statistics.student import LEVEL


@dataclass(frozen=True, slots=True)
class Information:
    """Mutual information I(E;D) of expert and domain per layer, slot-weighted, domains weighted equally."""

    observed_bits: NDArray[np.float64]
    """``[L]``, at most log2 D; above zero by chance alone."""
    excess_bits: NDArray[np.float64]
    """``[L]`` observed minus the mean over permutations of the domain labels over groups; may be below zero."""
    p_value: NDArray[np.float64]
    """``[L]`` share of permutations that reach the observed value."""
    null_bits: NDArray[np.float64]
    """``[2, L]`` between these lie 95 % of the permutations, less their mean."""


def mutual_information(counts: GroupCounts, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[R, L]`` bits for ``weights [D, R, G]``: entropy of the mean distribution minus mean entropy of the domains.

    With equal weights this is the Jensen-Shannon divergence of the domains' slot shares.
    """
    slots = (weights @ counts.tokens)[:, :, None] * counts.experts_per_token
    share = (weights @ counts.hits) / slots
    joint = _minus_entropy(share).mean(axis=0) - _minus_entropy(share.mean(axis=0))
    return np.add.reduceat(joint, counts.starts, axis=-1, dtype=np.float64)


def _minus_entropy(share: NDArray[np.float32]) -> NDArray[np.float32]:
    return share * np.log2(np.maximum(share, np.float32(1e-30)))


def _in_chunks(counts: GroupCounts, chunks: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate([mutual_information(counts, weights) for weights in chunks])


def domain_information(counts: GroupCounts, permutations: int, rng: np.random.Generator) -> Information:
    """Information per layer beyond what the same groups show under permuted labels.

    The permuted domains mix groups of all domains, so they also vary by the effect itself: the excess is low by about
    the information divided by the groups per domain.
    """
    domains = len(counts.domains)
    observed = mutual_information(counts, counts.members()[:, None, :])[0]
    rows = chunk_rows(domains * counts.hits.shape[1])
    permuted = permuted_members(counts.domain, domains, permutations, rows, rng, counts.stratum)
    null = _in_chunks(counts, permuted)
    reached = (null >= observed * (1 - 1e-6)).sum(axis=0)
    mean = null.mean(axis=0)
    band = np.quantile(null, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) - mean
    return Information(observed, observed - mean, (1 + reached) / (1 + permutations), band)


def excess_intervals(
    counts: GroupCounts, excess: NDArray[np.float64], bootstraps: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends ``[L]`` of the 95 % intervals of the excess: bootstrap over the groups of each domain, bias-corrected.

    A resample repeats groups and so shows information that is not there, about as much as the sample shows beyond the
    population (Efron and Tibshirani 1993, 10.2). The interval is the spread of the resamples around the observed
    information less that bias, both scaled up for the groups of the smallest domain, G / (G - 1). It is widened to the
    same spread around ``excess [L]``, which estimates the same from below: it covers the truth and holds the estimate.
    """
    domains = len(counts.domains)
    rows = chunk_rows(domains * counts.hits.shape[1])
    sizes = (min(rows, bootstraps - start) for start in range(0, bootstraps, rows))
    resampled = _in_chunks(counts, (bootstrap_members(counts.domain, domains, size, rng) for size in sizes))
    observed = mutual_information(counts, counts.members()[:, None, :])[0]
    mean = resampled.mean(axis=0)
    groups = int(counts.groups_of_domain().min())
    centre = observed - (mean - observed) * groups / (groups - 1)
    low, high = np.quantile(resampled - mean, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) * np.sqrt(
        groups / (groups - 1)
    )
    return np.minimum(excess, centre) + low, np.maximum(excess, centre) + high
