"""What the text of tokens explains: a trace and its counts enter, patterns, vocabulary and preferred tokens leave.

Everything is on the tokens that the analysis of domains counts, with the same halves of the groups throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace, TraceLayer
from moetool.corpus.token_classes import TokenClasses, classify_tokens
from moetool.statistics.counts import GroupCounts, kept_groups
from moetool.statistics.parallel import map_in_order
from moetool.statistics.patterns import ClassInformation, PatternTests, index_classes, pattern_tests
from moetool.statistics.vocabulary import (
    Choices,
    PreferredTokens,
    VocabularySpecialization,
    cross_fitted_identity_share,
    index_tokens,
    preferred_tokens,
    vocabulary_specialization,
)

Halves = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The tokens that count, with what their text says; ``N`` of them."""

    position: NDArray[np.int64]
    """``[N]`` place in the trace."""
    group: NDArray[np.int64]
    """``[N]`` numbered as in GroupCounts."""
    domain: NDArray[np.int64]
    """``[N]``"""
    word: NDArray[np.int64]
    """``[N]`` number of the token among those that occur."""
    ids: NDArray[np.int32]
    """Token id of each number."""
    classes: TokenClasses
    """Of all tokens of the trace: their neighbours matter."""

    @property
    def part(self) -> NDArray[np.int64]:
        """``[N]`` class of the partition."""
        return self.classes.partition[self.position].astype(np.int64)

    @property
    def classes_together(self) -> NDArray[np.int64]:
        """``[N]`` a number for every combination of the class of the partition and the classes that overlap it."""
        code = self.part
        for name in self.classes.members:
            code = 2 * code + self.classes.mask(name)[self.position]
        return np.unique(code, return_inverse=True)[1].astype(np.int64)

    def select(self, rows: NDArray[np.bool_]) -> KeptTokens:
        """Some of them, ``[N]`` True."""
        return replace(
            self, position=self.position[rows], group=self.group[rows], domain=self.domain[rows], word=self.word[rows]
        )


@dataclass(frozen=True, slots=True)
class TokenText:
    """Patterns, vocabulary and what of the domains they explain; classes are those of ``names``."""

    names: tuple[str, ...]
    class_share: NDArray[np.float64]
    """``[Q]`` share of the counted tokens."""
    patterns: PatternTests
    found: NDArray[np.int64]
    """Rows of ``patterns`` that stood out on one half of the groups and were seen again on the other."""
    information: ClassInformation
    token_explained: list[float | None]
    """``[L]`` share of the information about the domain that token identity explains, cross-fitted; None where there is
    hardly any."""
    class_explained: list[float | None]
    """``[L]`` the same of the token classes."""
    vocabulary: list[VocabularySpecialization | None]
    """``[L]``; None where no token is frequent enough."""
    preferred: dict[tuple[int, int], PreferredTokens]
    """Of some experts, by layer index and expert; ``kind`` counts as ``ids`` does."""
    ids: NDArray[np.int32]


def kept_tokens(trace: RoutingTrace, keep: NDArray[np.bool_], counts: GroupCounts) -> KeptTokens | None:
    """The tokens with ``keep [T]``; None where the trace has no texts, or does not tell which token chose what."""
    starts = np.array([document.start for document in trace.documents], dtype=np.int64)
    classes = None if trace.load_only else classify_tokens(trace.tokens, trace.vocabulary, starts)
    if classes is None:
        return None
    position, group, _ = kept_groups(trace, keep, trace.group_of_document().astype(np.int64))
    ids, word = np.unique(trace.tokens[position], return_inverse=True)
    return KeptTokens(position, group, counts.domain[group], word.astype(np.int64), ids, classes)


def study_text(
    trace: RoutingTrace,
    tokens: KeptTokens,
    halves: Halves,
    experts: Sequence[tuple[int, int]],
    rate: float,
    flips: int,
    rng: np.random.Generator,
) -> TokenText:
    """Test patterns (found at the false discovery ``rate``), and list the tokens that some ``experts`` prefer."""
    names = tokens.classes.names
    masks = np.array([tokens.classes.mask(name)[tokens.position] for name in names])
    layers = ((layer.chosen[tokens.position], layer.experts) for layer in trace.layers)
    patterns, information = pattern_tests(layers, index_classes(tokens.group, masks), halves, flips, rng)
    index = index_tokens(tokens.word, tokens.group)
    second = np.isin(tokens.group, halves[1])

    def of_layer(number: int) -> _LayerText:
        layer: TraceLayer = trace.layers[number]
        chosen = np.asarray(layer.chosen[tokens.position])
        return _LayerText(
            cross_fitted_identity_share(Choices(tokens.domain, tokens.word, chosen), second, layer.experts).share,
            cross_fitted_identity_share(Choices(tokens.domain, tokens.part, chosen), second, layer.experts).share,
            vocabulary_specialization(tokens.word, chosen, layer.experts),
            {
                (number, expert): preferred_tokens(index, (chosen == expert).any(axis=1), halves)
                for at, expert in experts
                if at == number
            },
        )

    found = list(map_in_order(of_layer, range(len(trace.layers))))
    return TokenText(
        names,
        masks.mean(axis=1),
        patterns,
        patterns.confirmed(rate),
        information,
        [layer.token_explained for layer in found],
        [layer.class_explained for layer in found],
        [layer.vocabulary for layer in found],
        {place: listed for layer in found for place, listed in layer.preferred.items()},
        tokens.ids,
    )


@dataclass(frozen=True, slots=True)
class _LayerText:
    token_explained: float | None
    class_explained: float | None
    vocabulary: VocabularySpecialization | None
    preferred: dict[tuple[int, int], PreferredTokens]
