"""Which experts prefer a kind of token: groups, classes and choices of tokens enter, tested pattern experts leave.

The rival of a class is the other tokens of the same documents, so that what a document's topic brings is no pattern.
With t_g tokens in a group, c_g of them of the class, m_g the others, and their hits h_gc and h_gm, the two sides are
``taken`` X_g = h_gc m_g / t_g and ``expected`` Y_g = h_gm c_g / t_g, and the lift is sum X_g / sum Y_g: the risk ratio
of Mantel and Haenszel (1959), of which groups without both kinds are no part. X_g - Y_g is also the hits of the class
minus c_g h_g / t_g, what all tokens of the group predict; but a class that is most of the text would be compared with
itself then, and its lift could hardly leave 1.

The unit is the group. Where a class has no say, X_g - Y_g is as often above zero as below, whatever the tokens of a
group have in common, so its sign is flipped by group. The sum over the root of the sum of squares has a null that
depends on little but how unequal the groups are; Student's distribution would reject too rarely where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.counts import Floats
from moetool.statistics.intervals import LEAST_VARIANCE, PSEUDO_HIT
from moetool.statistics.significance import MINIMUM_HITS, benjamini_hochberg
from moetool.statistics.student import student_quantile

Integers = NDArray[np.integer[Any]]

MINIMUM_CLASS_GROUPS = 8
"""Groups with and without the class that each half needs before the class is tested."""
STRATA_PER_OCTAVE, STRATA = 2, 32
"""The null is pooled over cells of a like effective number of groups, in steps of its logarithm."""
BINS, BINS_PER_UNIT = 8192, 256
"""The null is a histogram of the absolute statistic up to 32; an observed one counts its whole bin against itself."""


@dataclass(frozen=True, slots=True)
class ClassIndex:
    """Where the tokens of each class are, counted once for all layers; ``Q`` classes, ``G`` groups."""

    pair: NDArray[np.int64]
    """``[N]`` pair of group and combination of classes that a token belongs to."""
    group_of_pair: NDArray[np.int64]
    """``[P]`` rising."""
    member: NDArray[np.bool_]
    """``[Q, P]``"""
    tokens: NDArray[np.float64]
    """``[G]``"""
    class_tokens: NDArray[np.float64]
    """``[Q, G]``"""

    @property
    def weight(self) -> NDArray[np.float64]:
        """``[Q, G]`` c_g m_g / t_g: what a group adds to a comparison; 0 without both kinds of tokens."""
        return self.class_tokens * (1 - self.class_tokens / self.tokens)


@dataclass(frozen=True, slots=True)
class LiftEstimates:
    """Lifts with their standard errors over groups, one for each column."""

    log_lift: NDArray[np.float64]
    error: NDArray[np.float64]
    """Of ``log_lift``."""
    degrees: NDArray[np.float64]
    """Effective number of groups minus 1, at least 1."""

    def select(self, columns: Any) -> LiftEstimates:
        """The estimates of some columns."""
        return LiftEstimates(self.log_lift[columns], self.error[columns], self.degrees[columns])

    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the 95 % intervals of the lifts."""
        half = student_quantile(self.degrees) * self.error
        return np.exp(self.log_lift - half), np.exp(self.log_lift + half)


@dataclass(frozen=True, slots=True)
class PatternTests:
    """One-sided tests of 'tokens of this class choose this expert more often than others of their documents do'.

    ``[C]`` cells: those of layer, class and expert with enough groups and hits.
    """

    layer: NDArray[np.int64]
    """Position among the layers that were passed."""
    token_class: NDArray[np.int64]
    expert: NDArray[np.int64]
    p_value: NDArray[np.float64]
    """On the discovery half."""
    q_value: NDArray[np.float64]
    """Benjamini-Hochberg over all cells."""
    lifts: LiftEstimates
    """On the confirmation half."""

    def confirmed(self, rate: float) -> NDArray[np.int64]:
        """Cells with q < ``rate`` on the discovery half and a 95 % interval of the lift above 1 on the other half;
        those with the highest lower end first."""
        low, _ = self.lifts.interval()
        found = np.flatnonzero((self.q_value < rate) & (low > 1))
        return found[np.argsort(-low[found], kind="stable")]


@dataclass(frozen=True, slots=True)
class ClassInformation:
    """How differently the tokens of a class choose from the others of their documents: KL divergence of the slot
    distribution of ``taken`` from that of ``expected``. NaN for a class with too few groups in either half."""

    observed_bits: NDArray[np.float64]
    """``[L, Q]``, above zero by chance alone."""
    excess_bits: NDArray[np.float64]
    """``[L, Q]`` observed minus the mean over sign flips, which trade the two sides of a group. The flips hold the
    effect too, so the excess is low by about the information over the effective number of groups."""
    p_value: NDArray[np.float64]
    """``[L, Q]`` share of flips that reach the observed value."""


def index_classes(group: Integers, masks: NDArray[np.bool_]) -> ClassIndex:
    """Prepare the classes ``masks [Q, N]``, at most 62, of tokens of the groups ``group [N]``, numbered from 0
    without gaps."""
    code = np.zeros(len(group), dtype=np.int64)
    for position, mask in enumerate(masks):
        code |= mask.astype(np.int64) << position
    kinds, kind = np.unique(code, return_inverse=True)
    pairs, pair = np.unique(group * np.int64(len(kinds)) + kind, return_inverse=True)
    member = (kinds[pairs % len(kinds)] >> np.arange(len(masks))[:, None] & 1).astype(bool)
    of_pair, size = pairs // len(kinds), np.bincount(pair).astype(np.float64)
    groups = int(group.max()) + 1
    return ClassIndex(
        pair,
        of_pair,
        member,
        np.asarray(np.bincount(of_pair, size, groups), dtype=np.float64),
        np.array([np.bincount(of_pair, size * row, groups) for row in member]),
    )


def class_contrasts(
    index: ClassIndex, chosen: Integers, experts: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``taken`` and ``expected [Q, G, E]`` for the choices ``chosen [N, K]`` of one layer."""
    cell = (index.pair * experts)[:, None] + chosen
    table = np.bincount(cell.ravel(), minlength=len(index.group_of_pair) * experts).reshape(-1, experts)
    hits = _sum_by_group(table, index.group_of_pair, len(index.tokens))
    shape = (*index.class_tokens.shape, experts)
    taken, expected = np.empty(shape, np.float32), np.empty(shape, np.float32)
    share = index.class_tokens / index.tokens
    for position, member in enumerate(index.member):
        own = _sum_by_group(table[member], index.group_of_pair[member], len(index.tokens))
        taken[position] = own * (1 - share[position])[:, None]
        expected[position] = (hits - own) * share[position][:, None]
    return taken, expected


def _sum_by_group(rows: NDArray[np.int64], group: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """``[G, E]`` sums of ``rows [P, E]`` with rising ``group [P]``."""
    present, first = np.unique(group, return_index=True)
    total = np.zeros((groups, rows.shape[1]), dtype=np.int64)
    if len(present):
        total[present] = np.add.reduceat(rows, first, axis=0)
    return total


def lift_estimates(taken: Floats, expected: Floats, column: Integers, columns: int) -> LiftEstimates:
    """Lifts of columns from their entries, each ``[R]``, one per group and column: sum of taken over sum of expected.

    The error is the linearised jackknife over groups of the logarithm (Miller, Biometrika 61, 1974): a group that
    makes up most of a column would hide its own deviation otherwise. A column has as many groups as equal ones would
    be worth the same: (sum s_g)^2 / sum s_g^2 (Kish, Survey Sampling, 1965), s_g = X_g + Y_g.
    """

    def total(values: Floats) -> NDArray[np.float64]:
        return np.asarray(np.bincount(column, values.ravel(), columns), dtype=np.float64)

    above, below = total(taken) + PSEUDO_HIT, total(expected) + PSEUDO_HIT
    share = (taken + expected).ravel() / (above + below)[column]
    residual = (taken.ravel() / above[column] - expected.ravel() / below[column]) / (1 - share)
    groups = np.maximum(total(np.sign(share)), 2)
    effective = total(share) ** 2 / np.maximum(total(share**2), 1e-12)
    least = 2 * LEAST_VARIANCE / (above + below)
    error = np.sqrt(np.maximum((groups - 1) / groups * total(residual**2), least))
    return LiftEstimates(np.log(above / below), error, np.maximum(effective - 1, 1))


def pattern_tests(
    layers: Iterable[tuple[Integers, int]],
    index: ClassIndex,
    halves: tuple[Integers, Integers],
    flips: int,
    rng: np.random.Generator,
) -> tuple[PatternTests, ClassInformation]:
    """Test all experts on the groups ``halves[0]``, estimate lifts on ``halves[1]`` and information on all groups.

    ``layers`` gives ``chosen [N, K]`` and the number of experts, layer after layer; one is in memory at a time.
    """
    null = np.zeros((STRATA, BINS), dtype=np.int64)
    parts, bits = [np.empty((8, 0))], []
    weight = index.weight
    testable = np.all([(weight[:, half] > 0).sum(axis=1) >= MINIMUM_CLASS_GROUPS for half in halves], axis=0)
    for layer, (chosen, experts) in enumerate(layers):
        signs = (2 * rng.integers(0, 2, (flips, len(index.tokens))) - 1).astype(np.float32)
        taken, expected = class_contrasts(index, chosen, experts)
        bits.append(np.full((3, len(weight)), np.nan))
        for position in np.flatnonzero(testable):
            own, other = taken[position], expected[position]
            first, second = (signs[:, half] @ (own - other)[half] for half in halves)
            bits[-1][:, position] = _information(own.sum(axis=0), other.sum(axis=0), first + second)
            tokens = weight[position, halves[0]].sum()
            cells = _discovery_cells(own[halves[0]], other[halves[0]], float(tokens), first, null)
            lifts = _confirmation_lifts(own[halves[1]], other[halves[1]], cells[0].astype(np.int64))
            where = np.broadcast_to([[layer], [position]], (2, cells.shape[1]))
            parts.append(np.concatenate([where, cells, [lifts.log_lift, lifts.error, lifts.degrees]]))
    return _tests(np.concatenate(parts, axis=1), null), ClassInformation(*np.stack(bits, axis=1))


def _discovery_cells(
    taken: NDArray[np.float32],
    expected: NDArray[np.float32],
    tokens: float,
    flipped: NDArray[np.float32],
    null: NDArray[np.int64],
) -> NDArray[np.float64]:
    """``[3, C]`` expert, stratum and statistic of the experts that one class can test; their flips join ``null``.

    ``taken`` and ``expected [G, E]``, ``tokens`` the sum of the groups' weights, ``flipped [flips, E]`` sums of the
    difference.
    """
    usual = (taken + expected).sum(axis=0) / 2
    squares = (taken - expected) ** 2
    tested = (np.minimum(usual, tokens - usual) >= MINIMUM_HITS) & squares.any(axis=0)
    squares, total = squares[:, tested], squares[:, tested].sum(axis=0)
    effective = total**2 / (squares**2).sum(axis=0)
    stratum = np.clip(STRATA_PER_OCTAVE * np.log2(effective), 0, STRATA - 1).astype(np.int64)
    place = stratum * BINS + _bin(flipped[:, tested] / np.sqrt(total))
    null += np.bincount(place.ravel(), minlength=null.size).reshape(null.shape)
    statistic = (taken - expected)[:, tested].sum(axis=0) / np.sqrt(total)
    return np.array([np.flatnonzero(tested), stratum, statistic])


def _confirmation_lifts(
    taken: NDArray[np.float32], expected: NDArray[np.float32], expert: NDArray[np.int64]
) -> LiftEstimates:
    column = np.tile(np.arange(len(expert)), len(taken))
    return lift_estimates(taken[:, expert], expected[:, expert], column, len(expert))


def _information(taken: Floats, expected: Floats, flipped: Floats) -> NDArray[np.float64]:
    """Observed bits, excess bits and p value from the sums ``[E]`` and the flipped sums ``[flips, E]`` of their
    difference."""
    middle = (taken + expected) / 2
    observed = _kl_bits(taken, expected)
    null = _kl_bits(middle + flipped / 2, middle - flipped / 2)
    reached = (null >= observed * (1 - 1e-6)).sum()
    return np.array([observed, observed - null.mean(), (1 + reached) / (1 + len(null))])


def _kl_bits(own: Floats, other: Floats) -> NDArray[np.float64]:
    """KL divergence in bits of the shares of ``own`` from those of ``other``, both ``[..., E]``."""
    own, other = (np.maximum(side, 0) + PSEUDO_HIT for side in (own, other))
    share = own / own.sum(axis=-1, keepdims=True)
    ratio = share / other * other.sum(axis=-1, keepdims=True)
    return np.asarray((share * np.log2(ratio)).sum(axis=-1), dtype=np.float64)


def _tests(cells: NDArray[np.float64], null: NDArray[np.int64]) -> PatternTests:
    """Tests of ``cells [8, C]``: layer, class, expert, stratum, statistic, and the three of LiftEstimates."""
    layer, token_class, expert, stratum = cells[:4].astype(np.int64)
    above = null[:, ::-1].cumsum(axis=1)[:, ::-1]
    tail = (1 + above[stratum, _bin(cells[4])]) / (1 + above[stratum, 0]) / 2
    p_value = np.where(cells[4] > 0, tail, 1 - tail)
    return PatternTests(layer, token_class, expert, p_value, benjamini_hochberg(p_value), LiftEstimates(*cells[5:]))


def _bin(statistic: Floats) -> NDArray[np.int64]:
    return np.asarray(np.minimum(np.abs(statistic) * BINS_PER_UNIT, BINS - 1), dtype=np.int64)
