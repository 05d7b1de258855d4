"""Facts from GGUF headers: roles, layers and experts come out as from safetensors, and published sizes to the byte."""

from collections import Counter

import gguf
import pytest

from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.locate import locate
from moetool.model.facts import model_facts
from moetool.model.families import role_of, template
from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint
from tests.stored_gguf import MIXTRAL_METADATA, around, attention, experts, mixtral_gguf, size_of, write_gguf


def facts_of(folder, architecture, metadata, tensors):
    return model_facts(locate(str(write_gguf(folder / "model.gguf", architecture, metadata, tensors))))


def by_role(facts, what="parameters"):
    sums = Counter()
    for group in facts.groups:
        sums[group.role] += getattr(group, what)
    return dict(sums)


def by_role_and_layer(facts):
    sums = Counter()
    for group in facts.groups:
        sums[group.role, group.layer] += group.parameters
    return sums


# Names ---------------------------------------------------------------------------------------------------------------

MIXTURES = [arch for arch, tensors in gguf.MODEL_TENSORS.items() if gguf.MODEL_TENSOR.FFN_GATE_INP in tensors]


@pytest.mark.parametrize("architecture", MIXTURES, ids=lambda arch: gguf.MODEL_ARCH_NAMES[arch])
def test_every_name_of_every_mixture_of_llama_cpp_has_a_role(architecture):
    names = [gguf.TENSOR_NAMES[tensor].format(bid=3) for tensor in gguf.MODEL_TENSORS[architecture]]
    roles = {name: role_of(template(f"{name}.{end}")) for name in names for end in ("weight", "bias")}
    roles |= {name: role_of(template(name)) for name in names if name.endswith(("ssm_a", "ssm_d"))}
    # what classifiers and embedding models have beside the decoder is no part of it
    assert {name for name, role in roles.items() if role == "other"} <= {"cls", "cls.output"}
    assert {"routed_experts", "router"} <= set(roles.values())


ROLES = {
    "token_embd.weight": "embedding",
    "output.weight": "lm_head",
    "output_norm.weight": "norm",
    "rope_freqs.weight": "attention",
    "blk.0.attn_norm.weight": "norm",
    "blk.0.post_attention_norm.weight": "norm",
    "blk.0.attn_q_norm.weight": "attention",
    "blk.0.attn_kv_a_norm.weight": "attention",
    "blk.0.attn_sinks.weight": "attention",
    "blk.0.attn_output.bias": "attention",
    "blk.0.indexer.k_norm.weight": "attention",
    "blk.0.ssm_a": "attention",
    "blk.0.ssm_norm.weight": "attention",
    "blk.0.shortconv.in_proj.weight": "attention",
    "blk.0.ffn_gate_inp.weight": "router",
    "blk.0.ffn_gate_inp.bias": "router",
    "blk.0.exp_probs_b.bias": "router",
    "blk.0.ffn_gate_inp_shexp.weight": "shared_experts",
    "blk.0.ffn_up_shexp.weight": "shared_experts",
    "blk.0.ffn_gate_exps.weight": "routed_experts",
    "blk.0.ffn_gate_up_exps.weight": "routed_experts",
    "blk.0.ffn_down_exps.bias": "routed_experts",
    "blk.0.ffn_down.7.weight": "routed_experts",
    "blk.0.ffn_norm_exps.weight": "norm",
    "blk.0.ffn_down.weight": "dense_ffn",
    "blk.0.ffn_latent_up.weight": "dense_ffn",
    "blk.0.post_ffw_norm_1.weight": "norm",
    "blk.0.nextn.eh_proj.weight": "mtp",
    "v.blk.0.ffn_down.weight": "vision",
    "v.patch_embd.weight": "vision",
    "mm.0.weight": "vision",
    "a.blk.3.attn_q.weight": "vision",
}


@pytest.mark.parametrize("name", ROLES)
def test_role_by_name(name):
    assert role_of(template(name)) == ROLES[name]


# Worked by hand ------------------------------------------------------------------------------------------------------


def test_the_same_model_in_both_formats(tmp_path):
    ours = facts_of(tmp_path, "llama", MIXTRAL_METADATA, mixtral_gguf())
    theirs = model_facts(locate(str(write_checkpoint(tmp_path / "safetensors", MIXTRAL, mixtral_tensors("F16")))))
    assert by_role_and_layer(ours) == by_role_and_layer(theirs)
    assert by_role(ours) == {
        "embedding": 80, "attention": 384, "router": 64, "routed_experts": 768, "norm": 40, "lm_head": 80,
    }  # fmt: skip
    assert by_role(ours, "bytes") == {
        "embedding": 160, "attention": 768, "router": 256, "routed_experts": 1536, "norm": 160, "lm_head": 160,
    }  # fmt: skip
    for name in ("moe_layers", "layers", "family", "tied_head", "hidden_size", "config_experts"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert make_ledger(ours).active_parameters == make_ledger(theirs).active_parameters == 1032


def test_quantised_types_hold_as_many_parameters_as_their_shapes(tmp_path):
    tensors = {
        **around(100, 256, "Q6_K"),
        **attention("blk.0", 256, 512, 256, "Q4_K", "Q6_K"),
        **experts("blk.0", 4, 256, 512, "MXFP4", "Q5_K"),
    }
    facts = facts_of(tmp_path, "qwen3moe", MIXTRAL_METADATA | {"block_count": 1, "embedding_length": 256}, tensors)
    expert = 256 * 512
    assert by_role(facts) == {
        "embedding": 25_600, "attention": 6 * 256 * 256, "router": 1024, "routed_experts": 12 * expert, "norm": 768,
        "lm_head": 25_600,
    }  # fmt: skip
    assert by_role(facts, "bytes") == {
        "embedding": 100 * 210,
        "attention": (512 + 256 + 2 * 256) * 144 + 256 * 210,
        "router": 4 * 1024,
        "routed_experts": 8 * expert // 32 * 17 + 4 * expert // 256 * 176,
        "norm": 4 * 768,
        "lm_head": 100 * 210,
    }
    assert [(layer.experts, layer.experts_per_token) for layer in facts.moe_layers] == [(4, 2)]
    assert make_ledger(facts).dtypes["MXFP4"].parameters == 8 * expert


def test_experts_one_by_one_as_in_the_oldest_files(tmp_path):
    tensors = {name: kind for name, kind in mixtral_gguf().items() if "_exps" not in name}
    for expert in range(4):
        for block in ("blk.0", "blk.1"):
            tensors |= {f"{block}.ffn_{part}.{expert}.weight": ("F16", [4, 8]) for part in ("gate", "up")}
            tensors[f"{block}.ffn_down.{expert}.weight"] = ("F16", [8, 4])
    facts = facts_of(tmp_path, "llama", MIXTRAL_METADATA, tensors)
    assert by_role(facts)["routed_experts"] == 768
    assert [(layer.experts, layer.experts_per_token) for layer in facts.moe_layers] == [(4, 2), (4, 2)]


def test_predicting_layers_buffers_biases_and_towers(tmp_path):
    tensors = {
        **mixtral_gguf(),
        "rope_freqs.weight": ("F32", [4]),
        "blk.1.exp_probs_b.bias": ("F32", [4]),
        "blk.2.attn_q.weight": ("F16", [8, 8]),
        "blk.2.ffn_up_exps.weight": ("F16", [4, 4, 8]),
        "blk.2.nextn.eh_proj.weight": ("F16", [8, 16]),
        "blk.2.nextn.embed_tokens.weight": ("F16", [10, 8]),
        "blk.2.nextn.shared_head_head.weight": ("F16", [10, 8]),
        "v.blk.0.attn_q.weight": ("F16", [2, 2]),
    }
    facts = facts_of(tmp_path, "glm4moe", MIXTRAL_METADATA | {"block_count": 3, "nextn_predict_layers": 1}, tensors)
    found = by_role(facts)
    assert (found["mtp"], found["vision"], found["router"], found["attention"]) == (64 + 128 + 128, 4, 64, 384)
    assert (facts.correction_biases, facts.copied_parameters, facts.layers) == (4, 160, 2)
    assert [layer.layer for layer in facts.moe_layers if layer.layer < 2] == [0, 1]
    assert make_ledger(facts).total.parameters == 1416 + 4
    assert facts.total_bytes == sum(size_of(*kind) for kind in tensors.values())


def test_scales_of_nvfp4_are_no_parameters(tmp_path):
    tensors = {
        "token_embd.weight": ("F16", [10, 64]),
        **experts("blk.0", 4, 64, 64, "NVFP4"),
        **{f"blk.0.ffn_{part}_exps.scale": ("F32", [4]) for part in ("gate", "up", "down")},
    }
    facts = facts_of(tmp_path, "qwen3moe", MIXTRAL_METADATA | {"block_count": 1, "embedding_length": 64}, tensors)
    assert (by_role(facts)["quantization"], by_role(facts, "bytes")["quantization"]) == (0, 48)
    assert by_role(facts)["routed_experts"] == 12 * 64 * 64
    assert facts.tied_head


# Published shapes ----------------------------------------------------------------------------------------------------


def gpt_oss_20b():
    """As ggml-org publishes it: experts in MXFP4, the other matrices in Q8_0, the rest in F32."""
    tensors = dict(around(201088, 2880, "Q8_0"))
    for block in (f"blk.{layer}" for layer in range(24)):
        tensors |= {
            **attention(block, 2880, 4096, 512, "Q8_0"),
            **experts(block, 32, 2880, 2880, "MXFP4"),
            f"{block}.attn_sinks.weight": ("F32", [64]),
            f"{block}.ffn_gate_inp.bias": ("F32", [32]),
            **{f"{block}.attn_{part}.bias": ("F32", [512]) for part in "kv"},
            f"{block}.attn_q.bias": ("F32", [4096]),
            f"{block}.attn_output.bias": ("F32", [2880]),
            **{f"{block}.ffn_{part}_exps.bias": ("F32", [32, 2880]) for part in ("gate", "up", "down")},
        }
    return tensors


def test_gpt_oss_20b(tmp_path):
    metadata = {
        "block_count": 24, "embedding_length": 2880, "feed_forward_length": 2880, "expert_feed_forward_length": 2880,
        "attention.head_count": 64, "attention.head_count_kv": 8, "attention.key_length": 64,
        "attention.value_length": 64, "attention.sliding_window": 128, "expert_count": 32, "expert_used_count": 4,
        "context_length": 131072,
    }  # fmt: skip
    facts = facts_of(tmp_path, "gpt-oss", metadata, gpt_oss_20b())
    ledger = make_ledger(facts)
    assert (ledger.total.parameters, ledger.active_parameters) == (20_914_757_184, 4_187_440_704)
    assert ledger.active_parameters_no_embedding == 3_608_307_264
    experts_per_layer = 32 * 3 * 2880 * 2880
    assert ledger.components["routed_experts"].bytes == 24 * (experts_per_layer // 32 * 17 + 4 * 32 * 3 * 2880)
    matrices = 2 * 201088 * 2880 + 24 * 2 * 2880 * (4096 + 512)
    vectors = 24 * (2 * 2880 + 64 + 32 * 2880 + 32 + 2 * 512 + 4096 + 2880) + 2880
    assert facts.total_bytes == ledger.components["routed_experts"].bytes + matrices // 32 * 34 + 4 * vectors
    assert (facts.family, facts.layers, len(facts.moe_layers)) == ("gpt_oss", 24, 24)


def test_mixtral_8x7b(tmp_path):
    """Q4_K_M: the output, and values and down-projections of half of the layers, in Q6_K; routers stay in F32."""
    tensors = dict(around(32000, 4096, "Q4_K", "Q6_K"))
    for layer in range(32):
        better = "Q6_K" if layer % 2 else "Q4_K"
        tensors |= attention(f"blk.{layer}", 4096, 4096, 1024, "Q4_K", better)
        tensors |= experts(f"blk.{layer}", 8, 4096, 14336, "Q4_K", better)
    metadata = {
        "block_count": 32, "embedding_length": 4096, "feed_forward_length": 14336, "attention.head_count": 32,
        "attention.head_count_kv": 8, "expert_count": 8, "expert_used_count": 2, "context_length": 32768,
    }  # fmt: skip
    facts = facts_of(tmp_path, "llama", metadata, tensors)
    ledger = make_ledger(facts)
    assert (ledger.total.parameters, ledger.active_parameters) == (46_702_792_704, 12_879_925_248)
    half = 16 * (8 * 4096 * 14336 + 1024 * 4096)  # of values and down-projections
    large = 32000 * 4096 + half
    small = 46_702_792_704 - large - 32 * (2 * 4096 + 8 * 4096) - 4096
    assert facts.total_bytes == small // 256 * 144 + large // 256 * 210 + 4 * (32 * 10 * 4096 + 4096)
    assert ledger.active_parameters_no_embedding == 12_748_853_248


def deepseek_v3():
    """Absorbed attention: ``kv_b`` is split by heads into ``k_b`` and ``v_b``."""
    tensors = dict(around(129280, 7168, "Q4_K", "Q6_K"))
    for layer in range(61):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_norm.weight": ("F32", [7168]),
            f"{block}.attn_q_a.weight": ("Q4_K", [1536, 7168]),
            f"{block}.attn_q_a_norm.weight": ("F32", [1536]),
            f"{block}.attn_q_b.weight": ("Q4_K", [128 * 192, 1536]),
            f"{block}.attn_kv_a_mqa.weight": ("Q8_0", [576, 7168]),
            f"{block}.attn_kv_a_norm.weight": ("F32", [512]),
            f"{block}.attn_k_b.weight": ("Q8_0", [128, 512, 128]),
            f"{block}.attn_v_b.weight": ("Q8_0", [128, 128, 512]),
            f"{block}.attn_output.weight": ("Q4_K", [7168, 128 * 128]),
            f"{block}.ffn_norm.weight": ("F32", [7168]),
        }
        if layer < 3:
            tensors |= {f"{block}.ffn_{part}.weight": ("Q4_K", [18432, 7168]) for part in ("gate", "up")}
            tensors[f"{block}.ffn_down.weight"] = ("Q6_K", [7168, 18432])
        else:
            tensors |= experts(block, 256, 7168, 2048, "Q4_K", "Q6_K")
            tensors |= {f"{block}.ffn_{part}_shexp.weight": ("Q4_K", [2048, 7168]) for part in ("gate", "up")}
            tensors[f"{block}.ffn_down_shexp.weight"] = ("Q6_K", [7168, 2048])
            tensors[f"{block}.exp_probs_b.bias"] = ("F32", [256])
    return tensors


LATENT = {
    "attention.head_count": 128, "attention.head_count_kv": 1, "attention.kv_lora_rank": 512,
    "attention.q_lora_rank": 1536, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
}  # fmt: skip
DEEPSEEK = {
    **LATENT, "block_count": 61, "embedding_length": 7168, "feed_forward_length": 18432,
    "expert_feed_forward_length": 2048, "expert_count": 256, "expert_used_count": 8, "expert_shared_count": 1,
    "expert_gating_func": 2, "leading_dense_block_count": 3, "expert_group_count": 8, "context_length": 163840,
}  # fmt: skip


def test_deepseek_v3(tmp_path):
    facts = facts_of(tmp_path, "deepseek2", DEEPSEEK, deepseek_v3())
    ledger = make_ledger(facts)
    assert (ledger.total.parameters, ledger.active_parameters) == (671_026_404_352, 37_552_282_624)
    assert ledger.active_parameters_no_embedding == 36_625_603_584
    assert (facts.family, facts.correction_biases) == ("deepseek_v3", 14_848)
    assert {layer.shared_experts for layer in facts.moe_layers} == {1}
    assert [layer.layer for layer in facts.moe_layers] == list(range(3, 61))
    assert facts.total_bytes == sum(size_of(*kind) for kind in deepseek_v3().values())
