"""Design effect and the statuses of rarely used experts."""

import numpy as np
import pytest

from moetool.statistics import documents
from moetool.statistics.layer_tables import expert_rows
from moetool.statistics.registry import layer_row
from moetool.statistics.sample import count_tokens, sample_layers
from tests.statistics.traces import make_trace


def test_independent_tokens_have_a_design_effect_near_1() -> None:
    random = np.random.default_rng(0)
    counts = random.binomial(100, 0.1, size=(500, 40))
    assert documents.design_effect(counts, np.full(500, 100)) == pytest.approx(1, abs=0.2)


def test_repeated_tokens_multiply_it() -> None:
    random = np.random.default_rng(0)
    counts = 20 * random.binomial(5, 0.1, size=(500, 40))
    assert documents.design_effect(counts, np.full(500, 100)) == pytest.approx(20, rel=0.2)


def test_documents_of_different_lengths_are_no_clumps() -> None:
    """The ratio estimator: every document uses the expert for a tenth of its tokens, however long it is."""
    tokens = np.array([10, 100, 1000, 50])
    assert documents.design_effect((tokens // 10)[:, None], tokens) == 1.0


def test_it_is_that_of_clumped_experts_but_not_of_a_single_one() -> None:
    """The 90th percentile of 11 experts is the 10th: even ones have 0, one that a document keeps for itself has 20."""
    even, clumped = [[5], [5]], [[10], [0]]
    for clumps, expected in ((1, 1.0), (2, 20.0)):
        counts = np.hstack([even] * (11 - clumps) + [clumped] * clumps)
        assert documents.design_effect(counts, np.array([10, 10])) == expected


def test_one_group_has_none() -> None:
    assert documents.design_effect(np.array([[5, 0]]), np.array([5])) is None
    assert documents.tokens_needed(None, 8, 2) is None


def test_tokens_needed() -> None:
    assert documents.tokens_needed(2.0, 64, 6) == pytest.approx(3 * 2 * 64 / (0.05 * 6))


def statuses(chosen: list[list[int]], lengths: list[int], **kwargs: list[str]) -> list[object]:
    trace = make_trace([chosen], 4, lengths=lengths, **kwargs)
    return [row["status"] for row in expert_rows(next(sample_layers(trace, count_tokens(trace))))]


def test_one_prompt_never_shows_a_dead_expert() -> None:
    assert statuses([[0], [1], [2]] * 30_000, [90_000]) == ["used", "used", "used", "unobserved"]
    groups = ["same", "same"]
    assert statuses([[0], [1], [2]] * 30_000, [45_000, 45_000], groups=groups)[3] == "unobserved"
    assert statuses([[0], [1], [2]] * 30_000, [45_000, 45_000])[3] == "dead"


def test_dead_only_beyond_the_tokens_needed() -> None:
    """E = 4, K = 1, equal documents: deff 1, so 60 * 4 = 240 tokens."""
    assert statuses([[0], [1], [2]] * 80, [120, 120])[3] == "unobserved"
    assert statuses([[0], [1], [2]] * 82, [123, 123])[3] == "dead"


def test_the_most_experts_that_can_be_cold():
    """By hand: of 4 experts, 1 per token: one takes the tokens but for 3 that have 1/17 each, below 1/16 of all."""
    assert [documents.cold_limit(experts, k) for experts, k in ((4, 1), (4, 4), (64, 8), (2, 1))] == [3, 0, 57, 1]


def test_cold_means_cold_in_every_domain() -> None:
    common, rare = [[0], [1], [2]] * 33 + [[3]], [[0], [1], [2], [3]] * 25
    two = ["a", "a", "b", "b"]
    assert statuses(common * 4, [100] * 4, domains=two)[3] == "cold"
    assert statuses(common * 2 + rare * 2, [100] * 4, domains=two)[3] == "used"


def test_a_domain_of_one_group_shows_nothing_cold() -> None:
    common = [[0], [1], [2]] * 33 + [[3]]
    assert statuses(common * 3, [100] * 3, domains=["a", "a", "b"])[3] == "used"


def test_few_hits_in_few_tokens_are_not_cold() -> None:
    """40 tokens per domain: the rule of three alone allows a utilization of 4 * 3/40 = 0.3."""
    common = [[0], [1], [2]] * 6 + [[0], [1]]
    assert statuses([*common, *common, *common[:-1], [3], *common], [20] * 4, domains=["a", "a", "b", "b"])[3] == "used"


def test_a_clumped_expert_is_not_cold() -> None:
    """All hits in one document of ten: resampling that document finds a utilization above a quarter."""
    document = [[0], [1], [2]] * 33 + [[0]]
    clump = [[0], [1], [2]] * 25 + [[0]] + [[3]] * 24
    spread = [[0], [1], [2]] * 32 + [[0], [3], [3], [3]]
    assert statuses(document * 9 + clump, [100] * 10)[3] == "used"
    assert statuses(spread * 10, [100] * 10)[3] == "cold"


def test_the_same_seed_gives_the_same_row() -> None:
    trace = make_trace([[[0, 1], [1, 2], [3, 0]] * 20], 4, lengths=[30, 30])
    first, second = (layer_row(next(sample_layers(trace, count_tokens(trace)))) for _ in range(2))
    assert first == second
