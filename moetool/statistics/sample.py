"""What the statistics of one layer share: a trace enters, one LayerSample of counted tokens per MoE layer leaves.

``N`` is the number of counted tokens. Layers are sampled one at a time, so that a memory-mapped trace is never held
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace, TraceLayer
from moetool.statistics import coactivation, documents, load, locality

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CountedTokens:
    """Which tokens of a trace count, and how they hang together; the same for every layer."""

    where: slice | NDArray[np.int64]
    """Index of the counted tokens; a slice of everything where there are no others, which copies nothing."""
    follows: NDArray[np.bool_]
    """``[N]`` True where a token directly follows the counted token before it, in the same document."""
    group: NDArray[np.int64]
    """``[N]`` group of each token; only groups that have counted tokens are numbered."""
    group_tokens: NDArray[np.int64]
    """``[G]`` counted tokens."""
    group_domain: NDArray[np.int32]
    """``[G]`` index of the domain."""
    domain_tokens: NDArray[np.int64]
    """``[D]`` counted tokens."""
    seed: int

    @property
    def total(self) -> int:
        """N."""
        return len(self.follows)

    @cached_property
    def shuffle(self) -> NDArray[np.int64]:
        """``[N]`` a permutation of the counted tokens, for load-matched baselines."""
        return np.random.default_rng(self.seed).permutation(self.total)

    @cached_property
    def resamples(self) -> NDArray[np.float32]:
        """``[RESAMPLES, G]`` bootstrap draws of groups within domains."""
        return documents.resample_groups(self.group_domain, self.seed)


@dataclass(frozen=True)
class LayerSample:
    """Routing of the counted tokens in one MoE layer; what several statistics need is computed once, on demand."""

    layer: TraceLayer
    tokens: CountedTokens
    chosen: NDArray[np.unsignedinteger[Any]]
    """``[N, K]``"""
    weight: Floats | None
    """``[N, K]`` as applied."""
    scores: Floats | None
    """``[N, 4]``, see SCORE_COLUMNS."""
    probability: NDArray[np.float64] | None
    """``[E]`` mean router probability over the counted tokens of all domains."""

    @cached_property
    def group_counts(self) -> NDArray[np.int64]:
        """``[G, E]`` tokens of each group that chose each expert."""
        experts, groups = self.layer.experts, len(self.tokens.group_tokens)
        cells = self.tokens.group[:, None] * experts + self.chosen
        return np.bincount(cells.ravel(), minlength=groups * experts).reshape(groups, experts)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """``[E]`` tokens that chose each expert."""
        counts: NDArray[np.int64] = self.group_counts.sum(axis=0)
        return counts

    @property
    def dropped_share(self) -> float | None:
        """Choices that did not run, 0 to 1; None for families without capacity."""
        dropped = self.layer.dropped
        return None if dropped is None or not len(self.chosen) else float(dropped[self.tokens.where].mean())

    @property
    def zero_compute_share(self) -> float | None:
        """Choices of experts that compute nothing, 0 to 1; None where there are none."""
        first = self.layer.experts - self.layer.zero_experts
        if not self.layer.zero_experts or not len(self.chosen):
            return None
        return float((self.chosen >= first).mean())

    @cached_property
    def weight_share(self) -> NDArray[np.float64] | None:
        """``[E]`` share of the applied weight."""
        return load.weight_share(self.chosen, self.weight, self.layer.experts)

    @cached_property
    def first(self) -> NDArray[np.unsignedinteger[Any]]:
        """``[N]`` the expert with the largest weight."""
        return locality.first_choice(self.chosen, self.weight)

    @cached_property
    def sets(self) -> NDArray[np.uint64]:
        """``[N, ceil(E/64)]`` chosen experts as bits."""
        return locality.expert_sets(self.chosen, self.layer.experts)

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """``[E, E]`` tokens that chose both."""
        return coactivation.pair_counts(self.chosen, self.layer.experts)

    @cached_property
    def expected_pairs(self) -> NDArray[np.float64]:
        """``[E, E]`` the same under the null that keeps loads and K."""
        return coactivation.expected_pairs(self.counts, self.layer.experts_per_token)

    @cached_property
    def design_effect(self) -> float | None:
        """Correlated tokens worth one independent token."""
        return documents.design_effect(self.group_counts, self.tokens.group_tokens)

    @cached_property
    def statuses(self) -> NDArray[np.str_]:
        """``[E]`` used, cold, unobserved or dead."""
        tokens = self.tokens
        return documents.expert_statuses(
            self.group_counts,
            tokens.group_tokens,
            tokens.group_domain,
            tokens.resamples,
            self.layer.experts_per_token,
            self.design_effect,
        )


def count_tokens(trace: RoutingTrace, seed: int = 0) -> CountedTokens:
    """Index the tokens of a trace that statistics count; ``seed`` governs shuffles and resampling."""
    where = np.flatnonzero(trace.counted)
    document = trace.document_of_token()[where]
    follows = np.zeros(len(where), bool)
    follows[1:] = (np.diff(where) == 1) & (document[1:] == document[:-1])
    group_of_document, domain_of_document = trace.group_of_document(), trace.domain_of_document()
    present, group = np.unique(group_of_document[document], return_inverse=True)
    domain_of_group = np.zeros(len(trace.documents), np.int32)
    domain_of_group[group_of_document] = domain_of_document
    return CountedTokens(
        where=slice(None) if len(where) == len(trace.tokens) else where,
        follows=follows,
        group=group.astype(np.int64),
        group_tokens=np.bincount(group, minlength=len(present)).astype(np.int64),
        group_domain=domain_of_group[present],
        domain_tokens=trace.counted_tokens_of_domain(),
        seed=seed,
    )


def sample_layers(trace: RoutingTrace, tokens: CountedTokens) -> Iterator[LayerSample]:
    """The MoE layers of a trace, one at a time; drop each before the next is taken."""
    for layer in trace.layers:
        yield LayerSample(
            layer,
            tokens,
            np.asarray(layer.chosen[tokens.where]),
            None if layer.weight is None else np.asarray(layer.weight[tokens.where]),
            None if layer.scores is None else np.asarray(layer.scores[tokens.where]),
            _mean_probability(layer, tokens),
        )


def _mean_probability(layer: TraceLayer, tokens: CountedTokens) -> NDArray[np.float64] | None:
    """Domains weighted by their counted tokens; a domain without any has no mean and takes no part.

    None without probabilities, or where those of a domain are not known.
    """
    present = tokens.domain_tokens > 0
    if layer.probability is None or not present.any():
        return None
    mean = np.average(layer.probability[present].astype(np.float64), axis=0, weights=tokens.domain_tokens[present])
    return mean if np.isfinite(mean).all() else None
