"""Tests of preference: worked examples, calibration under no effect, and how p values are adjusted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.statistics.significance import (
    benjamini_hochberg,
    permuted_members,
    preference_tests,
    ratio_estimates,
    ratio_sample,
    studentised,
)
from moetool.statistics.specialization import find_specialists
from tests.statistics.domains import counts_of, esft_trace, planted_trace, trace_of

ALWAYS = np.stack([np.zeros(320, int), np.random.default_rng(1).integers(1, 4, 320)], axis=1)
"""Expert 0 with every token, beside one of three others."""

CORPORA = 40
UNLIKELY = 6
"""More than this many of 40 corpora with a false finding has a probability below 2 % if each has one with 5 %."""


def test_benjamini_hochberg_by_hand():
    # The 15 p values of Benjamini and Hochberg 1995, section 4.1: at 5 % the first four are rejected.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    q = benjamini_hochberg(np.array(p))
    assert (q < 0.05).sum() == 4
    assert q[:4] == pytest.approx([0.0015, 0.003, 0.0095, 0.035625])
    # 0.0201 x 15 / 5 and 0.0278 x 15 / 6 are larger than what later ones give: 0.0344 x 15 / 8 = 0.0645.
    assert q[4] == pytest.approx(0.0201 * 3)
    assert q[5] == pytest.approx(0.0298 * 15 / 7)
    assert q[14] == 1


def test_benjamini_hochberg_keeps_order_shape_and_gaps():
    q = benjamini_hochberg(np.array([[0.04, np.nan], [0.01, 0.5]]))
    assert q[0, 0] == pytest.approx(0.06)
    assert q[1, 0] == pytest.approx(0.03)
    assert q[1, 1] == pytest.approx(0.5)
    assert np.isnan(q[0, 1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values_are_at_least_p_and_in_the_same_order(p):
    values = np.array(p)
    q = benjamini_hochberg(values)
    assert (q >= values - 1e-15).all()
    assert (q <= 1).all()
    order = np.argsort(values)
    assert (np.diff(q[order]) >= -1e-15).all()


def test_ratio_estimate_and_its_variance_by_hand():
    # Three groups of 10, 20 and 30 tokens with 2, 6 and 4 hits: q = 12/60; residuals 0, 2 and -2, squares add up to 8.
    sample = ratio_sample(np.array([10, 20, 30.0]), np.array([[2], [6], [4.0]]))
    share, variance = ratio_estimates(sample, np.ones((1, 3), dtype=np.float32))
    assert share[0, 0] == pytest.approx(0.2)
    independent = 0.2 * 0.8 / 60
    assert independent < 3 / 2 * 8 / 60**2
    assert variance[0, 0] == pytest.approx(3 / 2 * 8 / 60**2)
    share, variance = ratio_estimates(sample, np.array([[0, 1, 1]], dtype=np.float32))
    assert share[0, 0] == pytest.approx(10 / 50)
    assert variance[0, 0] == pytest.approx(2 * 8 / 50**2)


def test_variance_is_never_below_that_of_independent_tokens():
    sample = ratio_sample(np.array([10, 10.0]), np.array([[2], [2.0]]))
    _, variance = ratio_estimates(sample, np.ones((1, 2), dtype=np.float32))
    assert variance[0, 0] == pytest.approx(0.2 * 0.8 / 20)
    assert ratio_estimates(sample, np.ones((1, 2), dtype=np.float32), 0.1)[1][0, 0] == pytest.approx(0.0008)


def test_two_domains_have_opposite_statistics():
    counts = counts_of(planted_trace(3, domains=2, documents=8, layers=1))
    sample = ratio_sample(counts.tokens, counts.hits)
    first, second = studentised(sample, counts.members()[:, None, :])[:, 0]
    assert first == pytest.approx(-second, abs=1e-5)


def test_permutations_keep_the_sizes_of_the_domains():
    domain = np.array([0, 0, 0, 1, 1, 2])
    chunks = list(permuted_members(domain, 3, 5, 2, np.random.default_rng(0)))
    assert [chunk.shape for chunk in chunks] == [(3, 2, 6), (3, 2, 6), (3, 1, 6)]
    for chunk in chunks:
        assert (chunk.sum(axis=0) == 1).all()
        assert (chunk.sum(axis=2) == np.array([[3], [2], [1]])).all()


def test_rare_experts_are_not_tested():
    counts = counts_of(planted_trace(0, domains=2, documents=8, layers=1, tokens=100))
    counts.hits[:, 3] = 0
    counts.hits[0, 3] = 4
    tests = preference_tests(counts, 200, np.random.default_rng(0))
    assert np.isnan(tests.p_value[:, 3]).all()
    assert np.isnan(tests.q_value[:, 3]).all()
    assert not np.isnan(np.delete(tests.p_value, 3, axis=1)).any()


def test_experts_that_every_token_chooses_are_not_tested():
    counts = counts_of(trace_of([(name, f"{i}", 20) for name in "ab" for i in range(8)], [ALWAYS], experts=4))
    tests = preference_tests(counts, 200, np.random.default_rng(0))
    assert np.isnan(tests.p_value).all(axis=0).tolist() == [True, False, False, False]
    assert not len(find_specialists(counts, 200, 100, np.random.default_rng(0)).cell)


def test_nothing_is_tested_where_every_expert_is_rare():
    counts = counts_of(planted_trace(0, domains=2, documents=8, layers=1))
    counts.hits[:] = np.eye(16)
    assert np.isnan(preference_tests(counts, 200, np.random.default_rng(0)).q_value).all()


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(16)))
def test_p_values_follow_their_experts(order):
    counts = counts_of(planted_trace(1, domains=3, documents=8, layers=1))
    plain = preference_tests(counts, 200, np.random.default_rng(0)).p_value
    counts.hits[:] = counts.hits[:, order]
    assert preference_tests(counts, 200, np.random.default_rng(0)).p_value == pytest.approx(plain[:, order], rel=0.02)


def test_documents_alone_are_no_finding():
    """No domain effect, but tokens of one document much alike: p values uniform, families of tests right."""
    discovered = confirmed = 0
    p_values = []
    for seed in range(CORPORA):
        counts = counts_of(planted_trace(seed, domains=4, documents=24, layers=2, concentration=20))
        found = find_specialists(counts, 1000, 200, np.random.default_rng(seed))
        discovered += found.candidates > 0
        confirmed += len(found.cell) > 0
        p_values.append(found.tests.p_value)
    assert discovered <= UNLIKELY
    assert confirmed <= 1
    _assert_uniform(np.array(p_values))


@pytest.mark.parametrize("task", ["law", "intent"])
def test_random_splits_of_one_published_task_show_nothing(task):
    counts = counts_of(esft_trace((task, *({"law", "intent"} - {task}))))
    one_task = counts.select(np.flatnonzero(counts.domain == 0))
    discovered = confirmed = 0
    p_values = []
    for seed in range(CORPORA):
        rng = np.random.default_rng(seed)
        pretended = one_task.relabel(("first", "second"), rng.permutation(np.arange(len(one_task.tokens)) % 2))
        found = find_specialists(pretended, 500, 200, rng)
        discovered += found.candidates > 0
        confirmed += len(found.cell) > 0
        p_values.append(found.tests.p_value)
    assert discovered <= UNLIKELY
    assert confirmed <= 1
    _assert_uniform(np.array(p_values))


def _assert_uniform(p_values):
    """Within what 40 corpora of dependent tests can differ by."""
    tested = p_values[~np.isnan(p_values)]
    for level, tolerance in ((0.01, 0.005), (0.05, 0.015), (0.5, 0.05), (0.9, 0.05)):
        assert (tested < level).mean() == pytest.approx(level, abs=tolerance)
