"""What a text uses of a model: touched experts and weights, and the hits of a cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moetool.checkpoint.locate import locate
from moetool.commands.generate_run import _pick_cache
from moetool.commands.generate_usage import LruCache, Usage, measure_usage, running_hit_rate, weigh
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from moetool.report.page import Weights
from tests.report.generations import make_generation, make_layer


def test_a_cache_by_hand():
    """Of three: 1, 2 come in, and of 1, 3 the first is there. 4, 5 push out what was used first, which is 2 and then 3.
    So 3, 2 come in again, and 5, 1 go; 4, 2 are both there."""
    cache = LruCache(3)
    assert [cache.serve(token) for token in ([1, 2], [1, 3], [4, 5], [3, 2], [4, 2])] == [0, 1, 0, 0, 2]


def test_experts_of_one_token_do_not_push_each_other_out():
    """A cache of two holds 0, 1 for good; looking one up after another, 2 would push 0 out before it is asked for."""
    cache = LruCache(2)
    assert [cache.serve(token) for token in ([0, 1], [2, 0], [0, 2])] == [0, 1, 2]


def test_usage_by_hand():
    """Layer 0 of 4 experts: the prompt leaves 0, 1 cached; the new tokens find 1 of 1, 2 and 1 of 1, 3.
    Layer 1 of 3 and one that computes nothing: only its two lookups of 2 and 0 count, and 2 was there."""
    layers = [make_layer([[0, 1]], 4), make_layer([[2, 3]], 4, layer=1, zero_experts=1)]
    usage = Usage(layers, cache=2)
    usage.add(layers, decode=False)
    assert (usage.distinct, usage.hit_rate) == ([2, 1], None)
    usage.add([make_layer([[1, 2], [1, 3]], 4), make_layer([[2, 3], [3, 0]], 4)], decode=True)
    assert usage.distinct == [4, 2]
    assert usage.distinct_share == 6 / 7
    assert [usage.hit_rate_of(place) for place in (0, 1)] == [2 / 4, 1 / 2]
    assert usage.hit_rate == 3 / 6


@pytest.mark.parametrize(("weight", "hits"), [([[0.25, 0.75], [0.6, 0.4], [0.5, 0.5]], 2), (None, 1)])
def test_the_largest_weight_stays_longest(weight, hits):
    """Of 1, 2 the heavier one is 2, so 1 leaves a cache of three for 0, 3, and 2, 0 are there. Without weights the
    first choice counts as the heaviest, and 2 leaves."""
    layer = make_layer([[1, 2], [0, 3], [2, 0]], 4, None if weight is None else np.array(weight))
    usage = Usage([layer], cache=3)
    usage.add([layer], decode=True)
    assert (usage.hits, usage.lookups) == ([hits], [6])


def hits_by_distance(layer, cache, prompt):
    """Independent of any cache: an expert is held if fewer than C others were used later than it was, where of one
    token's experts the heavier one was used later."""
    hits = lookups = 0
    last_use = {}
    for token, (chosen, weight) in enumerate(zip(layer.chosen.tolist(), layer.weight.tolist(), strict=True)):
        if token >= prompt:
            lookups += len(chosen)
            hits += sum(
                expert in last_use and sum(use > last_use[expert] for use in last_use.values()) < cache
                for expert in chosen
            )
        last_use.update((expert, (token, share)) for expert, share in zip(chosen, weight, strict=True))
    return hits, lookups


@pytest.mark.parametrize("cache", [3, 4, 7, 16])
def test_hits_are_those_of_a_simulation(cache):
    generation = make_generation(120, 3, 16, 3, prompt_tokens=20)
    layers = []
    for number, layer in enumerate(generation.trace.layers):  # no two weights of a token are equal
        weight = np.random.default_rng(number).permuted(np.tile([0.2, 0.3, 0.5], (120, 1)), axis=1)
        layers.append(replace(layer, weight=weight))
    generation = replace(generation, trace=replace(generation.trace, layers=tuple(layers)))
    usage = measure_usage(generation, cache)
    expected = [hits_by_distance(layer, cache, 20) for layer in layers]
    assert [*zip(usage.hits, usage.lookups, strict=True)] == expected
    assert 0 < usage.hit_rate < 1
    rates = running_hit_rate(generation, cache)
    assert np.isnan(rates[:20]).all()
    assert rates[-1] == usage.hit_rate
    assert rates[20] == sum(hits_by_distance(replace(one, chosen=one.chosen[:21], weight=one.weight[:21]), cache, 20)[0]
                            for one in layers) / 9  # fmt: skip


class Notes(SilentProgress):
    """Remembers what it was told."""

    def __init__(self):
        self.told = []

    def note(self, message):
        self.told.append(message)


def test_a_cache_holds_the_experts_of_a_token_and_no_more_than_there_are():
    layers = [make_layer([[0, 1]], 16), make_layer([[0, 1, 2]], 9, zero_experts=1)]
    notes = Notes()
    assert [_pick_cache(wanted, layers, notes) for wanted in (None, 3, 16)] == [4, 3, 16]
    assert notes.told == []
    assert _pick_cache(17, layers, notes) == 16
    assert notes.told == ["--cache 17: no layer has more than 16 experts, and the cache holds all of them"]
    with pytest.raises(MoetoolError, match="--cache 2: a token needs its 3 experts at once") as caught:
        _pick_cache(2, layers, notes)
    assert caught.value.hint == "--cache 4, or more"


def test_touched_weights_by_hand():
    """A token uses 0.5: 0.3 of it shared, and 2 of 4 experts of both layers, each a twentieth."""
    weights = Weights(100, 100, 0.5, (0.2, 0.2))
    layers = [make_layer([[0, 1]], 4), make_layer([[0, 1]], 4, layer=1)]
    usage = Usage(layers, cache=2)
    usage.add(layers, decode=True)
    assert usage.touched_share(weights) == pytest.approx(0.5)
    usage.add([make_layer([[2, 3]], 4), make_layer([[1, 2]], 4)], decode=True)
    assert usage.touched_share(weights) == pytest.approx(0.5 + 2 * 0.05 + 0.05)
    assert usage.touched_share(replace(weights, active_share=None)) is None


def test_weights_of_the_demo_add_up():
    weights = weigh(locate("demo", None, weights="files"), [0, 1, 2, 3], 9)
    assert len(set(weights.routed_share)) == 1
    assert weights.routed_share[0] * weights.parameters == 3 * 8 * 160 * 240
    assert weights.active_share == pytest.approx(1 - sum(weights.routed_share) * 6 / 8)
