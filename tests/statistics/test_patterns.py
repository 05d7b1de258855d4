"""Pattern experts: worked examples, calibration where classes have no say, and planted digits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.statistics.patterns import (
    ClassInformation,
    PatternTests,
    class_contrasts,
    index_classes,
    lift_estimates,
    pattern_tests,
)
from moetool.statistics.specialization import split_groups
from moetool.statistics.student import student_quantile
from tests.statistics.domains import systematic_choices

RATE = 0.05
LIFT = 2.5


def runs(shares, length, run, rng):
    """``[Q, length]`` masks of classes that come in runs of ``run`` tokens on average."""
    masks = np.zeros((len(shares), length), bool)
    for mask, share in zip(masks, shares, strict=True):
        starts = rng.random(length) < 1 / run
        starts[0] = True
        state = rng.random(starts.sum()) < share
        mask[:] = state[np.cumsum(starts) - 1]
    return masks


def raised(share, planted):
    """Slot shares with those of ``planted`` experts times LIFT, the others lowered alike."""
    result = share.copy()
    result[list(planted)] *= LIFT
    rest = np.setdiff1d(np.arange(len(share)), planted)
    result[rest] *= (1 - result[list(planted)].sum()) / result[rest].sum()
    return result


def corpus(seed, groups=32, tokens=150, layers=2, experts=16, chosen=2, planted=None, concentration=15.0, section=None):
    """Documents of two domains with a taste of their own: ``group [N]``, ``masks [3, N]`` and ``[N, K]`` per layer.

    Classes 0, 1 and 2 are about 8, 30 and 60 % of the tokens; class 0 is four times as frequent in the second domain.
    ``planted`` names for each layer the experts that class 0 prefers. With ``section``, a document's taste changes
    every so many tokens.
    """
    rng = np.random.default_rng(seed)
    planted = planted or [()] * layers
    base = rng.dirichlet(np.full(experts, 8.0), (2, layers))
    group, masks, choices = [], [], [[] for _ in range(layers)]
    for g in range(groups):
        length = int(tokens * rng.uniform(0.4, 1.6))
        own = runs([(0.03, 0.13)[g % 2], rng.uniform(0.1, 0.5), rng.uniform(0.4, 0.8)], length, 4, rng)
        group.append(np.full(length, g))
        masks.append(own)
        for layer in range(layers):
            taste = rng.dirichlet(concentration * base[g % 2, layer] + 0.02)
            out = np.empty((length, chosen), np.int64)
            for start in range(0, length, section or length):
                part = np.arange(length)[start : start + (section or length)]
                here = rng.dirichlet(20 * taste + 0.02) if section else taste
                for kind, tokens_here in enumerate((part[own[0, part]], part[~own[0, part]])):
                    share = raised(here, planted[layer]) if kind == 0 else here
                    out[tokens_here] = systematic_choices(share, len(tokens_here), chosen, rng)
            choices[layer].append(out)
    return np.concatenate(group), np.concatenate(masks, axis=1), [np.concatenate(layer) for layer in choices]


def analysed(seed, experts=16, **parts) -> tuple[PatternTests, ClassInformation]:
    """The analysis of a corpus, its groups halved within domains."""
    group, masks, choices = corpus(seed, experts=experts, **parts)
    rng = np.random.default_rng([seed, 1])
    halves = split_groups(np.arange(group.max() + 1) % 2, 2, rng)
    return pattern_tests([(chosen, experts) for chosen in choices], index_classes(group, masks), halves, 400, rng)


def brute_force(group, masks, chosen, experts):
    groups = group.max() + 1
    taken, expected = np.zeros((2, len(masks), groups, experts))
    for q, mask in enumerate(masks):
        for g in range(groups):
            own, other = (group == g) & mask, (group == g) & ~mask
            tokens = own.sum() + other.sum()
            for expert in range(experts):
                hit = (chosen == expert).any(axis=1)
                taken[q, g, expert] = (hit & own).sum() * other.sum() / tokens
                expected[q, g, expert] = (hit & other).sum() * own.sum() / tokens
    return taken, expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 5), groups=st.integers(1, 6))
def test_contrasts_are_those_of_a_direct_count(seed, classes, groups):
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(groups), rng.integers(0, groups, 60)])
    masks = rng.random((classes, len(group))) < rng.uniform(0, 1, (classes, 1))
    chosen = systematic_choices(rng.dirichlet(np.ones(6)), len(group), 2, rng)
    taken, expected = class_contrasts(index_classes(group, masks), chosen, 6)
    wanted = brute_force(group, masks, chosen, 6)
    assert taken == pytest.approx(wanted[0])
    assert expected == pytest.approx(wanted[1])


def test_the_lift_is_that_within_documents():
    """Group 0 uses expert 0 and has many digits, group 1 neither: digits choose it no more than their documents do."""
    group = np.repeat([0, 1], 100)
    digit = np.arange(200) % 100 < np.where(group == 0, 50, 10)
    hit = np.arange(200) % 10 < np.where(group == 0, 8, 2)
    assert hit[digit].mean() / hit[~digit].mean() > 1.5
    taken, expected = class_contrasts(index_classes(group, digit[None]), np.where(hit, 0, 1)[:, None], 2)
    assert taken[0, :, 0] == pytest.approx(expected[0, :, 0])
    assert taken[0, :, 0] == pytest.approx([40 * 50 / 100, 2 * 90 / 100])


def test_groups_without_both_kinds_carry_nothing():
    group = np.repeat([0, 1, 2], 10)
    mask = np.concatenate([np.ones(10), np.zeros(10), np.arange(10) < 5]).astype(bool)
    index = index_classes(group, mask[None])
    taken, expected = class_contrasts(index, np.zeros((30, 1), int), 1)
    assert index.weight[0].tolist() == [0, 0, 2.5]
    assert taken[0, :, 0].tolist() == expected[0, :, 0].tolist() == [0, 0, 2.5]


def test_students_quantile_by_table():
    table = {2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1e9: 1.960}
    assert student_quantile(np.array(list(table))) == pytest.approx(list(table.values()), rel=0.01)
    assert student_quantile(np.array([5.0, 10, 30])) == pytest.approx([2.571, 2.228, 2.042], abs=0.001)


def estimates(taken, expected):
    return lift_estimates(np.array(taken), np.array(expected), np.zeros(len(taken), int), 1)


def test_lift_errors_are_those_of_leaving_groups_out():
    rng = np.random.default_rng(0)
    expected = rng.uniform(20, 60, 40)
    taken = expected * rng.uniform(1.5, 2.5, 40)
    result = estimates(taken, expected)
    without = np.log((taken.sum() - taken) / (expected.sum() - expected))
    assert result.log_lift[0] == pytest.approx(np.log(taken.sum() / expected.sum()), abs=1e-3)
    assert result.error[0] == pytest.approx(np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum()), rel=0.02)
    assert result.degrees[0] == pytest.approx(39, rel=0.15)


def test_one_large_group_is_one_group():
    even, uneven = estimates([20] * 9, [10, 12] * 4 + [10]), estimates([20] * 8 + [2000], [10, 12] * 4 + [1000])
    assert uneven.degrees[0] < 1.2
    assert uneven.interval()[0][0] < 1 < even.interval()[0][0]


def identical_groups(groups):
    """Each has 10 digits, all to expert 0, and 10 other tokens, all to expert 1."""
    digit = np.tile(np.arange(20) < 10, groups)
    index = index_classes(np.repeat(np.arange(groups), 20), digit[None])
    halves = np.arange(groups)[::2], np.arange(groups)[1::2]
    layers = [(np.where(digit, 0, 1)[:, None], 2)]
    return pattern_tests(layers, index, halves, 20_000, np.random.default_rng(0))


def test_eight_groups_that_agree_by_hand():
    tests, information = identical_groups(16)
    assert tests.expert.tolist() == [0, 1]
    assert tests.token_class.tolist() == tests.layer.tolist() == [0, 0]
    # All eight signs are the same one in 2^8 times.
    assert tests.p_value == pytest.approx([2**-8, 1 - 2**-8], rel=0.15)
    assert tests.q_value[0] == pytest.approx(2 * tests.p_value[0])
    assert tests.confirmed(RATE).tolist() == [0]
    # 80 and 0 hits, half a hit added to each.
    high, low = 80.5 / 81, 0.5 / 81
    assert information.observed_bits[0, 0] == pytest.approx((high - low) * np.log2(high / low))
    assert information.p_value[0, 0] < 0.001


def test_fewer_groups_are_not_tested():
    tests, information = identical_groups(15)
    assert len(tests.p_value) == len(tests.confirmed(RATE)) == 0
    assert np.isnan(information.p_value).all()


def test_what_the_other_half_does_not_show_is_not_confirmed():
    """Digits prefer expert 0 in the groups of the discovery half, expert 1 in the others."""
    digit, group = np.tile(np.arange(20) < 10, 16), np.repeat(np.arange(16), 20)
    halves = np.arange(16)[::2], np.arange(16)[1::2]
    layers = [(np.where(digit == (group % 2 == 0), 0, 1)[:, None], 2)]
    tests, information = pattern_tests(
        layers, index_classes(group, digit[None]), halves, 2000, np.random.default_rng(0)
    )
    assert tests.q_value[0] < 0.01
    assert tests.lifts.log_lift[0] < 0 < tests.lifts.log_lift[1]
    assert len(tests.confirmed(RATE)) == 0
    assert information.observed_bits == pytest.approx(0)


def test_experts_of_none_or_all_are_not_tested():
    """Expert 0 misses four tokens, and expert 4 has those."""
    rng = np.random.default_rng(0)
    chosen = np.stack([np.zeros(3200, int), rng.integers(1, 4, 3200)], axis=1)
    chosen[::800, 0] = 4
    masks = rng.random((1, 3200)) < 0.2
    halves = np.arange(16)[::2], np.arange(16)[1::2]
    index = index_classes(np.repeat(np.arange(16), 200), masks)
    tests, _ = pattern_tests([(chosen, 5)], index, halves, 100, rng)
    assert tests.expert.tolist() == [1, 2, 3]


@pytest.mark.parametrize("parts", [{}, {"section": 30}, {"groups": 80, "tokens": 200}])
def test_classes_without_a_say_are_calibrated(parts):
    """Every document has its own taste, its classes come in runs, and one is more frequent in one domain."""
    corpora = [analysed(seed, **parts) for seed in range(40)]
    p_value = np.concatenate([tests.p_value for tests, _ in corpora])
    assert 0.035 <= (p_value < 0.05).mean() <= 0.06
    assert 0.44 <= (p_value < 0.5).mean() <= 0.56
    assert sum(bool(len(tests.confirmed(RATE))) for tests, _ in corpora) <= 2
    of_layer = np.concatenate([information.p_value.ravel() for _, information in corpora])
    assert 0.015 <= (of_layer < 0.05).mean() <= 0.09
    excess = np.array([information.excess_bits for _, information in corpora])
    observed = np.array([information.observed_bits for _, information in corpora])
    assert abs(excess.mean()) < 0.1 * observed.mean()


def test_planted_patterns_are_found_and_little_else():
    planted = [(3, 9), (5,)]
    wanted = {(layer, 0, expert) for layer, experts in enumerate(planted) for expert in experts}
    right = false = 0
    lifts, covered = [], []
    for seed in range(12):
        tests, information = analysed(seed, groups=96, tokens=200, concentration=40.0, planted=planted)
        found = tests.confirmed(RATE)
        names = set(zip(tests.layer[found], tests.token_class[found], tests.expert[found], strict=True))
        right += len(names & wanted)
        false += len(names - wanted)
        low, high = tests.lifts.interval()
        for layer, kind, expert in wanted:
            cell = (tests.layer == layer) & (tests.token_class == kind) & (tests.expert == expert)
            lifts.append(np.exp(tests.lifts.log_lift[cell][0]))
            covered.append(low[cell][0] <= LIFT <= high[cell][0])
        assert (information.p_value[:, 0] < 0.01).all()
    assert right / (12 * len(wanted)) >= 0.9
    assert false <= 2
    assert np.mean(lifts) == pytest.approx(LIFT, rel=0.1)
    assert np.mean(covered) >= 0.85
