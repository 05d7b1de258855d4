"""What the statistics of one layer share: a trace enters, one LayerSample of counted tokens per MoE layer leaves.

``N`` is the number of counted tokens. Layers are sampled one at a time, so that a memory-mapped trace is never held
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace, TraceLayer, forget_pages
from moetool.statistics import coactivation, documents, load, locality, paths, windows

Floats = NDArray[np.floating[Any]]
Chosen = NDArray[np.unsignedinteger[Any]]

PHASES = ("prefill", "decode")
"""Prompt tokens, read at once; and tokens that were generated one by one."""


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
    load_only: bool = False
    """Which token chose what was not recorded, see ``RoutingTrace.load_only``."""

    @property
    def total(self) -> int:
        """N."""
        return len(self.follows)

    @cached_property
    def shuffle(self) -> NDArray[np.int64]:
        """``[N]`` a permutation of the counted tokens, for load-matched baselines."""
        return np.random.default_rng(self.seed).permutation(self.total)

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """``[N]`` how many tokens of its run are before each token."""
        return windows.position_in_run(self.follows)

    @cached_property
    def resamples(self) -> NDArray[np.float32]:
        """``[RESAMPLES, G]`` bootstrap draws of groups within domains."""
        return documents.resample_groups(self.group_domain, self.seed)


@dataclass(frozen=True)
class LayerSample:
    """Routing of the counted tokens in one MoE layer; what several statistics need is computed once, on demand."""

    layer: TraceLayer
    tokens: CountedTokens
    chosen: Chosen
    """``[N, K]``"""
    weight: Floats | None
    """``[N, K]`` as applied."""
    scores: Floats | None
    """``[N, 4]``, see SCORE_COLUMNS."""
    probability: NDArray[np.float64] | None
    """``[E]`` mean router probability over the counted tokens of all domains."""
    before: tuple[TraceLayer, Chosen] | None = None
    """The MoE layer before this one and its choices ``[N, K]``; None for the first."""

    def release(self) -> None:
        """Let go of the memory of mapped arrays; the next layer reads the choices of this one once more."""
        for array in (self.layer.weight, self.layer.scores, self.before and self.before[0].chosen):
            forget_pages(array)

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

    @property
    def rerouted(self) -> NDArray[np.uint8] | None:
        """``[N]`` chosen experts of each token that only the correction bias brought in."""
        return None if self.layer.rerouted is None else self.layer.rerouted[self.tokens.where]

    @cached_property
    def flows(self) -> NDArray[np.int64] | None:
        """``[E, E']`` tokens by expert of the MoE layer before and of this one; None for the first layer."""
        if self.before is None or self.before[0].part != self.layer.part:
            return None
        layer, chosen = self.before
        return paths.flow_counts(chosen, self.chosen, layer.experts, self.layer.experts)

    @cached_property
    def distinct(self) -> dict[int, float | None]:
        """Mean distinct experts by length of the window."""
        return windows.distinct_experts(self.sets, self.tokens.position)

    @cached_property
    def overlap(self) -> dict[int, float | None]:
        """Mean shared part of the choices of two tokens, by their distance."""
        per_token = self.layer.experts_per_token
        return {lag: windows.overlap(self.sets, self.tokens.position, lag, per_token) for lag in windows.LAGS}

    @property
    def overlap_matched(self) -> float | None:
        """The overlap of independent tokens with these loads."""
        return locality.overlap_matched(self.counts, self.tokens.total, self.layer.experts_per_token)

    def autocorrelation(self, lag: int) -> float | None:
        """Correlation of the choices of tokens ``lag`` apart, pooled over experts."""
        return windows.autocorrelation(self.overlap[lag], self.overlap_matched)

    @property
    def path_information_matched(self) -> float | None:
        """Path information of choices that are paired at random."""
        if self.flows is None or self.before is None:
            return None
        per_token = self.before[0].experts_per_token
        return paths.path_information_matched(self.flows, self.tokens.total, per_token, self.layer.experts_per_token)

    def replicates(self, function: Callable[[NDArray[np.int64]], float | None]) -> NDArray[np.float64]:
        """``[R]`` a function of counts ``[E]``, over groups drawn with replacement; NaN where it is None."""
        drawn = self.tokens.resamples.astype(np.float64) @ self.group_counts
        return np.array([function(counts) for counts in drawn], dtype=np.float64)

    def mean_replicates(self, values: Floats | None, among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """``[R]`` the mean of ``values [N]``, over groups drawn with replacement; NaN where there are none.

        Only finite values count, and only those of the tokens ``among``.
        """
        tokens = self.tokens
        if values is None:
            return np.full(len(tokens.resamples), np.nan)
        known = np.isfinite(values) if among is None else np.isfinite(values) & among
        groups = len(tokens.group_tokens)
        total = np.bincount(tokens.group[known], weights=values[known], minlength=groups)
        number = np.bincount(tokens.group[known], minlength=groups)
        drawn = tokens.resamples.astype(np.float64)
        with np.errstate(invalid="ignore"):
            means: NDArray[np.float64] = (drawn @ total) / (drawn @ number)
        return means

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
        """``[ceil(E/64), N]`` chosen experts as bits."""
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


def phase_of_token(trace: RoutingTrace) -> NDArray[np.bool_]:
    """``[T]`` True for generated tokens (decode); all False where the trace does not tell."""
    prompts = [document.tokens if document.prompt_tokens is None else document.prompt_tokens
               for document in trace.documents]  # fmt: skip
    lengths = np.array([document.tokens for document in trace.documents], dtype=np.int64)
    starts = np.repeat([document.start for document in trace.documents], lengths)
    generated: NDArray[np.bool_] = np.arange(len(trace.tokens)) - starts >= np.repeat(prompts, lengths)
    return generated


def count_tokens(trace: RoutingTrace, seed: int = 0, phase: str | None = None) -> CountedTokens:
    """Index the tokens of a trace that statistics count; ``seed`` governs shuffles and resampling.

    ``phase`` is one of PHASES, or None for both.
    """
    counted = trace.counted
    if phase is not None:
        counted = counted & (phase_of_token(trace) == (phase == "decode"))
    where = np.flatnonzero(counted)
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
        domain_tokens=np.bincount(domain_of_document[document], minlength=len(trace.domains)).astype(np.int64),
        seed=seed,
        load_only=trace.load_only,
    )


def sample_layers(trace: RoutingTrace, tokens: CountedTokens) -> Iterator[LayerSample]:
    """The MoE layers of a trace, one at a time; drop each before the next is taken."""
    before: tuple[TraceLayer, Chosen] | None = None
    for layer in trace.layers:
        chosen = np.asarray(layer.chosen[tokens.where])
        yield LayerSample(
            layer,
            tokens,
            chosen,
            None if layer.weight is None else np.asarray(layer.weight[tokens.where]),
            None if layer.scores is None else np.asarray(layer.scores[tokens.where]),
            _mean_probability(trace, layer, tokens),
            before,
        )
        before = (layer, chosen)


def _mean_probability(trace: RoutingTrace, layer: TraceLayer, tokens: CountedTokens) -> NDArray[np.float64] | None:
    """Domains weighted by their counted tokens; a domain without any has no mean and takes no part.

    None without probabilities, where those of a domain are not known, or where a phase is looked at: the means of a
    trace are over all counted tokens.
    """
    present = tokens.domain_tokens > 0
    if layer.probability is None or not present.any():
        return None
    if (tokens.domain_tokens != trace.counted_tokens_of_domain()).any():
        return None
    mean = np.average(layer.probability[present].astype(np.float64), axis=0, weights=tokens.domain_tokens[present])
    return mean if np.isfinite(mean).all() else None
