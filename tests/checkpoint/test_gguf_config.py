"""Configs from GGUF metadata: transformers' classes take them, and contradict nothing in them."""

import pytest
from transformers import AutoConfig

from moetool.checkpoint.locate import locate
from moetool.model import families
from tests.stored_gguf import write_gguf

SIZES = {
    "block_count": 4, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
    "attention.head_count_kv": 2, "context_length": 1000,
}  # fmt: skip
ROUTED = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32}
LATENT = {
    "attention.head_count": 4, "attention.head_count_kv": 1, "attention.kv_lora_rank": 512,
    "attention.q_lora_rank": 1536, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
}  # fmt: skip
ANY = {f"blk.{layer}.attn_norm.weight": ("F32", [64]) for layer in range(9)} | {"token_embd.weight": ("F16", [50, 64])}
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
CONFIGS = {
    "llama": ({}, "llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}),
    "llama with experts": (
        {"expert_count": 8, "expert_used_count": 2}, "mixtral", {"num_local_experts": 8, "intermediate_size": 96}
    ),
    "qwen2moe": (
        ROUTED | {"expert_shared_feed_forward_length": 48}, "qwen2_moe",
        {"num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    ),
    "qwen3moe": (ROUTED | {"attention.key_length": 32}, "qwen3_moe", {"head_dim": 32, "num_experts_per_tok": 2}),
    "qwen3next": (
        ROUTED | {"ssm.conv_kernel": 4, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.state_size": 16,
                  "ssm.inner_size": 128, "full_attention_interval": 2}, "qwen3_next",
        {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 32,
         "linear_conv_kernel_dim": 4, "layer_types": [LINEAR, FULL, LINEAR, FULL]},
    ),
    "olmoe": (ROUTED, "olmoe", {"num_experts": 8}),
    "phimoe": (ROUTED, "phimoe", {"num_local_experts": 8}),
    "granitemoe": (ROUTED, "granitemoe", {"num_local_experts": 8}),
    "minimax-m2": (ROUTED, "minimax_m2", {"num_local_experts": 8}),
    "hunyuan-moe": (ROUTED, "hunyuan_v1_moe", {"num_experts": 8}),
    "ernie4_5-moe": (ROUTED, "ernie4_5_moe", {}),
    "dots1": (ROUTED, "dots1", {"n_routed_experts": 8}),
    "gpt-oss": (
        ROUTED | {"attention.sliding_window": 128}, "gpt_oss",
        {"sliding_window": 128, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    ),
    "glm4moe": (
        ROUTED | {"block_count": 5, "nextn_predict_layers": 1, "leading_dense_block_count": 1,
                  "expert_shared_count": 1},
        "glm4_moe", {"n_routed_experts": 8, "first_k_dense_replace": 1, "n_shared_experts": 1},
    ),
    "llama4": (
        ROUTED | {"interleave_moe_layer_step": 2}, "llama4_text",
        {"intermediate_size_mlp": 96, "intermediate_size": 32, "interleave_moe_layer_step": 2,
         "attention_chunk_size": 8192, "layer_types": [*["chunked_attention"] * 3, FULL]},
    ),
    "lfm2moe": (
        ROUTED | {"attention.head_count_kv": [0, 2, 0, 2]}, "lfm2_moe", {"layer_types": ["conv", FULL, "conv", FULL]}
    ),
    "granitehybrid": (
        ROUTED | {"attention.head_count_kv": [0, 0, 0, 2], "ssm.time_step_rank": 8, "ssm.inner_size": 128,
                  "ssm.state_size": 16, "ssm.group_count": 1, "ssm.conv_kernel": 4}, "granitemoehybrid",
        {"layer_types": [LINEAR, LINEAR, LINEAR, FULL], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    ),
    "nemotron_h_moe": (
        ROUTED | {"attention.head_count_kv": [0, 0, 2, 0], "feed_forward_length": [0, 32, 0, 32],
                  "ssm.time_step_rank": 8, "ssm.inner_size": 128, "ssm.group_count": 2}, "nemotron_h",
        {"layers_block_type": [LINEAR, "moe", FULL, "moe"], "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
    ),
    "gemma4": (
        ROUTED | {"attention.sliding_window": 32, "attention.sliding_window_pattern": [True, True, True, False],
                  "attention.key_length": 64, "attention.key_length_swa": 32}, "gemma4_text",
        {"head_dim": 32, "global_head_dim": 64, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]},
    ),
    "deepseek2 of V2": (
        ROUTED | LATENT | {"expert_gating_func": 1}, "deepseek_v2",
        {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
         "num_key_value_heads": 4},
    ),
    "deepseek2 of V3": (ROUTED | LATENT | {"expert_gating_func": 2}, "deepseek_v3", {"n_routed_experts": 8}),
    "deepseek2 before absorption": (
        ROUTED | LATENT | {"attention.key_length": 192, "attention.key_length_mla": 0,
                           "attention.value_length": 128, "attention.value_length_mla": 0}, "deepseek_v2",
        {"qk_nope_head_dim": 128, "v_head_dim": 128},
    ),
    "deepseek2 with an indexer": (
        ROUTED | LATENT | {"attention.indexer.top_k": 2048, "attention.indexer.head_count": 64,
                           "attention.indexer.key_length": 128}, "deepseek_v32",
        {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128},
    ),
    "dbrx": (ROUTED, "dbrx", {"num_experts": 8}),
    "grok": (ROUTED, "grok", {"num_experts": 8}),
    "bailingmoe2": (ROUTED, "bailing_moe_v2", {"num_experts": 8}),
    "a new one": (ROUTED, "a", {"num_experts": 8, "num_experts_per_tok": 2}),
}  # fmt: skip
OWN_NAMES = ("dbrx", "grok", "bailing_moe_v2", "a")
"""Not in transformers, or (dbrx) with nested keys."""


@pytest.mark.parametrize("case", CONFIGS)
def test_metadata_in_the_words_of_transformers(tmp_path, case):
    metadata, family, expected = CONFIGS[case]
    path = write_gguf(tmp_path / "m.gguf", case.split(" ", 1)[0], SIZES | metadata, ANY)
    config = locate(str(path)).config
    common = {"model_type": family, "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 50,
              "max_position_embeddings": 1000, "tie_word_embeddings": True}  # fmt: skip
    assert {key: config.get(key) for key in common | expected} == common | expected
    assert families.per_layer(families.find(config, *families.EXPERTS), 0) == (
        8 if "expert_count" in metadata else None
    )
    if family in OWN_NAMES:
        return
    built = AutoConfig.for_model(**config).to_dict()
    # the class may fill in what is missing, but contradict nothing of what it knows by that name
    kept = {key: built[key] for key in common | expected if key in built}
    assert kept == {key: config[key] for key in kept}
    assert families.find(built, *families.EXPERTS) == (8 if "expert_count" in metadata else None)
    assert families.find(built, *families.EXPERTS_PER_TOKEN) == (2 if "expert_count" in metadata else None)
