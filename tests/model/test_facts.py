"""Facts from headers: they equal those of the built model for real families, and published packings are unpacked."""

from collections import Counter
from math import prod

import pytest

from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.locate import locate
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.model.facts import model_facts
from moetool.model.meta import plan_checkpoint
from tests.checkpoints import FAMILIES, make_model
from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint

BLOCK = "model.layers.0.block_sparse_moe"
EXPERT = f"{BLOCK}.experts.0.w1"


def facts_of(tmp_path, tensors, config=MIXTRAL, **options):
    return model_facts(locate(str(write_checkpoint(tmp_path, config, tensors, **options))))


def by_role(facts, what="parameters"):
    sums = Counter()
    for group in facts.groups:
        sums[group.role] += getattr(group, what)
    return dict(sums)


def by_role_and_layer(facts):
    sums = Counter()
    for group in facts.groups:
        sums[group.role, group.layer, "parameters"] += group.parameters
        sums[group.role, group.layer, "bytes"] += group.bytes
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_header_and_built_model_agree(tmp_path, family):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    stored = locate(str(tmp_path))
    from_header = model_facts(stored)
    from_config = model_facts(plan_checkpoint(locate(str(tmp_path / "config.json"))), "config")
    assert by_role_and_layer(from_header) == by_role_and_layer(from_config)
    assert from_header.moe_layers == from_config.moe_layers
    assert from_header.moe_layers[0].experts == FAMILIES[family].get("num_experts", from_header.moe_layers[0].experts)
    assert (from_header.layers, from_header.tied_head) == (
        FAMILIES[family].get("num_hidden_layers", 3),
        from_config.tied_head,
    )
    steering = ("correction_bias", "expert_bias")
    trained = sum(tensor.numel() for name, tensor in model.named_parameters() if not name.endswith(steering))
    assert make_ledger(from_header).total.parameters == trained
    assert from_header.total_bytes == sum(tensor.size_bytes for tensor in stored.tensors)
    assert by_role(from_header).get("other", 0) == 0


def test_counts_by_hand(tmp_path):
    facts = facts_of(tmp_path, mixtral_tensors(), shards=3)
    expected = {"embedding": 80, "attention": 384, "router": 64, "routed_experts": 768, "norm": 40, "lm_head": 80}
    assert by_role(facts) == expected
    assert by_role(facts, "bytes") == {role: 2 * count for role, count in expected.items()}
    assert [(layer.layer, layer.experts, layer.experts_per_token) for layer in facts.moe_layers] == [
        (0, 4, 2),
        (1, 4, 2),
    ]
    assert (facts.layers, facts.hidden_size, facts.family, facts.tied_head) == (2, 8, "mixtral", False)


def test_experts_may_differ_between_layers(tmp_path):
    tensors = {
        k: v for k, v in mixtral_tensors().items() if not k.startswith("model.layers.1.block_sparse_moe.experts.3")
    }
    facts = facts_of(tmp_path, tensors)
    assert [layer.experts for layer in facts.moe_layers] == [4, 3]
    assert facts.config_experts == 4
    assert make_ledger(facts).active_parameters == 80 + 384 + 64 + 40 + 80 + 384 * 2 // 4 + 288 * 2 // 3


def test_pruned_below_the_top_k(tmp_path):
    tensors = {k: v for k, v in mixtral_tensors().items() if ".experts." not in k or ".experts.0." in k}
    facts = facts_of(tmp_path, tensors)
    assert [(layer.experts, layer.experts_per_token) for layer in facts.moe_layers] == [(1, 1), (1, 1)]


def quantized(replace):
    """MIXTRAL's tensors with every expert matrix replaced by what ``replace(name, rows, columns)`` gives."""
    tensors = {}
    for name, (dtype, shape) in mixtral_tensors().items():
        tensors |= replace(name.removesuffix(".weight"), *shape) if ".experts." in name else {name: (dtype, shape)}
    return tensors


def fused(suffix_shapes):
    tensors = {name: kind for name, kind in mixtral_tensors().items() if ".experts." not in name}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        tensors |= {prefix + suffix: kind for suffix, kind in suffix_shapes.items()}
    return tensors


ROWS, COLUMNS = 8 * (4 + 4 + 8), 8 * (8 + 8 + 4)
"""Over all matrices of MIXTRAL's eight experts."""
PACKINGS = {
    "fp8 blocks": (
        quantized(lambda n, r, c: {f"{n}.weight": ("F8_E4M3", [r, c]), f"{n}.weight_scale_inv": ("F32", [1, 1])}),
        768, 24 * 4,
    ),
    "fp8 per tensor": (
        quantized(
            lambda n, r, c: {
                f"{n}.weight": ("F8_E4M3", [r, c]), f"{n}.weight_scale": ("F32", []), f"{n}.input_scale": ("F32", []),
            }
        ),
        768, 24 * 8,
    ),
    "int8": (
        quantized(lambda n, r, c: {f"{n}.weight": ("I8", [r, c]), f"{n}.weight_scale": ("BF16", [r, 1])}),
        768, 2 * ROWS,
    ),
    "nvfp4": (
        quantized(
            lambda n, r, c: {
                f"{n}.weight": ("U8", [r, c // 2]),
                f"{n}.weight_scale": ("F8_E4M3", [r, 1]),
                f"{n}.weight_scale_2": ("F32", []),
            }
        ),
        768, ROWS + 24 * 4,
    ),
    "bitsandbytes": (
        quantized(
            lambda n, r, c: {
                f"{n}.weight": ("U8", [r * c // 2, 1]),
                f"{n}.weight.absmax": ("F32", [1]),
                f"{n}.weight.quant_state.bitsandbytes__nf4": ("U8", [9]),
            }
        ),
        768, 24 * 13,
    ),
    "awq": (
        quantized(
            lambda n, r, c: {
                f"{n}.qweight": ("I32", [c, r // 4]),
                f"{n}.qzeros": ("I32", [1, r // 4]),
                f"{n}.scales": ("F16", [1, r]),
            }
        ),
        768, ROWS + 2 * ROWS,
    ),
    "gptq": (
        quantized(
            lambda n, r, c: {
                f"{n}.qweight": ("I32", [c // 4, r]),
                f"{n}.qzeros": ("I32", [1, r // 4]),
                f"{n}.scales": ("F16", [1, r]),
                f"{n}.g_idx": ("I32", [c]),
            }
        ),
        768, ROWS + 2 * ROWS + 4 * COLUMNS,
    ),
    "compressed-tensors": (
        quantized(lambda n, r, c: {f"{n}.weight_packed": ("U8", [r, c // 2]), f"{n}.weight_scale": ("U8", [r, 1])}),
        768, ROWS,
    ),
    "deepseek fp4": (
        {
            **{name: kind for name, kind in mixtral_tensors().items() if ".experts." not in name},
            **{f"model.layers.{i}.mlp.experts.{e}.w1.weight": ("I8", [8, 16]) for i in range(2) for e in range(4)},
            **{f"model.layers.{i}.mlp.experts.{e}.w1.scale": ("F8_E8M0", [8, 1]) for i in range(2) for e in range(4)},
        },
        8 * 8 * 32, 8 * 8,
    ),
    "mxfp4": (
        fused(
            {
                "gate_up_proj_blocks": ("U8", [4, 8, 1, 16]),
                "gate_up_proj_scales": ("U8", [4, 8, 1]),
                "gate_up_proj_bias": ("BF16", [4, 8]),
            }
        ),
        2 * (4 * 8 * 32 + 32), 64,
    ),
    "fused fp8": (
        fused({"gate_up_proj": ("F8_E4M3", [4, 8, 8]), "gate_up_proj_scale_inv": ("F32", [4, 1, 1])}),
        512, 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_parameters(tmp_path, packing):
    tensors, parameters, scale_bytes = PACKINGS[packing]
    facts = facts_of(tmp_path, tensors)
    assert by_role(facts)["routed_experts"] == parameters
    assert by_role(facts)["quantization"] == 0
    assert by_role(facts, "bytes")["quantization"] == scale_bytes
    assert {group.owner for group in facts.groups if group.role == "quantization"} == {"routed_experts"}
    assert facts.total_bytes == sum(tensor.size_bytes for tensor in locate(str(tmp_path)).tensors)
    assert {layer.experts for layer in facts.moe_layers} == {4}


@pytest.mark.parametrize(("settings", "bits"), [({}, 4), ({"num_bits": 8}, 8)])
def test_width_of_packed_integers_by_the_config(tmp_path, settings, bits):
    groups = {"group_0": {"weights": settings}}
    config = {**MIXTRAL, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    tensors = quantized(lambda n, r, c: {f"{n}.weight_packed": ("I32", [r, 1]), f"{n}.weight_shape": ("I64", [2])})
    facts = facts_of(tmp_path, tensors, config)
    assert (
        by_role(facts)["routed_experts"]
        == sum(shape[0] for n, (_, shape) in tensors.items() if "packed" in n) * 32 // bits
    )
    assert facts.quantization == "compressed-tensors"


def test_parameters_that_look_like_scales(tmp_path):
    tensors = {
        "model.layers.0.attn_hc.scale": ("F32", [3]),
        "model.layers.0.router.per_expert_scale": ("BF16", [4]),
        "model.layers.0.router.scale": ("BF16", [8]),
        "model.layers.0.self_attn.q_proj.k_scale": ("F32", []),
    }
    assert by_role(facts_of(tmp_path, tensors)) == {"other": 3, "router": 12, "quantization": 0}


def test_correction_biases_and_buffers_are_bytes_only(tmp_path):
    tensors = mixtral_tensors() | {
        f"{BLOCK}.e_score_correction_bias": ("F32", [4]),
        "model.rotary_emb.inv_freq": ("F32", [2]),
    }
    facts = facts_of(tmp_path, tensors)
    assert by_role(facts)["router"] == 64
    assert by_role(facts, "bytes")["router"] == 2 * 64 + 16
    assert (by_role(facts)["other"], by_role(facts, "bytes")["other"]) == (0, 8)
    assert facts.correction_biases == 4


def test_multi_token_prediction_beyond_the_last_layer(tmp_path):
    mtp = {
        "model.layers.2.eh_proj.weight": ("BF16", [8, 16]),
        "model.layers.2.mlp.experts.0.w1.weight": ("BF16", [4, 8]),
        "model.layers.2.embed_tokens.weight": ("BF16", [10, 8]),
        "model.layers.2.shared_head.head.weight": ("BF16", [10, 8]),
        "model.layers.2.shared_head.norm.weight": ("BF16", [8]),
    }
    facts = facts_of(tmp_path, mixtral_tensors() | mtp)
    assert by_role(facts)["mtp"] == 128 + 32 + 8
    assert by_role(facts, "bytes")["mtp"] == 2 * (168 + 160)
    assert (facts.copied_parameters, facts.layers, len(facts.moe_layers)) == (160, 2, 2)
    assert make_ledger(facts).total.parameters == 1416
    assert make_ledger(facts).active_parameters == 1416 - 384


def test_multi_token_prediction_with_a_name_of_its_own(tmp_path):
    mtp = {"mtp.layers.0.mlp.experts.0.w1.weight": ("BF16", [4, 8]), "mtp.fc.weight": ("BF16", [8, 16])}
    facts = facts_of(tmp_path, mixtral_tensors() | mtp)
    assert by_role(facts)["mtp"] == 160
    assert {group.layer for group in facts.groups if group.role == "mtp"} == {None}
    assert [layer.experts for layer in facts.moe_layers] == [4, 4]


def deepseek_v3_names():
    """Every weight of the published DeepSeek-V3 checkpoint, its 62nd layer for multi-token prediction included."""
    hidden, attention = 7168, {
        "q_a_proj": [1536, 7168], "q_a_layernorm": [1536], "q_b_proj": [128 * 192, 1536], "kv_a_layernorm": [512],
        "kv_a_proj_with_mqa": [576, 7168], "kv_b_proj": [128 * 256, 512], "o_proj": [7168, 128 * 128],
    }  # fmt: skip
    yield from (("model.embed_tokens", [129280, hidden]), ("lm_head", [129280, hidden]), ("model.norm", [hidden]))
    for layer in range(62):
        block = f"model.layers.{layer}"
        yield from ((f"{block}.self_attn.{name}", shape) for name, shape in attention.items())
        yield from ((f"{block}.{name}_layernorm", [hidden]) for name in ("input", "post_attention"))
        experts = [f"experts.{i}." for i in range(256)] + ["shared_experts."] if layer >= 3 else [""]
        width = 2048 if layer >= 3 else 18432
        for expert in experts:
            yield from ((f"{block}.mlp.{expert}{name}_proj", [width, hidden]) for name in ("gate", "up"))
            yield f"{block}.mlp.{expert}down_proj", [hidden, width]
        if layer >= 3:
            yield f"{block}.mlp.gate", [256, hidden]
    yield from ((f"model.layers.61.{name}", [hidden]) for name in ("enorm", "hnorm", "shared_head.norm"))
    yield "model.layers.61.eh_proj", [hidden, 2 * hidden]
    yield from ((f"model.layers.61.{name}", [129280, hidden]) for name in ("embed_tokens", "shared_head.head"))


def test_the_published_deepseek_v3():
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    tensors = [TensorInfo(f"{name}.weight", "F8_E4M3", tuple(s), prod(s), "f") for name, s in deepseek_v3_names()]
    facts = model_facts(Checkpoint("v3", None, config, tuple(tensors), None))
    ledger = make_ledger(facts)
    assert ledger.total.parameters == 671_026_404_352
    assert ledger.active_parameters == 37_552_282_624
    assert ledger.active_parameters_no_embedding == 36_625_603_584
    assert round(ledger.parameters("mtp") / 1e9, 2) == 11.61
    assert facts.copied_parameters == 2 * 129280 * 7168
    assert facts.total_bytes == ledger.total.parameters + ledger.parameters("mtp") + facts.copied_parameters
    assert (facts.layers, [layer.layer for layer in facts.moe_layers]) == (61, list(range(3, 61)))


@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head_counts_once(tmp_path, stored):
    tensors = mixtral_tensors()
    if not stored:
        del tensors["lm_head.weight"]
    facts = facts_of(tmp_path, tensors, {**MIXTRAL, "tie_word_embeddings": True})
    ledger = make_ledger(facts)
    assert facts.tied_head
    assert ledger.total.parameters == 1416 - 80
    assert ledger.active_parameters_no_embedding == ledger.active_parameters_no_embedding_no_head
    assert facts.copied_parameters == 80 * stored
    assert ledger.total.bytes == 2 * (1416 - 80 * (not stored))


def test_a_fused_layout_without_a_leading_axis_takes_the_config(tmp_path):
    config = {"model_type": "dbrx", "d_model": 8, "n_layers": 1, "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2}}
    tensors = {f"transformer.blocks.0.ffn.experts.mlp.{w}": ("BF16", [16, 8]) for w in ("w1", "v1", "w2")}
    facts = facts_of(tmp_path, tensors, config)
    assert [(layer.experts, layer.experts_per_token) for layer in facts.moe_layers] == [(4, 2)]
    assert (facts.hidden_size, make_ledger(facts).active_parameters) == (8, 192)


def test_a_shared_mlp_without_experts_is_dense(tmp_path):
    tensors = {"model.layers.0.shared_mlp.input_linear.weight": ("BF16", [16, 8])}
    assert by_role(facts_of(tmp_path, tensors, {"model_type": "granitemoehybrid"})) == {"dense_ffn": 128}


def test_decoder_layers_count_on_from_the_encoder(tmp_path):
    config = {"model_type": "switch_transformers", "is_encoder_decoder": True, "num_layers": 1, "num_experts": 2}
    layer = "block.0.layer.1.mlp"
    tensors = {
        f"{stack}.{layer}.experts.expert_{expert}.wi.weight": ("F32", [4, 2])
        for stack in ("encoder", "decoder")
        for expert in range(2)
    }
    facts = facts_of(tmp_path, tensors, config)
    assert [(m.layer, m.experts, m.experts_per_token) for m in facts.moe_layers] == [(0, 2, 1), (1, 2, 1)]


def test_unknown_types_are_named_and_counted_by_offsets():
    tensor = TensorInfo("model.layers.0.mlp.experts.0.w1.weight", "I4", (4, 4), 8, None)
    facts = model_facts(Checkpoint("x", None, MIXTRAL, (tensor,), None))
    assert (facts.unknown_dtypes, facts.total_bytes) == (("I4",), 8)
    assert by_role(facts) == {"routed_experts": 16}
