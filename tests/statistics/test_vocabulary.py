"""Token identity, vocabulary specialization and preferred tokens: by hand, and where tokens tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.statistics.patterns import class_contrasts, index_classes
from moetool.statistics.vocabulary import (
    PREFERRED_TOKENS,
    Choices,
    cross_fitted_identity_share,
    identity_share,
    index_tokens,
    preferred_tokens,
    vocabulary_specialization,
)


def divergence(first, second):
    """Jensen-Shannon divergence in bits of two distributions without zeros."""
    first, second = np.array(first), np.array(second)
    middle = (first + second) / 2
    return float((first * np.log2(first / middle) + second * np.log2(second / middle)).sum() / 2)


def choices_of(rows):
    domain, kind, expert, count = np.array(rows).T
    return Choices(domain, kind, expert[:, None], count)


BY_HAND = choices_of(
    # Domain 0 has 4 tokens: 3 of kind 0, 2 of them to expert 0, and 1 of kind 1 to expert 1. Domain 1 has 8: 2 of kind
    # 0, half to each expert, and 6 of kind 1, 5 of them to expert 1.
    [(0, 0, 0, 2), (0, 0, 1, 1), (0, 1, 1, 1), (1, 0, 0, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 5)]
)


def test_identity_share_by_hand():
    result = identity_share(BY_HAND, BY_HAND, 2)
    assert result.information_bits == pytest.approx(divergence([2 / 4, 2 / 4], [2 / 8, 6 / 8]))
    # Kind 0 to expert 0: 2/4 + 1/8 of 3/4 + 2/8 = 5/8; kind 1: 0 + 1/8 of 1/4 + 6/8 = 1/8.
    first = 3 / 4 * 5 / 8 + 1 / 4 * 1 / 8
    second = 2 / 8 * 5 / 8 + 6 / 8 * 1 / 8
    assert result.explained_bits == pytest.approx(divergence([first, 1 - first], [second, 1 - second]))
    assert result.share == pytest.approx(result.explained_bits / result.information_bits)


def test_kinds_that_were_not_learnt_tell_nothing():
    learnt = choices_of([(0, 0, 0, 3), (0, 0, 1, 1), (1, 0, 1, 4)])
    applied = choices_of([(0, 1, 0, 4), (1, 2, 1, 4)])
    result = identity_share(learnt, applied, 2)
    assert result.information_bits == pytest.approx(1)
    assert result.explained_bits == pytest.approx(0, abs=1e-12)


def test_kinds_that_were_not_learnt_choose_like_all():
    # Kind 1 was not learnt: q(0) is (3/4 + 0) / 2, domains weighted equally. Of kind 0, 3/4 choose expert 0.
    learnt = choices_of([(0, 0, 0, 3), (0, 0, 1, 1), (1, 3, 1, 4)])
    applied = choices_of([(0, 1, 0, 4), (1, 0, 1, 4)])
    explained = identity_share(learnt, applied, 2).explained_bits
    assert explained == pytest.approx(divergence([3 / 8, 5 / 8], [3 / 4, 1 / 4]))


def test_cross_fitting_goes_both_ways():
    one = choices_of([(0, 0, 0, 3), (0, 1, 1, 2), (1, 0, 1, 4), (1, 1, 1, 1)])
    choices = Choices(
        *(
            np.concatenate(parts)
            for parts in zip(*((c.domain, c.kind, c.chosen, c.count) for c in (BY_HAND, one)), strict=True)
        )
    )
    ways = identity_share(BY_HAND, one, 2), identity_share(one, BY_HAND, 2)
    assert ways[0].explained_bits != pytest.approx(ways[1].explained_bits)
    result = cross_fitted_identity_share(choices, np.arange(11) >= 7, 2)
    assert result.explained_bits == pytest.approx((ways[0].explained_bits + ways[1].explained_bits) / 2)
    assert result.information_bits == pytest.approx((ways[0].information_bits + ways[1].information_bits) / 2)


def test_no_information_has_no_share():
    same = choices_of([(0, 0, 0, 1), (1, 0, 0, 1)])
    assert identity_share(same, same, 2).share is None


def test_counts_are_repeated_rows():
    repeated = Choices(
        *(np.repeat(part, BY_HAND.count, axis=0) for part in (BY_HAND.domain, BY_HAND.kind, BY_HAND.chosen))
    )
    assert identity_share(repeated, repeated, 2) == identity_share(BY_HAND, BY_HAND, 2)


def test_identity_alone_explains_everything():
    """Every kind chooses alike in both domains, which differ in how frequent the kinds are."""
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], 20_000)
    kind = np.where(rng.random(40_000) < np.where(domain == 0, 0.7, 0.2), 0, 1)
    chosen = (rng.random((40_000, 1)) < np.where(kind == 0, 0.8, 0.1)[:, None]).astype(int)
    half = rng.random(40_000) < 0.5
    assert cross_fitted_identity_share(Choices(domain, kind, chosen), half, 2).share == pytest.approx(1, abs=0.05)


def test_cross_fitting_takes_off_what_rare_tokens_explain_by_chance():
    """The domain decides, not the token: 8000 kinds, most of which occur a few times, equally likely everywhere."""
    rng = np.random.default_rng(1)
    tokens, kinds, experts = 20_000, 8000, 8
    domain = np.repeat([0, 1], tokens // 2)
    taste = np.array([np.linspace(1, 3, experts), np.linspace(3, 1, experts)])
    first = np.array([rng.choice(experts, p=taste[d] / taste[d].sum()) for d in domain])
    chosen = np.stack([first, (first + rng.integers(1, experts, tokens)) % experts], axis=1)
    choices = Choices(domain, rng.integers(0, kinds, tokens), chosen)
    naive = identity_share(choices, choices, experts).share
    fitted = cross_fitted_identity_share(choices, np.arange(tokens) % 2 == 1, experts).share
    assert naive > 0.1
    assert fitted < 0.02


def test_vocabulary_specialization_by_hand():
    # Token 0 occurs 4 times, 3 of them to expert 0; token 1 twice, once to each; token 2 once and does not count.
    kind = np.array([0, 0, 0, 0, 1, 1, 2])
    chosen = np.array([0, 0, 0, 1, 0, 1, 1])[:, None]
    result = vocabulary_specialization(kind, chosen, 2, minimum=2)
    own = {0: (3 * 3 / 4 + 1 * 1 / 2) / 4, 1: (1 * 1 / 4 + 1 * 1 / 2) / 2}
    assert result.observed == pytest.approx((4 * own[0] + 2 * own[1]) / 6)
    null = {0: 4 / 6 + 2 / 6 * 2 / 6, 1: 2 / 6 + 4 / 6 * 2 / 6}
    assert result.null == pytest.approx((4 * null[0] + 2 * null[1]) / 6)
    assert result.tokens == 6
    assert vocabulary_specialization(kind, chosen, 2, minimum=5) is None


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), experts=st.integers(2, 20), skew=st.floats(0.5, 20))
def test_independent_choices_have_no_excess(seed, experts, skew):
    rng = np.random.default_rng(seed)
    kind = rng.zipf(1.5, 6000)
    kind = kind[kind < 500]
    chosen = rng.choice(experts, len(kind), p=rng.dirichlet(np.full(experts, skew)))
    result = vocabulary_specialization(kind, chosen[:, None], experts)
    assert abs(result.excess) < 0.01


def test_the_unweighted_form_reads_high_where_nothing_is_there():
    """What the weighting and the minimum are for: the mean over tokens, each weighted alike."""
    rng = np.random.default_rng(0)
    kind, chosen = rng.integers(0, 3000, 6000), rng.integers(0, 8, 6000)
    unweighted = []
    for expert in range(8):
        of_token = np.bincount(kind, chosen == expert) / np.maximum(np.bincount(kind), 1)
        unweighted.append(of_token[of_token > 0].mean())
    assert np.mean(unweighted) > 0.4
    frequent = vocabulary_specialization(kind % 30, chosen[:, None], 8)
    assert frequent.observed == pytest.approx(1 / 8, abs=0.02)


def test_a_layer_that_knows_its_tokens():
    kind = np.arange(4000) % 8
    assert vocabulary_specialization(kind, kind[:, None], 8).observed == 1


def spread_tokens(seed, groups=24, length=300, kinds=30):
    rng = np.random.default_rng(seed)
    return rng, np.repeat(np.arange(groups), length), rng.integers(0, kinds, groups * length)


def preferred(kind, group, hit):
    groups = np.arange(group.max() + 1)
    return preferred_tokens(index_tokens(kind, group), hit, (groups[::2], groups[1::2]))


def test_preferred_tokens_are_the_planted_ones():
    rng, group, kind = spread_tokens(0)
    own = rng.uniform(0.05, 0.15, 24)[group]
    hit = rng.random(len(kind)) < np.where(np.isin(kind, [4, 17]), 5 * own, own)
    result = preferred(kind, group, hit)
    assert set(result.kind[:2]) == {4, 17}
    assert (result.low > 1).all()
    assert len(result.kind) <= 3
    assert result.lift[:2] == pytest.approx([5, 5], rel=0.25)
    for i, token in enumerate(result.kind):
        second = (kind == token) & (group % 2 == 1)
        assert result.count[i] == second.sum()
        assert result.chosen[i] == hit[second].sum()
        assert result.share[i] == pytest.approx(result.chosen[i] / result.count[i])
        assert result.expected_share[i] == pytest.approx(result.share[i] / result.lift[i])


def test_a_topic_is_no_preference():
    """Tokens of documents that use the expert throughout, as all their tokens do."""
    rng, group, kind = spread_tokens(1)
    kind = np.where(group < 12, kind % 15, 15 + kind % 15)
    hit = rng.random(len(kind)) < np.where(group < 12, 0.6, 0.1)
    assert np.bincount(kind, hit)[:15].sum() > 5 * np.bincount(kind, hit)[15:].sum()
    assert len(preferred(kind, group, hit).kind) <= 1


def test_the_best_of_many_by_luck_are_not_shown():
    listed = 0
    for seed in range(20):
        rng, group, kind = spread_tokens(seed, kinds=200)
        listed += len(preferred(kind, group, rng.random(len(kind)) < 0.1).kind)
    assert listed <= 10


def test_lift_is_that_of_the_token_as_a_class():
    rng, group, kind = spread_tokens(2)
    hit = rng.random(len(kind)) < np.where(kind == 7, 0.5, 0.1)
    result = preferred(kind, group, hit)
    taken, expected = class_contrasts(index_classes(group, (kind == 7)[None]), hit.astype(int)[:, None], 2)
    taken, expected = (side[0, 1::2, 1].sum() + 0.5 for side in (taken, expected))
    assert result.kind[0] == 7
    assert result.lift[0] == pytest.approx(taken / expected, rel=1e-6)


def test_rare_tokens_and_those_of_few_groups_do_not_count():
    group = np.repeat(np.arange(6), 50)
    kind = np.zeros(300, int)
    kind[group < 2] = np.where(np.arange(100) % 2, 1, 0)
    kind[[150, 200, 250]] = 2
    index = index_tokens(kind, group)
    assert index.kind.tolist() == [0]
    assert index.count.tolist() == [25, 25, 50, 49, 49, 49]
    assert len(preferred(kind, group, kind > 0).kind) == 0


def test_what_one_half_does_not_show_is_not_listed():
    rng, group, kind = spread_tokens(4, kinds=5)
    for half in (0, 1):
        hit = rng.random(len(kind)) < np.where((kind == 2) & (group % 2 == half), 0.5, 0.1)
        assert 2 not in preferred(kind, group, hit).kind


def test_at_most_so_many_tokens_are_listed():
    _, group, kind = spread_tokens(3)
    assert len(preferred(kind, group, kind < 12).kind) == PREFERRED_TOKENS
