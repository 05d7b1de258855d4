"""Scores and selections of ESFT: by hand, and those that its authors published."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import MoetoolError
from moetool.statistics.selection import expert_scores, highest, select_experts
from tests.statistics.domains import ESFT, esft_trace
from tests.statistics.traces import make_trace

PUBLISHED_TOKEN_SCORES = {
    ("law", 1): [0.0103, 0.021, 0.0143, 0.0121, 0.0167, 0.0153, 0.0141, 0.0272, 0.0167, 0.0202, 0.0186, 0.0128],
    ("law", 24): [0.1073, 0.0136, 0.0061, 0.0176, 0.0126, 0.0178, 0.0083, 0.0017, 0.0106, 0.0139, 0.0162, 0.0102],
    ("intent", 1): [0.0101, 0.0119, 0.0177, 0.008, 0.0082, 0.0131, 0.0423, 0.024, 0.0653, 0.0102, 0.0118, 0.0119],
    ("intent", 24): [0.0041, 0.0215, 0.019, 0.0134, 0.0082, 0.0164, 0.0032, 0.0214, 0.0138, 0.0015, 0.0121, 0.0151],
}
PUBLISHED_GATE_SCORES = {
    ("law", 1): [0.0043, 0.0065, 0.0057, 0.0031, 0.0046, 0.0056, 0.0027, 0.0134, 0.0044, 0.0067, 0.0081, 0.0046],
    ("law", 24): [0.0499, 0.0041, 0.0016, 0.008, 0.0039, 0.0037, 0.0018, 0.0004, 0.0021, 0.0032, 0.0035, 0.0025],
    ("intent", 9): [0.0139, 0.0042, 0.0001, 0.0001, 0.0044, 0.0038, 0.002, 0.0051, 0.005, 0.0072, 0.0059, 0.0094],
    ("intent", 26): [0.0009, 0.0015, 0.0015, 0.002, 0.0007, 0.0011, 0.0003, 0.003, 0.0028, 0.0185, 0.0211, 0.0063],
}
"""Of the first twelve experts, by task and layer: results/expert_scores of deepseek-ai/ESFT, 579a771."""
PUBLISHED_CONFIGS = {
    "law": [
        [12, 40, 7, 13, 37, 16, 1, 17, 9], [35, 58, 21, 16, 59, 22, 20, 31, 9], [27, 34, 42, 29, 38, 13, 1, 22],
        [10, 37, 58, 45, 43, 40, 6], [19, 16, 25, 40, 5, 42, 33], [62, 21, 24, 15, 51, 4], [60, 59, 23, 5, 63, 22],
        [61, 37, 7, 32, 16], [6, 56, 30, 59, 57, 50], [5, 57, 21, 14, 47, 15], [44, 60, 14, 31, 61, 23],
        [19, 14, 54, 46, 28, 12], [25, 51, 56, 8, 34], [50, 56, 25, 41, 52, 49], [3, 29, 30, 58],
        [34, 52, 14, 5, 54, 21], [14, 25, 3, 5, 0, 62], [52, 24, 31, 22, 11, 18], [54, 50, 51], [8, 42, 26, 6, 3],
        [0, 5, 13, 46, 11, 30], [46, 37, 47, 55, 39, 15], [19, 2, 54, 35, 56], [0, 29, 56], [4, 14, 11, 25, 60],
        [37, 22, 55, 49, 3, 20],
    ],
    "intent": [
        [8, 26, 55, 6, 20], [57, 19, 47, 60, 35, 42], [9, 13, 42, 15, 20, 22], [59, 29, 13, 26, 48, 41],
        [10, 41, 35, 56, 42], [6, 35, 14, 33, 29], [44, 8, 47, 50], [6, 8, 17, 11], [46, 53, 26, 61],
        [33, 45, 59, 50, 41], [28, 54, 16, 63, 58], [41, 44, 61, 57, 28], [6, 37, 29, 63], [59, 43, 5, 11],
        [0, 6, 15, 9, 16], [20, 10, 24, 15], [25, 61, 57, 36, 2], [18, 6, 21, 0], [32, 12, 14, 47, 1],
        [15, 4, 16, 25, 5], [48, 25, 0, 54, 41], [8, 61, 50, 2], [46, 57, 25, 38, 23], [36, 24, 28, 51],
        [10, 44, 6, 54, 18], [26, 48, 56, 36, 62],
    ],
}  # fmt: skip
"""Experts of layers 1 to 26 in the order of results/expert_configs of the same: token score, threshold 0.2."""


@pytest.fixture(scope="module")
def published():
    trace = esft_trace()
    data = np.load(ESFT)
    weights = np.concatenate([data[f"{task}_weights"] for task in ("law", "intent")])
    layers = tuple(replace(layer, weight=weights[:, i]) for i, layer in enumerate(trace.layers))
    return replace(trace, layers=layers)


@pytest.mark.parametrize("task", ["law", "intent"])
def test_published_selections_come_out(published, task):
    """Exactly: by unrounded scores layer 21 of law and layer 17 of intent would come out otherwise."""
    expected = {layer: tuple(experts) for layer, experts in enumerate(PUBLISHED_CONFIGS[task], 1)}
    assert select_experts(published, task, "token", 0.2) == expected


@pytest.mark.parametrize(
    ("score", "expected"), [("token", PUBLISHED_TOKEN_SCORES), ("gate", PUBLISHED_GATE_SCORES)], ids=["token", "gate"]
)
def test_published_scores_come_out(published, score, expected):
    for (task, layer), scores in expected.items():
        found = expert_scores(published, task, score)[layer - 1]
        np.testing.assert_allclose(found[: len(scores)], scores, rtol=0, atol=1e-12)


def two_tasks(**changes):
    """Four tokens of ``a``, the last of them special, then one of ``b``; K = 2."""
    chosen = [[0, 1], [0, 2], [2, 0], [3, 1], [3, 2]]
    weight = [[0.6, 0.2], [0.3, 0.3], [0.1, 0.4], [0.9, 0.1], [0.5, 0.5]]
    trace = make_trace([chosen], 4, lengths=[4, 1], domains=["a", "b"], special=[3], weight=[weight])
    return replace(trace, layers=(replace(trace.layers[0], **changes),))


def test_scores_by_hand():
    """Three counted tokens of ``a``: 3, 1 and 2 of 6 slots; weights 1.3, 0.2 and 0.4 over three tokens."""
    np.testing.assert_array_equal(expert_scores(two_tasks(), "a", "token")[0], [0.5, 0.1667, 0.3333, 0])
    np.testing.assert_array_equal(expert_scores(two_tasks(), "a", "gate")[0], [0.4333, 0.0667, 0.1333, 0])


@pytest.mark.parametrize(
    ("score", "top_p", "expected"),
    [
        ("token", 0.5, (0,)),
        ("token", 0.51, (0, 2)),
        ("token", 1.0, (0, 2, 1)),
        ("gate", 0.4333, (0,)),
        ("gate", 0.6, (0, 2, 1)),
        ("gate", 1.0, (0, 2, 1)),  # the weights of a token add up to less
    ],
)
def test_selections_by_hand(score, top_p, expected):
    """An expert that no token chose is never taken, not even where rounding keeps the sum below 1."""
    assert select_experts(two_tasks(), "a", score, top_p) == {0: expected}


def test_experts_that_compute_nothing_are_left_out():
    assert select_experts(two_tasks(zero_experts=2), "a", "token", 1.0) == {0: (0, 1)}


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.floats(0.01, 1))
def test_as_few_of_the_highest_as_reach_the_threshold(slots, top_p):
    scores = np.array(slots) / 1000
    found = list(highest(scores, top_p))
    rest = [expert for expert in range(len(scores)) if expert not in found]
    assert all((scores[one], -one) > (scores[other], -other) for one in found for other in rest)
    assert sorted(found, key=lambda expert: (-scores[expert], expert)) == found
    assert scores[found[:-1]].sum() < top_p + 1e-9
    assert scores[found].sum() >= top_p - 1e-9 or not scores[rest].any()


@pytest.mark.parametrize("top_p", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_thresholds_out_of_range_are_refused(top_p):
    with pytest.raises(MoetoolError, match="the threshold of the scores is"):
        select_experts(two_tasks(), "a", "token", top_p)


@pytest.mark.parametrize(
    ("trace", "domain", "score", "message", "hint"),
    [
        (two_tasks(), "law", "token", "no domain 'law'", "'a', 'b'"),
        (two_tasks(), "a", "frequency", "no score 'frequency'", "token, gate"),
        (two_tasks(weight=None), "a", "gate", "no weights in layer 0", "token score"),
        (replace(two_tasks(), special=np.arange(5) == 4), "b", "token", "'b' has no tokens", "longer"),
    ],
)
def test_bad_input_is_named(trace, domain, score, message, hint):
    with pytest.raises(MoetoolError, match=message) as error:
        select_experts(trace, domain, score, 0.2)
    assert hint in error.value.hint


def test_weights_that_are_not_finite_count_as_nothing():
    weight = np.array([[np.inf, 0.2], [0.3, np.nan], [0.1, 0.4], [1, 1], [1, 1]], dtype=np.float16)
    found = expert_scores(two_tasks(weight=weight), "a", "gate")[0]
    np.testing.assert_allclose(found, [0.2333, 0.0667, 0.0333, 0], atol=1e-4)
