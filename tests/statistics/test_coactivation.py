"""The null of co-activation: loads and K are kept, and it is the mean of random choices at these loads."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moetool.statistics import coactivation

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def maximum_entropy_pairs(weight: Floats, k: int, tokens: int) -> tuple[Counts, Floats]:
    """Expected counts and pairs if a token draws K of E with probability proportional to the product of weights."""
    sets = np.array([[e in chosen for e in range(len(weight))] for chosen in combinations(range(len(weight)), k)])
    probability = np.prod(np.where(sets, weight, 1), axis=1)
    probability /= probability.sum()
    pairs = sets.T.astype(float) @ (probability[:, None] * sets)
    return np.round(tokens * np.diag(pairs)).astype(np.int64), tokens * (pairs - np.diag(np.diag(pairs)))


def test_equal_loads_have_the_closed_form() -> None:
    """E = 6, K = 3, T = 100: N = 50 each; N_ij = T K(K-1) / (E(E-1)) = 20."""
    expected = coactivation.expected_pairs(np.full(6, 50), 3)
    assert expected == pytest.approx(20 * (1 - np.eye(6)))


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_the_null_keeps_loads_and_k(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    preference = random.normal(size=12)
    chosen = np.argsort(random.gumbel(size=(200, 12)) + preference, axis=1)[:, -k:]
    counts = np.bincount(chosen.ravel(), minlength=12)
    expected = coactivation.expected_pairs(counts, k)
    assert expected.sum(axis=1) == pytest.approx((k - 1) * counts, rel=1e-3)
    assert (np.diag(expected) == 0).all()


@pytest.mark.parametrize(("k", "spread", "tolerance"), [(2, 1.0, 1e-4), (3, 0.5, 0.01), (4, 1.0, 0.03)])
def test_the_null_is_that_of_maximum_entropy(k: int, spread: float, tolerance: float) -> None:
    """Exact for K = 2, close beyond; independence (lift 1) would be wrong by 0.3 and more."""
    weight = np.exp(np.random.default_rng(0).normal(0, spread, 10))
    counts, pairs = maximum_entropy_pairs(weight, k, 10**7)
    product = np.outer(counts, counts) / 10**7
    lift, null = pairs / product, coactivation.expected_pairs(counts, k) / product
    assert np.abs(lift - null).max() < tolerance
    assert np.abs(lift - 1)[~np.eye(10, dtype=bool)].max() > 0.25


def test_an_unused_expert_and_k_1_have_no_pairs() -> None:
    expected = coactivation.expected_pairs(np.array([10, 10, 0]), 2)
    assert expected == pytest.approx(np.array([[0, 10, 0], [10, 0, 0], [0, 0, 0]]))
    assert not coactivation.expected_pairs(np.array([10, 10]), 1).any()


def test_all_pairs_count_and_not_only_neighbours_in_rank() -> None:
    pairs = coactivation.pair_counts(np.array([[2, 0, 1]], np.uint8), 3)
    assert pairs.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_experts_with_few_tokens_are_in_no_pair() -> None:
    """19 tokens of {0, 1} are too few, 20 are enough."""
    for tokens, expected in ((19, None), (20, 1.0)):
        chosen = np.tile([0, 1], (tokens, 1))
        pairs, counts = coactivation.pair_counts(chosen, 3), np.array([tokens, tokens, 0])
        assert coactivation.coactivation_max(pairs, counts) == expected


def test_a_popular_partner_is_no_affinity() -> None:
    """Expert 0 is in every token: C_i0 = 1 for everyone, and so says the null; no pair is surprising."""
    chosen = np.array([[0, 1], [0, 2], [0, 3]] * 100)
    counts, pairs = np.array([300, 100, 100, 100]), coactivation.pair_counts(chosen, 4)
    expected = coactivation.expected_pairs(counts, 2)
    assert coactivation.coactivation_max(pairs, counts) == 1.0
    assert coactivation.coactivation_max_matched(pairs, expected, counts) == pytest.approx(1, rel=1e-2)
    rows = coactivation.strongest_pairs(pairs, expected, counts, 300, 10)
    assert all(abs(deviate) < 0.1 for deviate in rows["deviate"])
