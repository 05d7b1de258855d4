"""Offloading: the fewest layers by hand, and laws that hold for any memory."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.accounting.kv_cache import CacheOptions
from moetool.accounting.offload import number_pattern, plan_offload
from moetool.errors import MoetoolError
from moetool.model.facts import MoELayer
from tests.accounting.test_parallel import SMALL_DEEPSEEK, SMALL_MIXTRAL

# Small Mixtral: 2832 bytes of weights, of which 768 of experts in each of two layers; 32 for each cached token.
PREFIXES = {layer: f"model.layers.{layer}.mlp.experts" for layer in range(2)}
CACHE = CacheOptions(10)


def test_nothing_needs_to_go():
    plan = plan_offload(SMALL_MIXTRAL, CACHE, 3200, 48, PREFIXES)
    assert (plan.offloaded_layers, plan.device_bytes, plan.host_bytes, plan.host_share) == ((), 3152, 0, 0.0)
    assert (plan.bus_bytes_per_token, plan.device_map) == (0, {"": 0})
    assert (plan.n_cpu_moe, plan.llama_cpp, plan.override_tensor) == (0, "", "")


def test_one_layer_goes():
    plan = plan_offload(SMALL_MIXTRAL, CACHE, 3200, 49, PREFIXES)
    assert (plan.offloaded_layers, plan.device_bytes, plan.host_bytes, plan.host_share) == ((0,), 2384, 768, 0.5)
    assert plan.bus_bytes_per_token == 768 * 2 // 4
    assert plan.device_map == {"": 0, "model.layers.0.mlp.experts": "cpu"}
    assert plan.llama_cpp == "--n-cpu-moe 1"
    assert plan.override_tensor == r'-ot "blk\.(0)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"'


def test_all_layers_go():
    plan = plan_offload(SMALL_MIXTRAL, CACHE, 2000, 0)
    assert (plan.offloaded_layers, plan.device_bytes, plan.host_share) == ((0, 1), 1616, 1.0)
    assert plan.device_map is None
    assert plan.override_tensor.startswith(r'-ot "blk\.([0-1])\.ffn_')


@pytest.mark.parametrize("first", [0, 1, 9, 10, 37, 99, 100])
def test_a_run_of_blocks_as_a_pattern(first):
    for last in (first, first + 1, first + 8, first + 63, first + 200):
        pattern = re.compile(number_pattern(first, last))
        assert [number for number in range(400) if pattern.fullmatch(str(number))] == list(range(first, last + 1))


def test_blocks_are_counted_with_the_dense_ones():
    plan = plan_offload(SMALL_DEEPSEEK, CACHE, SMALL_DEEPSEEK.total_bytes, 0)
    assert plan.offloaded_layers == (1,)
    assert plan.llama_cpp == "--n-cpu-moe 2"


def test_what_must_stay_does_not_fit():
    with pytest.raises(MoetoolError, match="outside the routed experts"):
        plan_offload(SMALL_MIXTRAL, CACHE, 1615, 0)


def test_an_unknown_number_of_experts_per_token():
    facts = replace(SMALL_MIXTRAL, moe_layers=(MoELayer(0, 4, None, 0), MoELayer(1, 4, None, 0)))
    assert plan_offload(facts, CACHE, 2400, 0).bus_bytes_per_token is None


@given(st.integers(1616, 4000), st.integers(0, 100), st.integers(1, 40))
def test_the_fewest_layers_go_and_no_byte_is_lost(memory, reserve, tokens):
    cache = CacheOptions(tokens)
    rest = 2832 - 2 * 768 + 32 * tokens
    if memory - reserve < rest:
        with pytest.raises(MoetoolError):
            plan_offload(SMALL_MIXTRAL, cache, memory, reserve)
        return
    plan = plan_offload(SMALL_MIXTRAL, cache, memory, reserve)
    assert plan.device_bytes + plan.host_bytes == SMALL_MIXTRAL.total_bytes + 32 * tokens
    assert plan.device_bytes <= memory - reserve
    assert not plan.offloaded_layers or plan.device_bytes + 768 > memory - reserve
