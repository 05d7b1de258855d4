"""FLOPs: torch's own counter on real models, closed forms against brute force, and examples worked by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from moetool.accounting import compute
from moetool.accounting.compute import (
    CONTEXT,
    TRAINING_FLOPS_PER_PARAMETER,
    active_matrices,
    component_costs,
    decode_products,
    equivalents,
    prefill_products,
    total_flops,
    training_costs,
)
from moetool.model.caches import Mixer
from moetool.model.facts import model_facts
from moetool.model.presets import preset_checkpoint
from tests.model.test_mixing import CASES, build, plan

TOKENS = 20
WINDOWS_ONLY = {"flint", "kolibri1", "mellum", "granitemoe_swa"}
"""Cases that differ from others in which layers slide only, and take torch's counter seconds each."""
OTHERWISE = {
    "deepseek_v4": "torch counts more: not yet explained, so nothing is held",
}
COUNTED = CASES.keys() - OTHERWISE.keys() - WINDOWS_ONLY
SCANS_IN_BLOCKS = {
    "minimax", "qwen3_next", "qwen3_5_moe_text", "granitemoehybrid", "nemotron_h", "kimi_linear", "bailing_hybrid",
}  # fmt: skip
"""They read a prompt in blocks, with more products than one step per token needs: only decoding is compared."""
DELTA_RULE = {"qwen3_next", "qwen3_5_moe_text", "kimi_linear", "bailing_hybrid"}
"""They update and read states by elementwise products and sums, of which torch counts none."""
MATRIX_STATES = {"minimax"}
"""Both the update and the reading of states are matrix products; elsewhere only the reading is."""


def counted(model, tokens, cache=None):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randint(3, 300, (1, tokens)), past_key_values=cache, use_cache=cache is not None)
    return counter.get_total_flops()


def convolution_weights(mixers_state, kernel):
    """Parameters of a causal convolution by its state, which lacks one column."""
    return mixers_state.elements // (kernel - 1) * kernel


def convolutions(facts):
    """Weights and kernel of every convolution, by the terms of its state: ``96 x (4 - 1)``."""
    for mixer in facts.mixers:
        for state in mixer.states:
            if state.what == "convolution":
                kernel = int(state.terms.partition("(")[2].partition(" ")[0])
                yield convolution_weights(state, kernel), kernel


def states_counted(case, facts):
    """What torch counts of the recurrent states, per token."""
    products = sum(2 * mixer.state_products for mixer in facts.mixers)
    return 0 if case in DELTA_RULE else products if case in MATRIX_STATES else products // 2


def idle_experts(case, facts):
    """Llama 4 of transformers computes every expert for every token and multiplies those not chosen by zero."""
    layer = facts.moe_layers[0]
    routed = active_matrices(facts)["routed_experts"]
    return 2 * routed * (layer.experts // layer.experts_per_token - 1) if case == "llama4_text" else 0


def pairs(facts, products, queries, keys):
    """FLOPs of eager attention, which computes the whole rectangle of queries and keys."""
    total = 0
    for mixer in facts.mixers:
        seen = keys(mixer) // mixer.every
        total += 2 * queries * seen * (getattr(mixer, products) + mixer.index_products)
    return total


def eager(case):
    model = build(case, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model, plan(model.config.to_dict())


@pytest.mark.parametrize("case", sorted(COUNTED - SCANS_IN_BLOCKS))
def test_reading_a_prompt(case):
    model, facts = eager(case)
    expected = TOKENS * (2 * sum(active_matrices(facts).values()) + idle_experts(case, facts))
    expected += pairs(facts, "prefill_products", TOKENS, lambda mixer: TOKENS)
    expected += TOKENS * states_counted(case, facts)
    # A causal convolution of torch pads both ends and drops what comes out too much.
    expected += sum(2 * size * (kernel - 1) for size, kernel in convolutions(facts))
    assert counted(model, TOKENS) == expected


@pytest.mark.parametrize("case", sorted(COUNTED))
def test_decoding_a_token(case):
    model, facts = eager(case)
    with torch.no_grad():
        cache = model(torch.randint(3, 300, (1, TOKENS - 1)), use_cache=True).past_key_values
    expected = 2 * sum(active_matrices(facts).values()) + idle_experts(case, facts) + states_counted(case, facts)
    expected += pairs(facts, "prefill_products", 1, lambda mixer: min(TOKENS, mixer.window or TOKENS))
    # transformers expands the cached latents anew for each token; decode_products is for the absorbed form, see below.
    expected += sum(2 * (TOKENS - 1) * expand_weights(case) for mixer in facts.mixers if mixer.kind == "latent")
    # It convolves all of its states' columns, one more than is needed.
    if case != "minimax":
        expected += sum(2 * size for size, _ in convolutions(facts))
    assert counted(model, 1, cache) == expected


def expand_weights(case):
    """4 heads of keys without positions and of values from a latent."""
    settings = CASES[case][1]
    return settings["kv_lora_rank"] * 4 * (settings["qk_nope_head_dim"] + settings["v_head_dim"])


def test_absorbed_latent_attention():
    """Decoding on the latent: W_UK goes into the query and W_UV behind the attention, so that nothing is expanded."""
    heads, nope, rope, rank, values, context = 4, 10, 6, 20, 14, 37
    torch.manual_seed(0)
    query, query_rope = torch.randn(heads, nope).double(), torch.randn(heads, rope).double()
    up_keys, up_values = torch.randn(heads, rank, nope).double(), torch.randn(heads, rank, values).double()
    latents, keys_rope = torch.randn(context, rank).double(), torch.randn(context, rope).double()
    expanded = torch.einsum("cr,hrn->hcn", latents, up_keys)
    scores = torch.einsum("hn,hcn->hc", query, expanded) + query_rope @ keys_rope.T
    expected = torch.einsum("hc,hcv->hv", scores.softmax(-1), torch.einsum("cr,hrv->hcv", latents, up_values))
    with FlopCounterMode(display=False) as counter:
        absorbed = torch.bmm(up_keys, query[:, :, None])[:, :, 0]
        weights = (absorbed @ latents.T + query_rope @ keys_rope.T).softmax(-1)
        found = torch.bmm((weights @ latents)[:, None, :], up_values)[:, 0]
    torch.testing.assert_close(found, expected)
    mixer = plan(build("deepseek_v3").config.to_dict()).mixers[0]
    once = heads * rank * (nope + values)  # the weights of kv_b_proj, which active_matrices has
    assert counter.get_total_flops() == 2 * (once + decode_products(mixer, context))
    assert mixer.decode_products == heads * (2 * rank + rope)
    assert mixer.prefill_products == heads * (nope + rope + values)


# Closed forms -------------------------------------------------------------------------------------------------------


def seen_by(mixer, token):
    """Tokens that token number ``token`` (from 1) attends to, by brute force."""
    window = mixer.window or 10**9
    if mixer.kind == "chunked":
        return sum(1 for other in range(1, token + 1) if (other - 1) // window == (token - 1) // window)
    return sum(1 for other in range(1, token + 1) if token - other < window)


def brute_force(mixer, token):
    candidates = seen_by(mixer, token) // mixer.every
    attended = candidates if mixer.chosen is None else min(candidates, mixer.chosen)
    return attended * mixer.prefill_products + candidates * mixer.index_products


WINDOWS = st.integers(1, 30)
PRODUCTS = st.integers(0, 9)
MIXERS = st.one_of(
    st.builds(Mixer, st.just(0), st.just("full"), prefill_products=PRODUCTS),
    st.builds(Mixer, st.just(0), st.just("sliding"), prefill_products=PRODUCTS, window=WINDOWS),
    st.builds(Mixer, st.just(0), st.just("chunked"), prefill_products=PRODUCTS, window=WINDOWS),
    st.builds(
        Mixer, st.just(0), st.just("latent"), prefill_products=PRODUCTS, index_products=PRODUCTS, chosen=WINDOWS,
        window=st.none() | WINDOWS,
    ),
    st.builds(
        Mixer, st.just(0), st.just("compressed"), prefill_products=PRODUCTS, every=st.integers(1, 9),
        index_products=PRODUCTS, chosen=st.none() | WINDOWS,
    ),
)  # fmt: skip


@given(MIXERS, st.integers(1, 90))
def test_prompts_are_sums_over_tokens(mixer, context):
    assert prefill_products(mixer, context) == sum(brute_force(mixer, token) for token in range(1, context + 1))
    same = Mixer(*(getattr(mixer, name) for name in mixer.__slots__[:5]), mixer.prefill_products,
                 *(getattr(mixer, name) for name in mixer.__slots__[6:]))  # fmt: skip
    assert decode_products(same, context) == prefill_products(same, context) - prefill_products(same, context - 1)


def test_sparse_attention_with_a_window_chooses_within_it():
    mixer = Mixer(0, "latent", prefill_products=1, decode_products=1, window=4, chosen=9, index_products=1)
    assert prefill_products(mixer, 6) == 2 * (1 + 2 + 3 + 4 + 4 + 4)


# By hand ------------------------------------------------------------------------------------------------------------

MIXTRAL = model_facts(preset_checkpoint("mixtral-8x7b"), "config")
MATRICES = {
    "attention": 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024),
    "router": 32 * 4096 * 8,
    "routed_experts": 32 * 2 * 3 * 4096 * 14336,
    "lm_head": 32000 * 4096,
}


def test_mixtral_by_hand():
    assert {role: size for role, size in active_matrices(MIXTRAL).items() if size} == MATRICES
    costs = {cost.component: cost for cost in component_costs(MIXTRAL, 1)}
    assert (costs[CONTEXT].decode_flops, costs[CONTEXT].prefill_flops) == (2 * 32 * 2 * 4096, 2 * 32 * 2 * 4096)
    decode, prefill = total_flops(costs.values())
    assert decode == prefill == 2 * sum(MATRICES.values()) + 2 * 32 * 2 * 4096
    decode, prefill = total_flops(component_costs(MIXTRAL, 1000))
    head = MATRICES["lm_head"]
    assert decode == 2 * sum(MATRICES.values()) + 2 * 32 * 2 * 4096 * 1000
    assert prefill == 2000 * (sum(MATRICES.values()) - head) + 2 * head + 2 * 32 * 2 * 4096 * 500_500


def test_training():
    assert TRAINING_FLOPS_PER_PARAMETER == 6
    assert sum(cost.bytes for cost in training_costs(10**9, "adamw")) == 16 * 10**9
    assert sum(cost.bytes for cost in training_costs(10**9, "adamw-8bit")) == 10 * 10**9
    assert sum(cost.bytes for cost in training_costs(10**9, "sgd")) == 8 * 10**9
    assert all(cost.bytes == cost.bytes_per_parameter * 7 for cost in training_costs(7, "adamw"))


def test_equivalent_dense_models():
    flops = total_flops(component_costs(MIXTRAL, 1))[0]
    this, compute_alike, memory_alike = equivalents(MIXTRAL, (47, 94), (13, 26), flops)
    assert (this.flops_per_token, compute_alike.flops_per_token) == (flops, flops)
    assert memory_alike.flops_per_token == flops + 2 * 3 * MATRICES["routed_experts"]  # 8 experts instead of 2
    assert [(row.parameters, row.weight_bytes) for row in (this, compute_alike, memory_alike)] == [
        (47, 94), (13, 26), (47, 94),
    ]  # fmt: skip


def test_unknown_experts_per_token_give_no_costs():
    facts = plan(build("mixtral").config.to_dict())
    layers = tuple(type(layer)(layer.layer, layer.experts, None, 0) for layer in facts.moe_layers)
    unknown = type(facts)(*(layers if name == "moe_layers" else getattr(facts, name) for name in facts.__slots__))
    assert component_costs(unknown, 10) is None
    assert compute.active_matrices(unknown) is None
