"""Devices: two small models divided by hand, laws that hold for any division, and what is refused."""

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.accounting.kv_cache import CacheOptions, total_cache
from moetool.accounting.parallel import plan_devices, split_layers
from moetool.accounting.split import Split, make_split
from moetool.checkpoint.dtypes import BITS
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError
from moetool.model.caches import Mixer, Pool, State
from moetool.model.facts import ModelFacts, MoELayer, ParameterGroup, model_facts
from tests.stored import MIXTRAL, mixtral_tensors

DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "tie_word_embeddings": False,
}


def deepseek_tensors():
    """A dense layer, a MoE layer, and one like it for multi-token prediction (without copies of embedding and head)."""
    shapes = {"model.embed_tokens.weight": [10, 8], "model.norm.weight": [8], "lm_head.weight": [10, 8]}
    attention = {
        "q_a_proj": [4, 8], "q_a_layernorm": [4], "q_b_proj": [12, 4], "kv_a_proj_with_mqa": [6, 8],
        "kv_a_layernorm": [4], "kv_b_proj": [16, 4], "o_proj": [8, 8],
    }  # fmt: skip
    for layer in range(3):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{block}.{name}_layernorm.weight": [8] for name in ("input", "post_attention")}
        ffns = [f"experts.{i}." for i in range(4)] + ["shared_experts."] if layer else [""]
        for ffn in ffns:
            width = 4 if layer else 16
            shapes |= {f"{block}.mlp.{ffn}{name}_proj.weight": [width, 8] for name in ("gate", "up")}
            shapes[f"{block}.mlp.{ffn}down_proj.weight"] = [8, width]
        if layer:
            shapes[f"{block}.mlp.gate.weight"] = [4, 8]
    shapes |= {f"model.layers.2.{name}.weight": [8] for name in ("enorm", "hnorm", "shared_head.norm")}
    shapes["model.layers.2.eh_proj.weight"] = [8, 16]
    tensors = {name: ("BF16", shape) for name, shape in shapes.items()}
    return tensors | {f"model.layers.{layer}.mlp.gate.e_score_correction_bias": ("F32", [4]) for layer in (1, 2)}


def facts_of(config, tensors):
    infos = [TensorInfo(n, d, tuple(shape), prod(shape) * BITS[d] // 8, "f") for n, (d, shape) in tensors.items()]
    return model_facts(Checkpoint("m", None, config, tuple(infos), None))


SMALL_MIXTRAL = facts_of(MIXTRAL, mixtral_tensors())
SMALL_DEEPSEEK = facts_of(DEEPSEEK, deepseek_tensors())
CACHE = CacheOptions(context_tokens=10)


def loads(facts, split, cache=CACHE):
    return [
        (row.routed_expert_bytes, row.other_weight_bytes, row.kv_cache_bytes)
        for row in plan_devices(facts, split, cache)
    ]


# By hand, in bytes: Mixtral has embedding and head of 160 each, a norm of 16, and two layers of q and o 256, k and v
# 128, norms 32, router 64, experts 4 x 192; a token caches 16 in each layer.


@pytest.mark.parametrize("facts", [SMALL_MIXTRAL, SMALL_DEEPSEEK])
def test_one_gpu_holds_the_checkpoint_and_the_cache(facts):
    (row,) = plan_devices(facts, Split(1), CACHE)
    assert row.weight_bytes == facts.total_bytes
    assert row.kv_cache_bytes == total_cache(facts.mixers, CACHE).cache_bytes
    assert row.total_bytes == row.routed_expert_bytes + row.other_weight_bytes + row.kv_cache_bytes
    assert (row.rank, row.stage, row.first_layer, row.last_layer, row.experts) == (0, 0, 0, 1, 4)


def test_tensor_parallelism():
    # The one key-value head lies on both ranks, and so do the projections to it.
    other = (2 * 160 + 2 * 256) // 2 + 2 * 128 + 16 + 2 * (32 + 64)
    assert loads(SMALL_MIXTRAL, Split(2, tp=2)) == 2 * [(2 * 768 // 2, other, 2 * 160)]


def test_expert_parallelism_shares_out_whole_experts_and_is_not_divided_by_tp_again():
    rows = plan_devices(SMALL_MIXTRAL, Split(2, tp=2, ep=2), CACHE)
    assert [(row.experts, row.routed_expert_bytes) for row in rows] == [(2, 768), (2, 768)]


def test_stages():
    layer = 256 + 128 + 32 + 64
    assert loads(SMALL_MIXTRAL, Split(2, pp=2)) == [(768, 160 + layer, 160), (768, layer + 16 + 160, 160)]
    assert [row.stage for row in plan_devices(SMALL_MIXTRAL, Split(2, pp=2), CACHE)] == [0, 1]


def test_replicas_repeat_everything_and_divide_the_batch():
    rows = loads(SMALL_MIXTRAL, Split(2, dp=2), CacheOptions(10, batch=3))
    assert rows == 2 * [(1536, 2832 - 1536, 2 * 2 * 160)]


def test_experts_shared_between_replicas_with_redundant_ones():
    rows = plan_devices(SMALL_MIXTRAL, Split(2, dp=2, ep=2, redundant_experts=1), CACHE)
    assert [(row.experts, row.routed_expert_bytes) for row in rows] == [(3, 2 * 3 * 192), (2, 2 * 2 * 192)]
    assert {row.other_weight_bytes for row in rows} == {2832 - 1536}


def test_an_uneven_share():
    facts = replace(SMALL_MIXTRAL, heads=3)
    rows = plan_devices(facts, Split(3, tp=3, ep=3), CACHE)
    assert [(row.experts, row.routed_expert_bytes) for row in rows] == [(2, 768), (1, 384), (1, 384)]


def test_fewer_expert_ranks_than_shards_split_each_expert():
    facts = replace(SMALL_MIXTRAL, heads=4)
    rows = plan_devices(facts, Split(4, tp=4, ep=2), CACHE)
    assert [(row.experts, row.routed_expert_bytes) for row in rows] == 4 * [(2, 384)]


def test_expert_ranks_that_cover_a_part_of_the_replicas_repeat():
    rows = plan_devices(SMALL_MIXTRAL, Split(4, dp=4, ep=2), CACHE)
    assert [(row.experts, row.routed_expert_bytes) for row in rows] == 4 * [(2, 768)]


def test_latents_and_their_projection_lie_on_every_rank_and_draft_experts_are_experts():
    # Attention: matrices 512, of which the projection to the latent 96; its norms 16.
    attention, projection = 512, 96
    whole = 16 + 2 * (projection + 16) + 2 * 32 + (64 + 16)
    sharded = 2 * 160 + 2 * (attention - projection) + 768 + 192
    drafts_whole, drafts_sharded, draft_experts = 16 + 32 + 48, attention + 192 + 64 + 256 + 16, 768
    other = whole + drafts_whole + (sharded + drafts_sharded + draft_experts) // 2
    assert loads(SMALL_DEEPSEEK, Split(2, tp=2)) == 2 * [(384, other, 2 * 10 * 12)]
    replicas = plan_devices(SMALL_DEEPSEEK, Split(2, dp=2, ep=2), CACHE)
    alone = SMALL_DEEPSEEK.total_bytes - 2 * 768
    assert [(row.routed_expert_bytes, row.other_weight_bytes) for row in replicas] == 2 * [(384, alone + 384)]


def test_multi_token_prediction_of_another_size_has_no_experts():
    groups = [g if g.owner != "mtp" else replace(g, bytes=700) for g in SMALL_DEEPSEEK.groups]
    facts = replace(SMALL_DEEPSEEK, groups=tuple(groups))
    alone = facts.total_bytes - 768
    assert [row.other_weight_bytes for row in plan_devices(facts, Split(2, dp=2, ep=2), CACHE)] == [alone, alone]


def test_a_tied_matrix_lies_on_the_first_and_the_last_stage():
    tensors = mixtral_tensors()
    del tensors["lm_head.weight"]
    tied = facts_of({**MIXTRAL, "tie_word_embeddings": True}, tensors)
    assert [other for _, other, _ in loads(tied, Split(2, pp=2))] == [160 + 480, 480 + 16 + 160]
    assert plan_devices(tied, Split(1), CACHE)[0].weight_bytes == tied.total_bytes


def test_states_and_windows():
    pool = Pool("keys and values", 24, "", window=4, heads=6)
    states = (State("recurrent", 10, "F32", "", heads=2), State("convolution", 3, None, ""))
    facts = replace(SMALL_MIXTRAL, heads=4, mixers=(Mixer(0, "sliding", (pool,)), Mixer(1, "mamba", states=states)))
    cache = CacheOptions(10, batch=2)
    # Of six heads the fullest of four ranks has two; of two states each rank has one, of the convolution all.
    assert {kv for _, _, kv in loads(facts, Split(4, tp=4), cache)} == {2 * (4 * 24 * 2 * 2 // 6 + 40 // 2 + 6)}


def test_layers_of_stages():
    facts = replace(SMALL_MIXTRAL, groups=tuple(ParameterGroup("norm", n, "BF16", 1, 2, "norm") for n in range(7)))
    assert split_layers(facts, 3) == (range(3), range(3, 5), range(5, 7))


def test_sizes_that_are_not_given():
    assert make_split(SMALL_MIXTRAL, 2) == Split(2, tp=2)
    assert make_split(SMALL_MIXTRAL, 8, tp=2) == Split(8, tp=2, dp=4)
    assert make_split(SMALL_MIXTRAL, 4, pp=2) == Split(4, tp=2, pp=2)
    assert make_split(SMALL_MIXTRAL, 4, tp=2, dp=1) == Split(4, tp=2, pp=2)
    assert make_split(SMALL_MIXTRAL, 2, ep=2) == Split(2, tp=2, ep=2)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(0), "--gpus 0"),
        (Split(2, tp=-1), "--tp -1"),
        (Split(2), "are 1 GPUs, not --gpus 2"),
        (Split(100_001, dp=100_001), "at most 100000"),
        (Split(4, tp=4), "--tp 4 does not divide the 2 attention heads; 1, 2 do"),
        (Split(3, pp=3), "--pp 3: the model has 2 layers"),
        (Split(2, tp=2, redundant_experts=2), "needs expert parallelism"),
        (Split(2, tp=2, ep=2, redundant_experts=-2), "must not be negative"),
        (Split(2, tp=2, ep=2, redundant_experts=5), "every rank has all 4 experts already"),
        (Split(4, tp=2, dp=2, ep=3), "--ep 3 does not divide the 4 ranks"),
        (Split(5, dp=5, ep=5), "leave ranks without any"),
    ],
)
def test_refusals(split, message):
    with pytest.raises(MoetoolError) as error:
        plan_devices(SMALL_MIXTRAL, split, CACHE)
    assert message in error.value.message


def test_hints_can_be_followed():
    with pytest.raises(MoetoolError) as error:
        make_split(SMALL_MIXTRAL, 4)
    assert error.value.hint == "try --gpus 4 --tp 2 --pp 2"
    assert make_split(SMALL_MIXTRAL, 4, tp=2, pp=2) == Split(4, tp=2, pp=2)
    with pytest.raises(MoetoolError, match="no routed experts"):
        make_split(replace(SMALL_MIXTRAL, moe_layers=()), 2, ep=2)


MATRICES = ("attention", "dense_ffn", "shared_experts", "lm_head", "embedding")
WHOLE = ("norm", "router", "vision", "other")
SIZES = st.integers(1, 10**12)


@st.composite
def models(draw):
    layers, experts = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    groups = [ParameterGroup("norm", layer, "BF16", 1, 2, "norm") for layer in range(layers)]
    for role in draw(st.lists(st.sampled_from(MATRICES + WHOLE), max_size=12)):
        layer = None if role in ("embedding", "lm_head", "vision") else draw(st.integers(0, layers - 1))
        parameters = draw(SIZES)
        groups.append(
            ParameterGroup(role, layer, "BF16", parameters, draw(SIZES), role, parameters * (role in MATRICES))
        )
    moe = [layer for layer in range(layers) if draw(st.booleans())]
    groups += [ParameterGroup("routed_experts", n, "U8", 1, draw(SIZES), "routed_experts", 1) for n in moe]
    return ModelFacts(
        name="m", revision=None, family="f", source="header", layers=layers, hidden_size=8,
        moe_layers=tuple(MoELayer(layer, experts, 1, 0) for layer in moe), groups=tuple(groups), tied_head=False,
        correction_biases=0, copied_parameters=0, quantization=None, config_experts=None, zero_experts=0,
        unknown_dtypes=(), mixers=(),
    )  # fmt: skip


@given(st.data(), models(), st.integers(1, 8), st.integers(1, 4))
def test_shards_add_up_and_copies_are_copies(data, facts, tp, dp):
    experts = facts.moe_layers[0].experts if facts.moe_layers else 1
    pp = data.draw(st.integers(1, facts.layers))
    fitting = [n for n in range(1, tp * dp + 1) if tp % n == 0 or (n % tp == 0 and tp * dp % n == 0)]
    ep = data.draw(st.sampled_from(fitting if facts.moe_layers else [1]))
    most = experts * (ep - 1)
    redundant = data.draw(st.integers(min(max(0, ep - experts), most), min(most, ep + 9))) if ep > 1 else 0
    split = Split(tp * pp * dp, tp, pp, dp, ep, redundant)
    rows = plan_devices(facts, split, CACHE)
    assert [row.rank for row in rows] == list(range(split.gpus))
    whole = sum(group.bytes for group in facts.groups if group.owner in WHOLE)
    sharded = sum(group.bytes for group in facts.groups if group.owner in MATRICES)
    assert sum(row.other_weight_bytes for row in rows) == dp * (sharded + tp * whole)
    copies = tp * dp // (ep * split.expert_tp)
    layers = [group.bytes for group in facts.groups if group.owner == "routed_experts"]
    slots = sum(size * (experts + redundant) // experts for size in layers)
    assert sum(row.routed_expert_bytes for row in rows) == copies * slots
    for stage, numbers in enumerate(split_layers(facts, pp)):
        held = [row.experts for row in rows if row.stage == stage]
        has_experts = any(layer.layer in numbers for layer in facts.moe_layers)
        assert sum(held) == (experts + redundant) * copies * split.expert_tp * has_experts
        assert max(held) - min(held) <= 1
        assert held[0] == max(held)


@given(models(), st.integers(1, 5))
def test_one_gpu_holds_everything_once(facts, batch):
    (row,) = plan_devices(facts, Split(1), CacheOptions(7, batch))
    assert row.total_bytes == facts.total_bytes


@given(st.integers(1, 64), st.integers(0, 6), st.integers(1, 5000), st.integers(1, 9))
def test_cached_heads_are_shared_or_repeated(heads, power, context, batch):
    tp = 2**power
    pool = Pool("keys and values", 4 * heads, "", heads=heads)
    facts = replace(SMALL_MIXTRAL, heads=64, mixers=(Mixer(0, "full", (pool,)),))
    held = plan_devices(facts, Split(tp, tp=tp), CacheOptions(context, batch))[0].kv_cache_bytes
    head = 4 * context * batch * 2
    assert held % head == 0
    assert max(1, heads / tp) <= held // head < heads / tp + 1
