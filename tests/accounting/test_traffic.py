"""Bytes read per step: expected experts against exact enumeration, and steps of a small model by hand."""

from dataclasses import replace
from itertools import combinations, product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.accounting.kv_cache import CacheOptions
from moetool.accounting.ledger import make_ledger
from moetool.accounting.traffic import decode_step, distinct_by_layer, distinct_measured, distinct_uniform
from moetool.model.caches import Mixer, Pool, State
from moetool.model.facts import MoELayer, model_facts
from moetool.model.presets import preset_checkpoint
from tests.accounting.test_ledger import FACTS, GROUPS, group, make_facts


@pytest.mark.parametrize(
    ("experts", "chosen", "batch"), [(1, 1, 3), (4, 1, 3), (4, 2, 3), (5, 3, 2), (6, 2, 2), (5, 5, 2), (3, 2, 5)]
)
def test_uniform_choice_by_enumeration(experts, chosen, batch):
    """Every way in which ``batch`` tokens can choose, each as likely as the others."""
    ways = list(product(combinations(range(experts), chosen), repeat=batch))
    assert len(ways) == comb(experts, chosen) ** batch
    mean = sum(len(set().union(*way)) for way in ways) / len(ways)
    assert distinct_uniform(experts, chosen, batch) == pytest.approx(mean, rel=1e-12)


@given(st.integers(1, 400), st.data(), st.integers(1, 500))
def test_bounds_of_a_uniform_choice(experts, data, batch):
    chosen = data.draw(st.integers(1, experts))
    found = distinct_uniform(experts, chosen, batch)
    assert chosen * (1 - 1e-9) <= found <= min(experts, batch * chosen) * (1 + 1e-9)
    assert distinct_uniform(experts, chosen, 1) == pytest.approx(chosen)
    assert found <= distinct_uniform(experts, chosen, batch + 1) * (1 + 1e-9)


RECORDINGS = st.integers(2, 5).flatmap(
    lambda experts: st.lists(st.sets(st.integers(0, experts - 1), min_size=1, max_size=3), min_size=1, max_size=7).map(
        lambda tokens: (experts, tokens)
    )
)


@given(RECORDINGS, st.integers(1, 9))
def test_recordings_by_enumeration(recording, batch):
    experts, tokens = recording
    loads = [sum(expert in chosen for chosen in tokens) for expert in range(experts)]
    draws = list(combinations(tokens, min(batch, len(tokens))))
    mean = sum(len(set().union(*draw)) for draw in draws) / len(draws)
    assert distinct_measured(loads, len(tokens), batch) == pytest.approx(mean, rel=1e-9)


def test_recordings_of_a_million_tokens():
    loads = [125_000] * 8  # an eighth each
    assert distinct_measured(loads, 1_000_000, 1) == pytest.approx(1, rel=1e-6)
    assert distinct_measured(loads, 1_000_000, 4) == pytest.approx(distinct_uniform(8, 1, 4), rel=1e-4)
    assert distinct_measured([0, 1_000_000], 1_000_000, 64) == 1
    assert distinct_measured(loads, 1_000_000, 1_000_000) == 8


MIXERS = (
    Mixer(0, "full", (Pool("keys and values", 8, "8"),)),
    Mixer(1, "mamba", states=(State("recurrent", 5, "F32", "5"),)),
)
SMALL = replace(FACTS, mixers=MIXERS)
REST = 200 + 60 + 16 + 20 + 4
"""Head, dense FFN, router, shared experts and scales: neither embedding, vision, prediction layers nor experts."""


def test_steps_by_hand():
    one = decode_step(SMALL, CacheOptions(10))
    assert (one.batch, one.distinct_experts) == (1, pytest.approx(3))
    assert one.weight_bytes == REST + (80 + 16) * 3 // 8
    assert one.cache_bytes == 8 * 2 * 10 + 5 * 4
    assert one.bytes_per_token == one.weight_bytes + one.cache_bytes
    two = decode_step(SMALL, CacheOptions(10, 2))
    assert two.distinct_experts == pytest.approx(8 * (1 - (5 / 8) ** 2)) == pytest.approx(39 / 8)
    assert two.weight_bytes == round(REST + 96 * 39 / 64) == REST + 58  # 58.5 to even
    assert two.cache_bytes == 2 * one.cache_bytes
    assert two.bytes_per_token == -(-(two.weight_bytes + two.cache_bytes) // 2)


def test_a_batch_of_one_reads_the_active_bytes_without_the_embedding():
    assert decode_step(FACTS, CacheOptions(0)).weight_bytes == make_ledger(FACTS).active_bytes - 200
    for name in ("mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "nemotron-3-nano"):
        facts = model_facts(preset_checkpoint(name), "config")
        ledger = make_ledger(facts)
        expected = ledger.active_bytes - ledger.components["embedding"].bytes
        assert decode_step(facts, CacheOptions(1)).weight_bytes == pytest.approx(expected, rel=1e-12)


def test_a_tied_embedding_is_read_whole_as_the_head():
    tied = replace(make_facts([g for g in GROUPS if g.role != "lm_head"], FACTS.moe_layers), tied_head=True)
    assert decode_step(tied, CacheOptions(0)).weight_bytes == make_ledger(tied).active_bytes == REST + 36


def test_a_tied_head_that_is_stored_is_read_once():
    """Some checkpoints hold the tied matrix twice; a step multiplies with one of the two."""
    stored = make_facts([GROUPS[0], group("lm_head", None, 0, 200), *GROUPS[2:]], FACTS.moe_layers)
    assert decode_step(replace(stored, tied_head=True), CacheOptions(0)).weight_bytes == REST + 36


def test_a_dense_model():
    step = decode_step(make_facts([group("dense_ffn", 0, 30, 60), GROUPS[0]], []), CacheOptions(10, 7))
    assert (step.distinct_experts, step.weight_bytes, step.cache_bytes) == (None, 60, 0)


def test_a_recording_counts_in_the_layers_that_it_has():
    layers = [MoELayer(0, 4, 1, 0), MoELayer(1, 4, 1, 0), MoELayer(2, 4, None, 0)]
    facts = make_facts([], layers[:2])
    found = distinct_by_layer(facts, 2, ({1: [2, 2, 0, 0]}, 4))
    assert found == {0: pytest.approx(4 * (1 - (3 / 4) ** 2)), 1: pytest.approx(2 * (1 - 1 / 6))}
    assert distinct_by_layer(make_facts([], layers), 2) is None
    assert decode_step(make_facts([], layers), CacheOptions(1)) is None
