"""Divergences of domains against their A/A value, and standing committees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import MoetoolError
from moetool.statistics.counts import GroupCounts, LayerCells
from moetool.statistics.divergence import HALVINGS, domain_divergences, standing_committees
from tests.statistics.domains import counts_of, esft_trace, planted_trace


def counts_by_hand(hits, domain, experts_per_token=1, experts=None):
    """Groups with these hits ``[G, C]``; one layer, or several of ``experts`` each."""
    hits = np.asarray(hits, dtype=np.float32)
    experts = experts or hits.shape[1]
    layers = tuple(LayerCells(i, i * experts, experts, experts_per_token) for i in range(hits.shape[1] // experts))
    domain = np.asarray(domain)
    return GroupCounts(
        tuple(f"domain{i}" for i in range(domain.max() + 1)),
        tuple(map(str, range(len(hits)))),
        domain,
        np.ones(len(hits), dtype=np.int64),
        hits[:, :experts].sum(axis=1) / experts_per_token,
        hits,
        layers,
    )


def test_divergence_by_hand():
    """(1, 0, 0) and (1/2, 1/2, 0) have 0 and 1 bits of entropy, their mean has 0.8113; disjoint ones have 1 bit."""
    hits = [[4, 0, 0, 4, 0, 0], [4, 0, 0, 4, 0, 0], [2, 2, 0, 0, 0, 4], [2, 2, 0, 0, 0, 4]]
    found = domain_divergences(counts_by_hand(hits, [0, 0, 1, 1], experts=3), np.random.default_rng(0))
    assert found.pairs == ((0, 1),)
    np.testing.assert_allclose(found.observed_bits, [[0.811278 - 0.5, 1]], atol=1e-5)
    np.testing.assert_allclose(found.between_bits, found.observed_bits, atol=1e-6)
    np.testing.assert_allclose(found.within_bits, 0, atol=1e-6)
    assert found.groups_per_half.tolist() == [1]


def test_halves_are_of_the_smaller_domain():
    """Two groups against six, of which two are drawn: an A/A value of disjoint groups is 1 bit in both domains."""
    hits = np.eye(8)
    found = domain_divergences(counts_by_hand(hits, [0] * 2 + [1] * 6), np.random.default_rng(0))
    assert found.groups_per_half.tolist() == [1]
    np.testing.assert_allclose(found.within_bits, 1)
    np.testing.assert_allclose(found.excess_bits, 0, atol=1e-6)


def test_halves_of_one_group_each_are_equal_or_disjoint():
    """Five of six groups of the second domain never use the first domain's expert: each halving has 0 or 1 bit."""
    hits = np.concatenate([np.eye(6)[[0, 0]], np.eye(6)])
    found = domain_divergences(counts_by_hand(hits, [0] * 2 + [1] * 6), np.random.default_rng(0))
    unequal = found.between_bits * 2 * HALVINGS
    np.testing.assert_allclose(unequal, np.round(unequal), atol=1e-4)
    assert 0.5 < found.between_bits[0, 0] < 1
    np.testing.assert_allclose(found.within_bits, (0 + 1) / 2, atol=1e-6)


def test_a_domain_of_one_group_has_no_value_of_its_own():
    found = domain_divergences(counts_by_hand(np.eye(5), [0, 1, 1, 2, 2]), np.random.default_rng(0))
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    assert np.isnan(found.within_bits[:2]).all()
    assert np.isnan(found.excess_bits[:2]).all()
    np.testing.assert_allclose(found.observed_bits, 1)
    assert np.isfinite(found.excess_bits[2]).all()


@pytest.mark.parametrize("sizes", [(24, 24), (8, 24)])
def test_the_excess_is_nothing_where_domains_route_alike(sizes):
    """Few, unlike groups: the divergence itself is large, and larger in whole domains of fewer groups."""
    excess, observed = [], []
    for seed in range(40):
        counts = counts_of(planted_trace(seed, domains=2, documents=24, tokens=40))
        chosen = np.concatenate([np.flatnonzero(counts.domain == i)[:size] for i, size in enumerate(sizes)])
        found = domain_divergences(counts.select(chosen), np.random.default_rng(seed))
        excess.append(found.excess_bits.mean())
        observed.append(found.observed_bits.mean())
    error = np.std(excess) / np.sqrt(len(excess))
    assert abs(np.mean(excess)) < 3 * error
    assert np.mean(observed) > 10 * error


def test_a_planted_difference_exceeds_the_value_within_domains():
    lifts = {(1, expert, 0): 1.9 for expert in range(4)}
    counts = counts_of(planted_trace(0, domains=2, lifts=lifts))
    found = domain_divergences(counts, np.random.default_rng(0))
    plain, planted = found.excess_bits[0, [0, 2]], found.excess_bits[0, 1]
    assert planted > 5 * np.abs(plain).max()
    assert found.within_bits[0, 1] < 0.5 * found.between_bits[0, 1]


def test_published_tasks_lie_far_apart():
    found = domain_divergences(counts_of(esft_trace()), np.random.default_rng(0))
    assert (found.between_bits > 4 * found.within_bits).all()


@given(st.integers(0, 1000))
def test_divergences_are_bounded_and_do_not_depend_on_the_order_of_groups(seed):
    rng = np.random.default_rng(seed)
    counts = counts_by_hand(rng.integers(1, 9, (7, 5)), [0, 0, 0, 1, 1, 1, 2])
    found = domain_divergences(counts, rng)
    assert ((found.observed_bits > -1e-6) & (found.observed_bits < 1)).all()
    shuffled = domain_divergences(counts.select(rng.permutation(7)), rng)
    np.testing.assert_allclose(shuffled.observed_bits, found.observed_bits, atol=1e-5)


def test_committee_by_hand():
    """Expert 0 is in the top 2 of both domains (4/8 and 3/8 of the slots); 1 and 3 in that of one."""
    found = standing_committees(counts_by_hand([[4, 3, 1, 0], [3, 0, 1, 4]], [0, 1], experts_per_token=2))
    assert found.size.tolist() == [2]
    assert found.experts[0].tolist() == [0]
    np.testing.assert_allclose(found.coverage, (4 / 8 + 3 / 8) / 2)
    np.testing.assert_allclose(found.expected_experts, 4 * (2 / 4) ** 2)


def test_committee_of_a_given_size_leaves_unused_experts_out():
    counts = counts_by_hand([[4, 3, 1, 0], [3, 1, 4, 0]], [0, 1], experts_per_token=2)
    found = standing_committees(counts, 4)
    assert found.experts[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.coverage, 1)
    for size in (0, 5):
        with pytest.raises(MoetoolError, match=f"top {size} experts"):
            standing_committees(counts, size)


def test_the_expected_committee_is_that_of_random_rankings():
    """E = 8, m = 3, D = 3: 8 (3/8)^3 = 0.42 experts on average over many layers."""
    rng = np.random.default_rng(0)
    layers = 4000
    hits = np.concatenate([rng.permuted(np.tile(np.arange(8), (3, 1)), axis=1) for _ in range(layers)], axis=1)
    found = standing_committees(counts_by_hand(hits + 1, [0, 1, 2], experts=8), 3)
    sizes = [len(experts) for experts in found.experts]
    np.testing.assert_allclose(found.expected_experts, 27 / 64)
    assert abs(np.mean(sizes) - 27 / 64) < 3 * np.std(sizes) / np.sqrt(layers)
