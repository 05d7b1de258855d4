"""Budget, templates, counts, lifts and the split of the groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from moetool.statistics.budget import sample_tokens, thin, token_quotas
from moetool.statistics.counts import count_groups, lifts, token_shares
from moetool.statistics.independence import neighbour_p_values
from moetool.statistics.specialization import analyse, split_groups
from moetool.statistics.templates import find_templates
from tests.statistics.domains import counts_of, esft_trace, planted_trace, trace_of


def test_counts_by_hand():
    chosen = np.array([[0, 1], [2, 1], [0, 2], [3, 2], [3, 0]])
    trace = trace_of([("a", "x", 2), ("a", "y", 1), ("b", "x", 2)], [chosen, chosen[:, ::-1]], 4)
    counts = count_groups(trace, np.array([True, True, True, True, False]), SilentProgress())
    assert counts.hits.tolist() == [[1, 2, 1, 0] * 2, [1, 0, 1, 0] * 2, [0, 0, 1, 1] * 2]
    assert counts.tokens.tolist() == [2, 1, 1]
    assert counts.domain.tolist() == [0, 0, 1]
    assert counts.names == ("x", "y", "x")
    assert counts.documents.tolist() == [1, 1, 1]
    assert counts.starts.tolist() == [0, 4]


def test_documents_of_one_group_are_one_unit():
    chosen = np.array([[0], [1], [1]])
    trace = trace_of([("a", "book", 1), ("a", "other", 1), ("a", "book", 1)], [chosen], 2)
    counts = count_groups(trace, np.ones(3, dtype=bool), SilentProgress())
    assert counts.hits.tolist() == [[1, 1], [0, 1]]
    assert counts.documents.tolist() == [2, 1]


def test_lift_by_hand():
    # Expert 0 runs for 6 of 10 tokens of a, 2 of 10 of b and 1 of 10 of c: mean 0.3, lifts 2, 2/3, 1/3.
    chosen = np.ones((30, 1), dtype=int)
    chosen[[0, 1, 2, 3, 4, 5, 10, 11, 20]] = 0
    counts = counts_of(trace_of([("a", "a", 10), ("b", "b", 10), ("c", "c", 10)], [chosen], 3))
    shares = token_shares(counts, counts.members())
    assert shares[:, 0] == pytest.approx([0.6, 0.2, 0.1])
    assert lifts(shares)[:, 0] == pytest.approx([2, 2 / 3, 1 / 3])
    assert np.isnan(lifts(shares)[:, 2]).all()


@given(st.permutations(range(4)))
def test_lifts_follow_their_domains(order):
    counts = counts_of(planted_trace(2, documents=3, layers=1, lifts={(0, 3, 1): 2.5}))
    renamed = counts.relabel(counts.domains, np.array(order)[counts.domain])
    expected = lifts(token_shares(counts, counts.members()))
    assert lifts(token_shares(renamed, renamed.members()))[list(order)] == pytest.approx(expected)


def test_budget_by_hand():
    # Domain 0 has 10 + 20 + 30; domain 1 is capped at 4 x median 5 = 20 for its long group and has 30 in all.
    tokens, domain = np.array([10, 20, 30, 5, 5, 100]), np.array([0, 0, 0, 1, 1, 1])
    quota, budget = token_quotas(tokens, domain, np.random.default_rng(0))
    assert budget == 30
    assert quota.tolist() == [10, 10, 10, 5, 5, 20]


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.lists(st.integers(1, 50), min_size=2, max_size=12))
def test_every_domain_gets_the_same_budget(first, second):
    tokens, domain = np.array(first + second), np.repeat([0, 1], [len(first), len(second)])
    quota, budget = token_quotas(tokens, domain, np.random.default_rng(1))
    assert quota[domain == 0].sum() == quota[domain == 1].sum() == budget
    assert ((quota >= 0) & (quota <= tokens)).all()
    for index in (0, 1):
        assert quota[domain == index].max() <= max(4 * np.median(tokens[domain == index]), 1)


def test_thinning_keeps_the_quota_of_each_group():
    keep = np.array([True, False, True, True, True, True, False, True])
    group = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    kept = thin(keep, group, np.array([2, 1]), np.random.default_rng(0))
    assert not kept[~keep].any()
    assert np.bincount(group[kept]).tolist() == [2, 1]


def test_the_sample_depends_on_the_seed_only():
    trace = planted_trace(0, documents=3)
    assert (sample_tokens(trace, 1).keep == sample_tokens(trace, 1).keep).all()
    assert (sample_tokens(trace, 1).keep != sample_tokens(trace, 2).keep).any()


def test_a_shared_prefix_is_masked_after_special_tokens():
    # Domain a: special 1, template 7 8, text; the last document leaves the template after 7. Domain b: nothing shared.
    documents = [[1, 7, 8, 20 + i, 30] for i in range(19)] + [[1, 7, 9, 40, 41]]
    documents += [[1, 50 + i, 7, 8, 9] for i in range(20)]
    tokens = np.array(documents)
    names = [("a", str(i), 5) for i in range(20)] + [("b", str(i), 5) for i in range(20)]
    trace = trace_of(names, [np.zeros((200, 1), dtype=int)], 2, tokens.ravel())
    trace = replace(trace, special=(tokens == 1).ravel())
    templates, masked = find_templates(trace)
    assert [(item.domain, item.length, item.documents, item.from_routing) for item in templates] == [
        ("a", 2, 19, False)
    ]
    rows = masked.reshape(40, 5)
    assert (rows[:19] == [False, True, True, False, False]).all()
    assert rows[19].tolist() == [False, True, False, False, False]
    assert not rows[20:].any()


def test_without_token_ids_a_template_shows_in_the_routing():
    trace = planted_trace(0, domains=2, documents=8, layers=3, unequal=False, tokens=20)
    for layer in trace.layers:
        layer.chosen.reshape(2, 8, 20, -1)[0, :, :3] = layer.chosen[:3]
    templates, masked = find_templates(trace)
    assert [(item.domain, item.length, item.documents, item.from_routing) for item in templates] == [
        ("domain0", 3, 8, True)
    ]
    assert masked.reshape(2, 8, 20)[0, :, :3].all()
    assert masked.sum() == 24


def test_a_router_that_never_chooses_otherwise_is_no_template():
    names = [("a", str(i), 5) for i in range(8)] + [("b", str(i), 5) for i in range(8)]
    templates, masked = find_templates(trace_of(names, [np.zeros((80, 1), dtype=int)], 2))
    assert templates == ()
    assert not masked.any()


def test_the_templates_of_the_published_traces_are_seen():
    templates, _ = find_templates(esft_trace())
    assert [(item.domain, item.length, item.documents) for item in templates] == [("law", 11, 33), ("intent", 17, 127)]


def test_halves_share_no_group_and_halve_every_domain():
    domain = np.repeat([0, 1, 2], [9, 8, 11])
    first, second = split_groups(domain, 3, np.random.default_rng(0))
    assert sorted([*first, *second]) == list(range(28))
    assert np.bincount(domain[first]).tolist() == [5, 4, 5]  # odd groups by turns


def test_one_domain_is_an_error_with_a_hint():
    with pytest.raises(MoetoolError, match="all 3 documents are of the domain 'domain0'") as error:
        analyse(planted_trace(0, domains=1, documents=3), 0, 200, 200, SilentProgress())
    assert "--text" in str(error.value.hint)


def test_a_domain_without_tokens_is_an_error():
    trace = planted_trace(0, domains=2, documents=2)
    special = trace.special.copy()
    special[trace.documents[2].start :] = True
    with pytest.raises(MoetoolError, match="'domain1' has no tokens"):
        analyse(replace(trace, special=special), 0, 200, 200, SilentProgress())


def test_too_few_permutations_are_refused():
    with pytest.raises(MoetoolError, match="permutations is 10"):
        analyse(planted_trace(0, documents=8), 0, 10, 200, SilentProgress())


def test_fewer_than_eight_groups_in_a_domain_are_not_tested():
    result = analyse(planted_trace(0, documents=7), 0, 200, 200, SilentProgress())
    assert (result.specialists, result.layers, result.control) == (None, None, None)
    assert result.classification is not None
    assert analyse(planted_trace(0, documents=8), 0, 200, 200, SilentProgress()).specialists is not None


def test_the_same_seed_gives_the_same_specialists():
    trace = planted_trace(0, documents=10, lifts={(0, 3, 1): 3.0, (1, 4, 0): 3.0})
    first, second = (analyse(trace, 5, 200, 200, SilentProgress()).specialists for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.low.tolist() == second.low.tolist()
    assert first.cell.tolist() == second.cell.tolist()


def test_excerpts_of_one_work_are_noticed():
    """Four works in a row, six excerpts of each; the other domain's documents are independent."""
    trace = planted_trace(0, domains=2, documents=24, layers=2)
    counts = counts_of(trace)
    taste = np.random.default_rng(0).dirichlet(np.full(16, 3.0), size=4)
    for group in range(24):
        counts.hits[group, :16] = np.random.default_rng(group).poisson(400 * taste[group // 6])
    p_value = neighbour_p_values(counts, np.random.default_rng(0))
    assert p_value[0] <= 0.002
    assert p_value[1] > 0.005
    assert np.isnan(neighbour_p_values(counts_of(planted_trace(0, documents=7)), np.random.default_rng(0))).all()


def test_intervals_hold_their_estimate_at_the_largest_lift():
    """An expert that only one of two domains uses has a lift near 2, the most there is."""
    result = analyse(planted_trace(3, domains=2, documents=20, lifts={(0, 0, 1): 2.0}), 0, 300, 200, SilentProgress())
    found = result.specialists
    assert found is not None
    assert found.lift.max() == pytest.approx(2)
    assert ((found.low <= found.lift) & (found.lift <= found.high)).all()
