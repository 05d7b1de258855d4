"""One worked example by hand per registered statistic: the numbers are derived in the comments."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moetool.capture.trace import RoutingTrace
from moetool.statistics.layer_tables import LAYER_TABLES, expert_rows, pair_rows
from moetool.statistics.registry import LAYER_STATISTICS, layer_row
from moetool.statistics.sample import LayerSample, count_tokens, sample_layers
from tests.statistics.traces import make_trace

LN5 = math.log(5)
NAN = math.nan


def sample(trace: RoutingTrace) -> LayerSample:
    """The last layer, for what looks back."""
    return list(sample_layers(trace, count_tokens(trace)))[-1]


def small() -> RoutingTrace:
    """E = 5, K = 2, six counted tokens of seven in two documents; expert 4 is never chosen by a counted token.

    Counts of experts 0 to 4: 5, 5, 1, 1, 0 (12 slots, mean 2.4). First choices (largest weight): 0 0 0 3 | 1 1.
    Neighbours: (t0, t1), (t1, t2), (t2, t3), (t5, t6); t4 is special.
    """
    chosen = [[0, 1], [1, 0], [0, 2], [1, 3], [4, 1], [0, 1], [1, 0]]
    weight = [[0.5, 0.25], [0.25, 0.5], [0.5, 0.25], [0.25, 0.5], [0.5, 0.25], [0.25, 0.5], [0.5, 0.25]]
    scores = [
        [LN5, 0.5, 0.1, 1],
        [0.0, 0.5, NAN, 2],
        [LN5, 0.4, 0.3, 3],
        [0.0, 0.4, NAN, 2],
        [9.0, 0.9, 9.0, 9],
        [LN5, 0.6, 0.2, 1],
        [0.0, 0.6, NAN, 1],
    ]
    probability = [[0.4, 0.3, 0.1, 0.1, 0.1], [0.2, 0.3, 0.3, 0.1, 0.1]]
    return make_trace(
        [chosen],
        5,
        lengths=[4, 3],
        domains=["x", "y"],
        special=[4],
        weight=[weight],
        scores=[scores],
        probability=[probability],
    )


def full() -> RoutingTrace:
    """The same with the second choice of the first three tokens dropped, and expert 3 computing nothing, as 4."""
    trace = small()
    dropped = np.zeros((7, 2), dtype=bool)
    dropped[:3, 1] = dropped[4, 0] = True
    return replace(trace, layers=(replace(trace.layers[0], dropped=dropped, zero_experts=2),))


def collapsed() -> RoutingTrace:
    """E = 4, K = 2, two documents of 200 tokens that all choose experts 0 and 1."""
    return make_trace([np.tile([0, 1], (400, 1))], 4, lengths=[200, 200])


def one_cold() -> RoutingTrace:
    """E = 4, K = 1, two equal documents of 100 tokens: expert 3 gets one token of each, the others 33."""
    choices = [[0], [1], [2]] * 33 + [[3]]
    return make_trace([choices * 2], 4, lengths=[100, 100])


def clumped() -> RoutingTrace:
    """E = 2, K = 1, two documents of 10 tokens, each with an expert of its own: a document is worth one token."""
    return make_trace([[[0]] * 10 + [[1]] * 10], 2, lengths=[10, 10])


def batches() -> RoutingTrace:
    """E = 2, K = 1: 1,024 tokens of expert 0, then 512 of each, then 7 that fill no window."""
    return make_trace([[[0]] * 1024 + [[0], [1]] * 512 + [[1]] * 7], 2)


def biased() -> RoutingTrace:
    """K = 2, E = 4 in two groups; of three tokens the bias changed one, two and none of the choices."""
    trace = make_trace([[[0, 1], [0, 1], [1, 2]]], 4)
    layer = replace(trace.layers[0], rerouted=np.array([1, 2, 0], np.uint8), expert_groups=2)
    return replace(trace, layers=(layer,))


def cycling() -> RoutingTrace:
    """E = 4, K = 1, 40 tokens of one document that choose 0, 1, 2, 3, 0, ..."""
    return make_trace([[[token % 4] for token in range(40)]], 4)


def two_layers() -> RoutingTrace:
    """E = 2, K = 1, two layers: of 8 tokens, 3 go 0 -> 0, 1 goes 0 -> 1, 1 goes 1 -> 0, 3 go 1 -> 1."""
    return make_trace([[[0]] * 4 + [[1]] * 4, [[0]] * 3 + [[1]] + [[0]] + [[1]] * 3], 2)


def paired() -> RoutingTrace:
    """E = 4, K = 2: 20 tokens choose {0, 1}, 20 tokens choose {2, 3}."""
    return make_trace([[[0, 1]] * 20 + [[3, 2]] * 20], 4)


LAYER_EXAMPLES: dict[str, tuple[Any, Any]] = {
    "layer": (small, 0),
    "experts": (small, 5),
    "experts_per_token": (small, 2),
    "max_violation": (small, 5 / 2.4 - 1),
    "max_violation_limit": (small, 5 / 2 - 1),
    "busiest_expert": (small, 0),  # 0 and 1 have 5 tokens each: the lower id
    # Windows: all 1,024 tokens on one of two experts (1), and half of them (0).
    "batch_max_violation": (batches, 0.5),
    # Loads are 1536 and 519 of 2055; in random order every window has about these shares.
    "batch_max_violation_matched": (batches, pytest.approx(1 - 2 * 519 / 2055, abs=0.02)),
    "min_violation": (small, 1.0),  # expert 4 has none
    # Deviations from 2.4: 2.6, 2.6, -1.4, -1.4, -2.4; squares add up to 23.2.
    "cv": (small, math.sqrt(23.2 / 5) / 2.4),
    "cv_uniform": (small, 0.5),  # sqrt((1 - 0.4) / (6 * 0.4))
    # f sorted: 0, 1, 1, 5, 5 over 12, times -4, -2, 0, 2, 4: 28 / 12, over E.
    "gini": (small, 28 / 12 / 5),
    "gini_limit": (small, 1 - 2 / 5),
    # H = 2 (5/12) ln(12/5) + 2 (1/12) ln 12 = 1.143708 nats
    "entropy": (small, 1.143708 / LN5),
    "effective_experts": (small, math.exp(1.143708)),
    # All tokens choose 0 and 1, so nothing varies and deff is 1: 60 E/K = 120 tokens suffice, there are 400.
    "dead": (collapsed, 2),
    "unobserved": (small, 1),  # expert 4: 6 tokens, of 60 * 5/2 = 150
    # u = 4 * 0.01; equal documents, so the bootstrap bound is 0.04 and deff 1; rule of three 4 * 3/200 = 0.06 < 0.25.
    "cold": (one_cold, 1),
    "tokens_needed": (clumped, 3 * 20 * 2 / 0.05),  # deff 20, E/K = 2
    "least_assignments": (small, 0),
    "group_max_violation": (biased, 5 / 3 - 1),  # 5 of 6 choices are of the first of two groups
    "dropped_share": (full, 3 / 12),  # that of the special token does not count
    "zero_compute_share": (full, 1 / 12),  # expert 3 once
    # P = (4 x + 2 y) / 6 = (1/3, 3/10, 1/6, 1/10, 1/10)
    "balance_loss": (small, 5 * (5 / 12 * 19 / 30 + 1 / 12 * 8 / 30)),
    "balance_loss_hf": (small, 2 * 5 * (5 / 12 * 19 / 30 + 1 / 12 * 8 / 30)),
    "z_loss": (small, (1 + 4 + 9 + 4 + 1 + 1) / 6),
    "router_entropy": (small, 0.5),  # half of the tokens at ln 5, half at 0
    "top1_probability": (small, (0.5 + 0.5 + 0.4 + 0.4 + 0.6 + 0.6) / 6),
    # The weights of every token add up to 0.75, the largest is 0.5: mass = 1.5 p1.
    "topk_mass": (small, 1.5 * 0.5),
    "boundary_margin": (small, (0.1 + 0.3 + 0.2) / 3),  # the others are unknown
    # The known margins 0.1, 0.2, 0.3 at 5 %: 0.1 of the way from the first to the second, in float32.
    "boundary_margin_p05": (small, pytest.approx(0.11, rel=1e-3)),
    # Shares 2/3 and 1/3 in every token: exp(H) = 3 / 2^(2/3).
    "weight_concentration": (small, pytest.approx(3 / 2 ** (2 / 3), rel=1e-3)),
    "bias_changed_share": (biased, 3 / 6),
    "first_repeat": (small, 3 / 4),  # 0-0, 0-0, 0-3 not, 1-1
    "first_repeat_matched": (small, (3**2 + 2**2 + 1**2) / 6**2),
    "any_repeat": (small, 3 / 4),  # {0,2} and {1,3} do not meet
    "any_repeat_uniform": (small, 1 - 3 / 10),  # C(3,2) / C(5,2)
    "any_repeat_matched": (small, 14 / 15),  # of 15 pairs of tokens only t2, t3 do not meet
    "overlap": (small, (2 + 1 + 0 + 2) / 4 / 2),
    "overlap_uniform": (small, 2 / 5),
    "overlap_matched": (small, (25 + 25 + 1 + 1) / 36 / 2),
    # Neighbours share 5/8, independent tokens 52/72: (5/8 - 52/72) / (1 - 52/72).
    "autocorrelation": (small, (5 / 8 - 52 / 72) / (20 / 72)),
    "distinct_experts": (cycling, 4.0),
    "distinct_experts_uniform": (cycling, 4 * (1 - 0.75**32)),
    "distinct_experts_matched": (cycling, 4 * (1 - 0.75**32)),
    "coactivation_max": (paired, 1.0),  # N_01 / N_0 = 20/20
    "coactivation_max_matched": (paired, 1 / 3),  # equal loads: each of the three others alike
    # J = 3/8, 1/8, 1/8, 3/8 and margins 1/2: I = 3/4 ln 1.5 + 1/4 ln 0.5, sqrt(H H') = ln 2.
    "path_information": (two_layers, (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / math.log(2)),
    "path_information_matched": (two_layers, (2 - 1) * (2 - 1) / (2 * 7) / math.log(2)),
    # q = 1/2; residuals 5 and -5; 2/1 * 50 / (20 * 1/4)
    "design_effect": (clumped, 20.0),
}

EXPERT_EXAMPLES: dict[str, list[Any]] = {
    "layer": [0] * 5,
    "expert": [0, 1, 2, 3, 4],
    "assignments": [5, 5, 1, 1, 0],
    "token_share": [5 / 6, 5 / 6, 1 / 6, 1 / 6, 0],
    "slot_share": [5 / 12, 5 / 12, 1 / 12, 1 / 12, 0],
    # 0: 3 * 0.5 + 2 * 0.25; 1: 3 * 0.25 + 2 * 0.5; 2: 0.25; 3: 0.5; together 4.5
    "weight_share": [2 / 4.5, 1.75 / 4.5, 0.25 / 4.5, 0.5 / 4.5, 0],
    "utilization": [25 / 12, 25 / 12, 5 / 12, 5 / 12, 0],
    "status": ["used", "used", "used", "used", "unobserved"],
}

# N_01 = 20 of N_0 = N_1 = 20 and T = 40: lift 20 * 40 / 400; null N_ij = 20/3, lift 2/3; Jaccard 20/20;
# deviate sqrt(20) + sqrt(21) - sqrt(4 * 20/3 + 1).
PAIR_EXAMPLE: dict[str, Any] = {
    "layer": 0,
    "expert": 0,
    "other": 1,
    "tokens": 20,
    "coactivation": 1.0,
    "lift": 2.0,
    "lift_matched": 2 / 3,
    "jaccard": 1.0,
    "deviate": math.sqrt(20) + math.sqrt(21) - math.sqrt(80 / 3 + 1),
}


# The quarters of 0, 0, 0, 1, 1, 1 (times ln 5 / ln 5), in float32.
QUANTILE_EXAMPLE: dict[str, Any] = {
    "layer": 0, "quantity": "router_entropy", "p05": 0.0, "p25": 0.0, "p50": 0.5, "p75": 1.0, "p95": 1.0,
}  # fmt: skip

# At lag 4 a token chooses what the fourth before it chose; q = 1/4 each: (1 - 1/4) / (1 - 1/4) = 1.
LAG_EXAMPLE: dict[str, Any] = {
    "layer": 0, "lag": 4, "overlap": 1.0, "overlap_matched": 0.25, "autocorrelation": 1.0, "distinct_experts": 4.0,
    "distinct_experts_uniform": 4 * (1 - 0.75**4), "distinct_experts_matched": 4 * (1 - 0.75**4),
}  # fmt: skip

FLOW_EXAMPLE: dict[str, Any] = {
    "layer": 0, "next_layer": 1, "expert": 0, "next_expert": 0, "tokens": 3, "share": 3 / 4, "share_matched": 1 / 2,
}  # fmt: skip

GROUP_EXAMPLE: dict[str, Any] = {"layer": 0, "group": 0, "assignments": 5, "slot_share": 5 / 6}

ROW_EXAMPLES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "coactivation": (paired, 0, PAIR_EXAMPLE),
    "paths": (two_layers, 0, FLOW_EXAMPLE),
    "router": (small, 0, QUANTILE_EXAMPLE),
    "locality": (cycling, 2, LAG_EXAMPLE),
    "groups": (biased, 0, GROUP_EXAMPLE),
    "experts": (small, 0, {key: values[0] for key, values in EXPERT_EXAMPLES.items()}),
}
"""Per table: the trace, which row, and the row."""


@pytest.mark.parametrize("key", [statistic.key for statistic in LAYER_STATISTICS])
def test_layer_statistic(key: str) -> None:
    build, expected = LAYER_EXAMPLES[key]
    close = pytest.approx(expected, rel=1e-6) if isinstance(expected, int | float) else expected
    assert layer_row(sample(build()))[key] == close


@pytest.mark.parametrize("key", EXPERT_EXAMPLES)
def test_expert_statistic(key: str) -> None:
    values = [row[key] for row in expert_rows(sample(small()))]
    expected = EXPERT_EXAMPLES[key]
    assert values == (expected if key == "status" else pytest.approx(expected))


@pytest.mark.parametrize("table", LAYER_TABLES, ids=lambda table: table.key)
def test_row_of_a_table(table: Any) -> None:
    build, place, expected = ROW_EXAMPLES[table.key]
    row = table.rows(sample(build()))[place]
    assert list(row) == list(expected) == [quantity.key for quantity in table.quantities]
    for key, value in row.items():
        assert value == (expected[key] if isinstance(expected[key], str) else pytest.approx(expected[key], abs=1e-12))


def test_pairs_are_ranked() -> None:
    assert [(row["expert"], row["other"]) for row in pair_rows(sample(paired()))] == [(0, 1), (2, 3)]


def test_every_registered_statistic_has_an_example() -> None:
    assert LAYER_EXAMPLES.keys() == {statistic.key for statistic in LAYER_STATISTICS}
    assert ROW_EXAMPLES.keys() == {table.key for table in LAYER_TABLES}


@pytest.mark.parametrize(
    "family", [LAYER_STATISTICS, *(table.quantities for table in LAYER_TABLES)], ids=lambda family: family[0].key
)
def test_the_registry_describes_everything(family: Any) -> None:
    keys = [quantity.key for quantity in family]
    assert len(set(keys)) == len(keys)
    for quantity in family:
        assert quantity.title
        assert quantity.help.endswith(".")
        assert quantity.key.isidentifier()
