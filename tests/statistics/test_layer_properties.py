"""Properties of all layer statistics: an independent reference, symmetries, bounds and degenerate traces."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.capture.join import join_traces
from moetool.capture.trace import RoutingTrace
from moetool.statistics.layer_tables import expert_rows, pair_rows
from moetool.statistics.registry import LAYER_STATISTICS, layer_row
from moetool.statistics.sample import LayerSample, count_tokens, sample_layers
from tests.statistics.reference import reference_statistics
from tests.statistics.traces import make_trace, random_trace, split_trace

KEYS = {statistic.key for statistic in LAYER_STATISTICS}


def samples(trace: RoutingTrace) -> list[LayerSample]:
    return list(sample_layers(trace, count_tokens(trace)))


@st.composite
def traces(draw: st.DrawFn) -> RoutingTrace:
    experts = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    special = draw(st.sets(st.integers(0, sum(lengths) - 1), max_size=6))
    return random_trace(
        draw(st.integers(0, 2**32)), experts, draw(st.integers(1, experts)), lengths, special=sorted(special)
    )


def close(value: Any, expected: Any) -> bool:
    """Equal within rounding; undefined and text exactly."""
    return bool(value == (pytest.approx(expected, rel=1e-6, abs=1e-9) if isinstance(expected, float) else expected))


def plain(row: dict[str, Any]) -> None:
    for key, value in row.items():
        assert value is None or type(value) in (int, float, str), key
        assert not isinstance(value, float) or math.isfinite(value), key


@settings(max_examples=60, deadline=None)
@given(traces())
def test_a_slow_reference_agrees(trace: RoutingTrace) -> None:
    sample = samples(trace)[0]
    if not sample.tokens.total:
        return
    expected, row = reference_statistics(trace), layer_row(sample)
    assert sample.counts.tolist() == expected.pop("counts")
    pairs = expected.pop("pairs")
    for (i, j), count in np.ndenumerate(sample.pairs):
        assert count == (pairs[min(i, j), max(i, j)] if i != j else 0)
    for key, value in expected.items():
        assert close(row[key], value), key


@settings(max_examples=40, deadline=None)
@given(traces(), st.randoms(use_true_random=False))
def test_renaming_experts_renames_rows_and_keeps_scalars(trace: RoutingTrace, random: Any) -> None:
    layer = trace.layers[0]
    names = np.array(random.sample(range(layer.experts), layer.experts))
    assert layer.probability is not None
    probability = np.empty_like(layer.probability)
    probability[:, names] = layer.probability
    renamed = replace(layer, chosen=names.astype(layer.chosen.dtype)[layer.chosen], probability=probability)
    before, after = samples(trace)[0], samples(replace(trace, layers=(renamed,)))[0]
    row, other = layer_row(before), layer_row(after)
    for key in KEYS - {"busiest_expert", "coactivation_max_matched"}:  # which of two equals is named may change
        assert close(other[key], row[key]), key
    experts, others = expert_rows(before), expert_rows(after)
    for expert, values in enumerate(experts):
        name = int(names[expert])
        for key, value in ({**values, "expert": name}).items():
            assert close(others[name][key], value), key


@settings(max_examples=30, deadline=None)
@given(traces(), st.data())
def test_joined_traces_are_one_trace(trace: RoutingTrace, data: st.DataObject) -> None:
    if len(trace.documents) < 2:
        return
    joined = join_traces(split_trace(trace, data.draw(st.integers(1, len(trace.documents) - 1))))
    for one, other in zip(samples(trace), samples(joined), strict=True):
        row, expected = layer_row(other), layer_row(one)
        for key in KEYS:
            assert close(row[key], expected[key]), key
        assert expert_rows(other) == expert_rows(one)
        assert pair_rows(other) == pair_rows(one)


@settings(max_examples=60, deadline=None)
@given(traces())
def test_bounds(trace: RoutingTrace) -> None:
    sample = samples(trace)[0]
    row: dict[str, Any] = layer_row(sample)
    plain(row)
    if not sample.tokens.total:
        return
    experts, k = row["experts"], row["experts_per_token"]
    slack = 1e-9
    assert -slack <= row["max_violation"] <= row["max_violation_limit"] + slack
    assert row["max_violation_limit"] == experts / k - 1
    assert -slack <= row["min_violation"] <= 1
    assert k - slack <= row["effective_experts"] <= experts + slack
    assert -slack <= row["gini"] <= row["gini_limit"] + slack
    assert row["topk_mass"] is None or k / experts - 1e-6 <= row["topk_mass"] <= 1 + 1e-6
    assert 1 / experts - slack <= row["top1_probability"] <= 1
    assert row["overlap_matched"] >= k / experts - slack  # uniform is the least that loads allow
    for key in ("any_repeat", "overlap", "first_repeat", "any_repeat_matched", "coactivation_max"):
        assert row[key] is None or 0 <= row[key] <= 1
    assert row["design_effect"] is None or row["design_effect"] >= 1
    assert row["balance_loss_hf"] == pytest.approx(k * row["balance_loss"])
    assert row["dead"] + row["unobserved"] + row["cold"] <= experts


def test_everything_is_undefined_where_no_token_counts() -> None:
    trace = random_trace(0, 4, 2, [3, 2], special=range(5))
    row = layer_row(samples(trace)[0])
    defined = {key for key, value in row.items() if value is not None}
    static = {"layer", "experts", "experts_per_token", "max_violation_limit", "gini_limit", "least_assignments"}
    static |= {"distinct_experts_uniform"}
    assert defined == static | {"any_repeat_uniform", "overlap_uniform", "dead", "unobserved", "cold"}
    assert (row["dead"], row["unobserved"], row["cold"]) == (0, 4, 0)
    assert pair_rows(samples(trace)[0]) == []


def test_missing_arrays_leave_only_what_they_carry_undefined() -> None:
    trace = random_trace(0, 6, 2, [50, 50], weight=None, scores=None, probability=None)
    row = layer_row(samples(trace)[0])
    assert {key for key, value in row.items() if value is None} == {
        "balance_loss",
        "balance_loss_hf",
        "z_loss",
        "router_entropy",
        "top1_probability",
        "topk_mass",
        "boundary_margin",
        "boundary_margin_p05",
        "weight_concentration",
        "dropped_share",
        "zero_compute_share",
        "group_max_violation",
        "bias_changed_share",
        "batch_max_violation",
        "batch_max_violation_matched",
        "path_information",
        "path_information_matched",
    }
    assert {expert["weight_share"] for expert in expert_rows(samples(trace)[0])} == {None}


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (5, 1), (5, 5), (300, 7)])
def test_extreme_sizes(experts: int, k: int) -> None:
    trace = random_trace(1, experts, k, [30, 30])
    row = layer_row(samples(trace)[0])
    plain(row)
    if k == experts:
        assert row["max_violation"] == row["gini"] == row["cv"] == 0
        assert row["overlap"] == row["any_repeat"] == row["any_repeat_matched"] == row["any_repeat_uniform"] == 1
        assert row["boundary_margin"] is None
    if k == 1:
        assert row["coactivation_max"] is None
        assert row["any_repeat"] == row["overlap"] == row["first_repeat"]
        assert row["overlap_matched"] == pytest.approx(row["first_repeat_matched"])
    if experts == 1:
        assert row["entropy"] is None
        assert row["router_entropy"] is None
        assert row["effective_experts"] == 1


def test_one_token() -> None:
    row = layer_row(samples(random_trace(1, 4, 2, [1]))[0])
    plain(row)
    undefined = {"first_repeat", "any_repeat", "any_repeat_matched", "overlap", "design_effect"}
    assert {key for key in undefined if row[key] is None} == undefined
    assert row["max_violation"] == 1


def test_repeats_do_not_cross_documents_or_special_tokens() -> None:
    chosen = [[[0]] * 6]
    whole = layer_row(samples(make_trace(chosen, 2))[0])
    cut = layer_row(samples(make_trace(chosen, 2, lengths=[1] * 6))[0])
    gaps = layer_row(samples(make_trace(chosen, 2, special=[1, 3, 5]))[0])
    assert (whole["first_repeat"], cut["first_repeat"], gaps["first_repeat"]) == (1.0, None, None)


def test_layers_of_different_sizes_have_rows_of_their_own() -> None:
    trace = make_trace([[[0, 1]] * 4, [[2]] * 4])
    rows = [layer_row(sample) for sample in samples(trace)]
    assert [(row["experts"], row["experts_per_token"]) for row in rows] == [(2, 2), (3, 1)]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0])
@pytest.mark.parametrize("scores", [True, False])
def test_spoiled_weights_leave_their_statistics_undefined(value: float, scores: bool) -> None:
    options = {} if scores else {"scores": None}
    (sample,) = samples(random_trace(0, 8, 2, [20, 20], weight=[np.full((40, 2), value)], **options))
    row = layer_row(sample)
    plain(row)
    assert row["topk_mass"] is None
    assert all(expert["weight_share"] is None for expert in expert_rows(sample))


def test_one_spoiled_weight_is_left_out() -> None:
    trace = random_trace(0, 8, 2, [20, 20])
    weight = np.ones((40, 2))
    weight[3, 1] = np.inf
    (sample,) = samples(replace(trace, layers=(replace(trace.layers[0], weight=weight),)))
    shares = [expert["weight_share"] for expert in expert_rows(sample)]
    kept = np.delete(trace.layers[0].chosen.ravel(), 7)
    assert shares == pytest.approx((np.bincount(kept, minlength=8) / 79).tolist())


def test_unknown_probabilities_of_a_domain_leave_the_losses_undefined() -> None:
    trace = random_trace(0, 8, 2, [20, 20])
    probability = np.stack([np.full(8, 1 / 8), np.full(8, np.nan)])
    (sample,) = samples(replace(trace, layers=(replace(trace.layers[0], probability=probability),)))
    assert sample.probability is None
    assert layer_row(sample)["balance_loss"] is None
