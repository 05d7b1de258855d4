"""One worked example by hand per registered statistic: the numbers are derived in the comments."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moetool.capture.trace import RoutingTrace
from moetool.statistics.registry import (
    EXPERT_STATISTICS,
    LAYER_STATISTICS,
    PAIR_QUANTITIES,
    expert_rows,
    layer_row,
    pair_rows,
)
from moetool.statistics.sample import LayerSample, count_tokens, sample_layers
from tests.statistics.traces import make_trace

LN5 = math.log(5)
NAN = math.nan


def sample(trace: RoutingTrace) -> LayerSample:
    return next(sample_layers(trace, count_tokens(trace)))


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
    "first_repeat": (small, 3 / 4),  # 0-0, 0-0, 0-3 not, 1-1
    "first_repeat_matched": (small, (3**2 + 2**2 + 1**2) / 6**2),
    "any_repeat": (small, 3 / 4),  # {0,2} and {1,3} do not meet
    "any_repeat_uniform": (small, 1 - 3 / 10),  # C(3,2) / C(5,2)
    "any_repeat_matched": (small, 14 / 15),  # of 15 pairs of tokens only t2, t3 do not meet
    "overlap": (small, (2 + 1 + 0 + 2) / 4 / 2),
    "overlap_uniform": (small, 2 / 5),
    "overlap_matched": (small, (25 + 25 + 1 + 1) / 36 / 2),
    "coactivation_max": (paired, 1.0),  # N_01 / N_0 = 20/20
    "coactivation_max_matched": (paired, 1 / 3),  # equal loads: each of the three others alike
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


@pytest.mark.parametrize("key", [statistic.key for statistic in LAYER_STATISTICS])
def test_layer_statistic(key: str) -> None:
    build, expected = LAYER_EXAMPLES[key]
    assert layer_row(sample(build()))[key] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("key", [statistic.key for statistic in EXPERT_STATISTICS])
def test_expert_statistic(key: str) -> None:
    values = [row[key] for row in expert_rows(sample(small()))]
    expected = EXPERT_EXAMPLES[key]
    assert values == (expected if key == "status" else pytest.approx(expected))


@pytest.mark.parametrize("key", [quantity.key for quantity in PAIR_QUANTITIES])
def test_pair_statistic(key: str) -> None:
    rows = pair_rows(sample(paired()))
    assert [(row["expert"], row["other"]) for row in rows] == [(0, 1), (2, 3)]
    assert rows[0][key] == pytest.approx(PAIR_EXAMPLE[key])


def test_every_registered_statistic_has_an_example() -> None:
    assert LAYER_EXAMPLES.keys() == {statistic.key for statistic in LAYER_STATISTICS}
    assert EXPERT_EXAMPLES.keys() == {statistic.key for statistic in EXPERT_STATISTICS}
    assert PAIR_EXAMPLE.keys() == {quantity.key for quantity in PAIR_QUANTITIES}


def test_the_registry_describes_everything() -> None:
    for family in (LAYER_STATISTICS, EXPERT_STATISTICS, PAIR_QUANTITIES):
        keys = [quantity.key for quantity in family]
        assert len(set(keys)) == len(keys)
        for quantity in family:
            assert quantity.title
            assert quantity.help.endswith(".")
            assert quantity.key.isidentifier()
