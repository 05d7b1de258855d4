"""Agreement of two traces: worked examples, what must not change it, and a slow count of every token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.capture.trace import RoutingTrace, TraceLayer
from moetool.statistics.agreement import (
    AGREEMENT_STATISTICS,
    LayerAgreement,
    agreement_least,
    compare_layers,
    influence,
    members_of,
    split_margins,
    standard_error,
    weight_distances,
)
from moetool.statistics.locality import first_choice
from moetool.statistics.pairing import pair_traces
from moetool.statistics.sample import count_tokens, sample_layers
from moetool.statistics.student import student_quantile
from tests.statistics.traces import make_trace, random_trace

NAN = math.nan


def layers_of(first: RoutingTrace, second: RoutingTrace) -> list[LayerAgreement]:
    first, second = pair_traces(first, second)
    tokens = count_tokens(first)
    pairs = zip(sample_layers(first, tokens), sample_layers(second, tokens), strict=True)
    return [compare_layers(*pair) for pair in pairs]


def values(first: RoutingTrace, second: RoutingTrace) -> dict[str, float]:
    """Every statistic of the first layer."""
    groups = layers_of(first, second)[0].groups
    whole = groups.add_up(np.ones((1, len(groups.tokens))))
    return {statistic.key: float(statistic.value(whole)[0]) for statistic in AGREEMENT_STATISTICS}


def pair() -> tuple[RoutingTrace, RoutingTrace]:
    """E = 4, K = 2, four counted tokens of five in two documents; the fourth is special in A.

    Shared experts of the counted: 2, 1, 2, 0. Loads of A: 2 2 2 2, of B: 3 3 0 2. First choices of A: 0 0 3 2, of B:
    0 0 1 0. Margins of A: 0.5, 0.125, 0.25, 0.25.
    """
    scores = [[[0, 0, margin, 0] for margin in (0.5, 0.125, 0.25, 9, 0.25)]]
    shape: dict[str, Any] = {"experts": 4, "lengths": [3, 2], "domains": ["x", "y"]}
    first = make_trace(
        [[[0, 1], [0, 2], [1, 3], [0, 1], [2, 3]]],
        weight=[[[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]],
        scores=scores,
        special=[3],
        **shape,
    )
    second = make_trace(
        [[[1, 0], [0, 3], [1, 3], [2, 3], [0, 1]]],
        weight=[[[0.5, 1.5], [0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [0.75, 0.25]]],
        **shape,
    )
    return first, second


WORKED = {
    "agreement": 5 / 8,
    "agreement_baseline": (2 * 3 + 2 * 3 + 2 * 0 + 2 * 2) / (4 * 4 * 2),
    "agreement_uniform": 2 / 4,
    "agreement_least": 0.0,
    "agreement_limit": (2 + 2 + 0 + 2) / (4 * 2),
    "corrected_agreement": (5 / 8 - 1 / 2) / (1 - 1 / 2),
    "top1_agreement": 2 / 4,
    "top1_baseline": 2 * 3 / 4**2,
    "exact_agreement": 2 / 4,
    # Token by token: the same shares 1/4 and 3/4; 1/4 went from expert 2 to 3; 1/2 from 3 to 1; everything.
    "weight_distance": (0 + 1 / 4 + 1 / 2 + 1) / 4,
}


def test_worked_example_of_every_statistic() -> None:
    assert values(*pair()) == pytest.approx(WORKED)


def test_domains_are_counted_by_themselves() -> None:
    first, second = pair()
    groups = layers_of(first, second)[0].groups
    domains = groups.add_up(members_of(count_tokens(first), 2))
    found = {statistic.key: statistic.value(domains).tolist() for statistic in AGREEMENT_STATISTICS}
    assert domains.tokens.tolist() == [3, 1]
    assert found["agreement"] == pytest.approx([5 / 6, 0])
    # Domain x: A's loads are 2 2 1 1, B's 2 2 0 2.
    assert found["agreement_baseline"] == pytest.approx([(4 + 4 + 0 + 2) / (9 * 2), 0])
    assert found["weight_distance"] == pytest.approx([(0 + 1 / 4 + 1 / 2) / 3, 1])


def test_margins_of_changed_and_kept_tokens() -> None:
    margins = layers_of(*pair())[0].margins
    assert margins is not None
    assert margins.changed == ((0.125 + 0.25) / 2, (0.125 + 0.25) / 2)
    assert margins.kept == ((0.5 + 0.25) / 2, (0.5 + 0.25) / 2)
    assert margins.ratio == 0.5


def test_tenths_of_the_margin() -> None:
    margin = np.array([*range(20, 0, -1), NAN])
    shared = np.array([2] * 17 + [1, 0, 0, 2], np.uint16)
    rows = split_margins(margin, shared, 2).deciles
    assert [row[0] for row in rows] == list(range(1, 11))
    assert {row[3] for row in rows} == {2}
    assert [row[4] for row in rows] == [0, 0.75, *([1] * 8)]
    assert [row[5] for row in rows] == [0, 0.5, *([1] * 8)]
    assert (rows[0][1], rows[-1][2]) == (1, 20)
    tied = split_margins(np.full(20, 0.5), np.full(20, 2, np.uint16), 2)
    assert [row[3] for row in tied.deciles] == [20]
    assert math.isnan(tied.ratio)
    assert split_margins(np.array([NAN]), np.array([1], np.uint16), 2).deciles == ()


def test_two_sets_of_most_experts_must_share_some() -> None:
    layer = pair()[0].layers[0]
    assert agreement_least(replace(layer, experts=3)) == 0.5
    assert agreement_least(replace(layer, experts=2)) == 1


def test_without_weights_or_scores_only_the_sets_are_layers_of() -> None:
    first, second = pair()
    bare = replace(second, layers=(replace(second.layers[0], weight=None),))
    for found in (values(first, bare), values(bare, first)):
        unknown = {key for key, value in found.items() if math.isnan(value)}
        assert unknown == {"top1_agreement", "top1_baseline", "weight_distance"}
    assert layers_of(bare, first)[0].margins is None
    single = make_trace([[[0], [1], [2]]]), make_trace([[[0], [2], [2]]])
    assert values(*single)["top1_agreement"] == values(*single)["agreement"] == 2 / 3


def test_weights_that_are_none_are_left_out() -> None:
    chosen = np.array([[0, 1]] * 5, np.uint8)
    weight = np.array([[1, 1], [NAN, 1], [0, 0], [-1, 2], [np.inf, 1]])
    fine = np.ones((5, 2))
    for other in (chosen, chosen + 2):
        there = weight_distances(chosen, weight, other, fine, 4)
        back = weight_distances(other, fine, chosen, weight, 4)
        assert there[0] == back[0] == (0 if other is chosen else 1)
        assert np.isnan(there[1:]).all()
        assert np.isnan(back[1:]).all()


def slowly(first: RoutingTrace, second: RoutingTrace, layer: int, positions: Iterable[int]) -> dict[str, float]:
    """The token statistics by their definitions, token by token."""
    mine, other = first.layers[layer], second.layers[layer]
    rows = []
    for position in positions:
        weights = []
        for part in (mine, other):
            assert part.weight is not None
            total = sum(map(float, part.weight[position]))
            pairs = zip(part.chosen[position].tolist(), part.weight[position].tolist(), strict=True)
            weights.append({expert: weight / total for expert, weight in pairs})
        sets = [set(found) for found in weights]
        tops = [max(found, key=lambda expert: found[expert]) for found in weights]
        apart = sum(abs(weights[0].get(e, 0) - weights[1].get(e, 0)) for e in sets[0] | sets[1]) / 2
        rows.append((len(sets[0] & sets[1]) / len(sets[0]), tops[0] == tops[1], sets[0] == sets[1], apart))
    keys = ("agreement", "top1_agreement", "exact_agreement", "weight_distance")
    return dict(zip(keys, np.mean(np.array(rows, float), axis=0).tolist(), strict=True))


def noisy_pair(seed: int, experts: int = 9, per_token: int = 3, layers: int = 1) -> tuple[RoutingTrace, RoutingTrace]:
    """A trace and one of the same tokens in which about half of the tokens chose anew."""
    lengths = [40, 7, 60, 23, 11, 30, 50, 9, 31, 12]
    first = random_trace(seed, experts, per_token, lengths, layers, special=[0, 41])
    other = random_trace(seed + 1, experts, per_token, lengths, layers)
    again = np.random.default_rng(seed).random(sum(lengths)) < 0.5
    mixed = []
    for mine, new in zip(first.layers, other.layers, strict=True):
        parts = {
            name: np.where(again[:, None], getattr(new, name), getattr(mine, name)) for name in ("chosen", "weight")
        }
        mixed.append(replace(mine, **parts))
    return first, replace(other, layers=tuple(mixed))


@pytest.mark.parametrize(("experts", "per_token"), [(9, 3), (130, 8)])
def test_a_slow_count_gives_the_same(experts: int, per_token: int) -> None:
    first, second = noisy_pair(5, experts, per_token)
    found = values(first, second)
    for key, value in slowly(first, second, 0, np.flatnonzero(first.counted)).items():
        assert found[key] == pytest.approx(value, abs=1e-6), key


def test_chunks_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values(*noisy_pair(3))
    monkeypatch.setattr("moetool.statistics.agreement.CHUNK", 7)
    assert values(*noisy_pair(3)) == whole


seeds = st.integers(0, 10_000)


@given(seeds)
def test_agreement_is_symmetric_and_within_its_range(seed: int) -> None:
    first, second = noisy_pair(seed)
    found, other = values(first, second), values(second, first)
    assert other == pytest.approx(found)
    assert found["agreement_least"] <= found["agreement"] <= found["agreement_limit"] <= 1
    assert found["exact_agreement"] <= found["agreement"]
    assert 0 <= found["weight_distance"] <= 1


@given(seeds)
def test_other_names_for_the_experts_change_nothing(seed: int) -> None:
    first, second = noisy_pair(seed)
    names = np.random.default_rng(seed).permutation(9).astype(np.uint8)

    def renamed(trace: RoutingTrace) -> RoutingTrace:
        return replace(trace, layers=tuple(replace(layer, chosen=names[layer.chosen]) for layer in trace.layers))

    assert values(renamed(first), renamed(second)) == pytest.approx(values(first, second))


@given(seeds)
def test_a_trace_agrees_with_itself_exactly(seed: int) -> None:
    first, _ = noisy_pair(seed)
    found = values(first, first)
    ones = ("agreement", "agreement_limit", "corrected_agreement", "top1_agreement", "exact_agreement")
    assert {key: found[key] for key in ones} == dict.fromkeys(ones, 1.0)
    assert found["weight_distance"] == 0


@settings(max_examples=20)
@given(seeds)
def test_unrelated_choices_agree_as_the_baselines_say(seed: int) -> None:
    """Over all shifts of B against A every token meets every other once: their mean is that of independent choices."""
    tokens = 24
    first, second = (random_trace(seed + part, 6, 2, [tokens]) for part in (0, 1))

    def shifted(layer: TraceLayer, by: int) -> TraceLayer:
        assert layer.weight is not None
        return replace(layer, chosen=np.roll(layer.chosen, by, axis=0), weight=np.roll(layer.weight, by, axis=0))

    found = [
        values(first, replace(second, layers=tuple(shifted(layer, by) for layer in second.layers)))
        for by in range(tokens)
    ]
    assert np.mean([one["agreement"] for one in found]) == pytest.approx(found[0]["agreement_baseline"])
    assert np.mean([one["top1_agreement"] for one in found]) == pytest.approx(found[0]["top1_baseline"])
    assert np.mean([one["corrected_agreement"] for one in found]) == pytest.approx(0)


def half(influences, domain) -> float:
    """Half the width of the t interval."""
    error, quantile = standard_error(influences, np.array(domain))
    return float(error) * quantile


def test_an_interval_by_hand() -> None:
    """Ratio 4/8; residuals -1 and 1 of 8 tokens; variance 2/1 * (2 / 64) = 1/16."""
    parts = influence(np.array([1.0, 3.0]), np.array([4.0, 4.0]))
    assert parts.tolist() == [-1 / 8, 1 / 8]
    assert half(parts, [0, 0]) == pytest.approx(float(student_quantile(1.0)) / 4)
    # In domains of their own, documents may differ as they like.
    two = np.array([1.0, 1.0, 3.0, 3.0])
    assert half(influence(two, np.full(4, 4.0)), [0, 0, 1, 1]) == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    domain = np.repeat([0, 1], 10)
    for _ in range(500):
        tokens = random.integers(20, 200, 20)
        agreed = random.binomial(tokens, random.beta(18, 2, 20))
        ratio = agreed.sum() / tokens.sum()
        held += abs(ratio - 0.9) <= half(influence(agreed.astype(float), tokens.astype(float)), domain)
    assert 0.9 <= held / 500 <= 0.98


def test_what_is_identical() -> None:
    """The same experts and the same weights, wherever they are stored; weights in one trace only tell nothing."""
    trace = random_trace(0, 8, 2, (40, 20), layers=1)
    layer = trace.layers[0]

    def found(**changes):
        return layers_of(trace, replace(trace, layers=(replace(layer, **changes),)))[0]

    turned = {"chosen": layer.chosen[:, ::-1], "weight": layer.weight[:, ::-1]}
    assert found(**turned).identical is True
    assert float(found(**turned).groups.same_first.sum()) == found().groups.tokens.sum()
    assert found(weight=layer.weight * 2).identical is False
    assert found(weight=-layer.weight).identical is False
    assert found(weight=layer.weight * np.float16("nan")).identical is False
    assert found(weight=None).identical is None
    assert found(chosen=(layer.chosen + 1) % 8).identical is False
    bare = replace(trace, layers=(replace(layer, weight=None),))
    assert layers_of(bare, bare)[0].identical is True


def test_equal_weights_are_no_other_first_choice() -> None:
    chosen = np.array([[3, 1], [2, 5]], np.uint8)
    equal = np.full((2, 2), 0.5, np.float16)
    assert first_choice(chosen, equal).tolist() == first_choice(chosen[:, ::-1], equal).tolist() == [1, 2]
    assert first_choice(chosen, equal * np.float16("nan")).tolist() == [3, 2]
