"""Mutual information of expert and domain, its null and its excess."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.statistics.information import domain_information, mutual_information
from tests.statistics.domains import counts_of, planted_trace, trace_of


def test_information_by_hand():
    # Domain a: expert 0 always; b: experts 0 and 1 alike. Mean (3/4, 1/4): H = 0.8113 bits, minus (0 + 1) / 2.
    chosen = np.array([[0]] * 4 + [[0], [1]] * 2)
    counts = counts_of(trace_of([("a", "a", 4), ("b", "b", 4)], [chosen], 2))
    assert mutual_information(counts, counts.members()[:, None, :])[0] == pytest.approx([0.8112781 - 0.5], abs=1e-6)


def test_domains_that_share_no_expert_tell_everything():
    chosen = np.repeat([[0, 1], [2, 3], [4, 5], [6, 7]], 5, axis=0)
    counts = counts_of(trace_of([(name, name, 5) for name in "abcd"], [chosen, chosen * 0 + [0, 1]], 8))
    assert mutual_information(counts, counts.members()[:, None, :])[0] == pytest.approx([2, 0], abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(4)), st.permutations(range(16)))
def test_names_of_domains_and_experts_do_not_matter(domains, experts):
    counts = counts_of(planted_trace(2, documents=3, layers=1, lifts={(0, 3, 1): 2.5}))
    expected = mutual_information(counts, counts.members()[:, None, :])
    renamed = counts.relabel(counts.domains, np.array(domains)[counts.domain])
    renamed.hits[:] = renamed.hits[:, experts]
    result = mutual_information(renamed, renamed.members()[:, None, :])
    assert result == pytest.approx(expected, abs=1e-6)
    assert 0 <= result[0, 0] <= 2


def test_excess_is_zero_and_p_uniform_where_only_documents_differ():
    excess, p_values = [], []
    for seed in range(40):
        counts = counts_of(planted_trace(seed, layers=2, concentration=20, tokens=100))
        result = domain_information(counts, 200, np.random.default_rng(seed))
        assert (result.observed_bits > 0).all()
        excess.append(result.excess_bits)
        p_values.append(result.p_value)
    assert abs(np.mean(excess)) < 4 * np.std(excess) / np.sqrt(np.size(excess))
    assert np.mean(np.array(p_values) < 0.05) <= 0.15
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.2)


def test_groups_that_say_all_the_same_reach_every_permutation():
    chosen = np.tile([[0], [1]], (16, 1))
    counts = counts_of(trace_of([(name, f"{name}{i}", 2) for name in "ab" for i in range(8)], [chosen], 2))
    result = domain_information(counts, 100, np.random.default_rng(0))
    assert result.p_value == pytest.approx([1])
    assert result.excess_bits == pytest.approx([0], abs=1e-6)
