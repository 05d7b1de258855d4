"""Published models by name, for counting them offline: a name enters, a Checkpoint of planned tensors leaves.

A table of facts, hence its length. Configs hold what counts and caches depend on, under transformers' keys. Figures are
those that the publisher wrote, whatever the convention: ``accounting.conventions`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from moetool.model.blueprint import blueprint_tensors


@dataclass(frozen=True, slots=True)
class Preset:
    """A published model, or the text decoder of one."""

    name: str
    hub_id: str
    config: Mapping[str, Any]
    """Facts under transformers' keys; ``quantization_config`` where the published weights are quantised."""
    published_total: str | None
    """Parameters as the publisher wrote them (``46.7B``); None where the publisher wrote none."""
    published_active: str | None
    """Active parameters per token, likewise."""
    source: str
    """Where the figures are written."""


# fmt: off
_FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
_MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
_UNTIED = {"tie_word_embeddings": False}
_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_DEEPSEEK = {**_LATENT, **_UNTIED, "attention_bias": False, "max_position_embeddings": 163840}
_DEEPSEEK_V2 = {
    **_DEEPSEEK, "model_type": "deepseek_v2", "vocab_size": 102400, "first_k_dense_replace": 1, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "norm_topk_prob": False, "scoring_func": "softmax",
}
_DEEPSEEK_V3 = {
    **_DEEPSEEK, **_FP8, "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "num_nextn_predict_layers": 1,
}
_MIXTRAL = {
    **_UNTIED, "model_type": "mixtral", "vocab_size": 32000, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "sliding_window": None,
}
_QWEN = {
    **_UNTIED, "vocab_size": 151936, "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False,
}
_QWEN2 = {**_QWEN, "model_type": "qwen2_moe", "norm_topk_prob": False}
_QWEN3 = {
    **_QWEN, "model_type": "qwen3_moe", "attention_bias": False, "head_dim": 128, "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 40960,
}
_DELTA_NET = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "full_attention_interval": 4,
}
_LLAMA4 = {
    "model_type": "llama4_text", "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192,
    "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
    "head_dim": 128, "attention_bias": False, "attention_chunk_size": 8192, "num_experts_per_tok": 1,
}
_GPT_OSS = {
    **_MXFP4, **_UNTIED, "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True, "sliding_window": 128,
    "num_experts_per_tok": 4, "max_position_embeddings": 131072,
}
_GLM = {
    **_UNTIED, "model_type": "glm4_moe", "vocab_size": 151552, "num_attention_heads": 96, "num_key_value_heads": 8,
    "head_dim": 128, "attention_bias": True, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True, "max_position_embeddings": 131072, "num_nextn_predict_layers": 1,
}

_PRESETS = (
    Preset("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", {
        **_MIXTRAL, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 32768,
    }, "46.7B", "12.9B", "Mistral AI, blog post Mixtral of experts, December 2023"),
    Preset("mixtral-8x22b", "mistralai/Mixtral-8x22B-v0.1", {
        **_MIXTRAL, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56,
        "num_attention_heads": 48, "max_position_embeddings": 65536,
    }, "141B", "39B", "Mistral AI, blog post Cheaper, Better, Faster, Stronger, April 2024"),
    Preset("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite", {
        **_DEEPSEEK_V2, "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None,
        "n_routed_experts": 64, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0,
    }, "15.7B", "2.4B", "arXiv:2405.04434"),
    Preset("deepseek-v2", "deepseek-ai/DeepSeek-V2", {
        **_DEEPSEEK_V2, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "n_routed_experts": 160, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 16.0,
    }, "236B", "21B", "arXiv:2405.04434"),
    Preset("deepseek-v3", "deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3, "671B", "37B", "arXiv:2412.19437"),
    Preset("deepseek-v3.2", "deepseek-ai/DeepSeek-V3.2", {
        **_DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
    }, None, None, "arXiv:2512.02556, which gives no figures of its own"),
    Preset("kimi-k2", "moonshotai/Kimi-K2-Instruct", {
        **_DEEPSEEK_V3, "model_type": "kimi_k2", "vocab_size": 163840, "first_k_dense_replace": 1,
        "num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 2.827, "max_position_embeddings": 131072, "num_nextn_predict_layers": 0,
    }, "1T", "32B", "model card of Kimi-K2-Instruct"),
    Preset("qwen3-235b-a22b", "Qwen/Qwen3-235B-A22B", {
        **_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 94, "num_attention_heads": 64,
    }, "235B", "22B", "arXiv:2505.09388"),
    Preset("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", {
        **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32,
    }, "30.5B", "3.3B", "model card of Qwen3-30B-A3B"),
    Preset("qwen3-next-80b-a3b", "Qwen/Qwen3-Next-80B-A3B-Instruct", {
        **_QWEN, **_DELTA_NET, "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512,
        "num_experts_per_tok": 10, "norm_topk_prob": True, "max_position_embeddings": 262144,
    }, "80B", "3B", "model card of Qwen3-Next-80B-A3B-Instruct"),
    Preset("qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", {
        **_UNTIED, **_DELTA_NET, "model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 2048,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_hidden_layers": 40,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "attention_bias": False,
        "num_experts": 256, "num_experts_per_tok": 8, "max_position_embeddings": 262144,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
    }, "35B", "3B", "model card of Qwen3.5-35B-A3B (the text decoder alone is counted)"),
    Preset("qwen2-57b-a14b", "Qwen/Qwen2-57B-A14B", {
        **_QWEN2, "hidden_size": 3584, "intermediate_size": 18944, "moe_intermediate_size": 2560,
        "shared_expert_intermediate_size": 20480, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "num_experts": 64, "num_experts_per_tok": 8, "max_position_embeddings": 131072,
    }, "57B", "14B", "arXiv:2407.10671"),
    Preset("qwen1.5-moe-a2.7b", "Qwen/Qwen1.5-MoE-A2.7B", {
        **_QWEN2, "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
    }, "14.3B", "2.7B", "model card of Qwen1.5-MoE-A2.7B"),
    Preset("llama-4-scout", "meta-llama/Llama-4-Scout-17B-16E", {
        **_LLAMA4, "num_local_experts": 16, "interleave_moe_layer_step": 1, "use_qk_norm": True,
    }, "109B", "17B", "model card of Llama 4 (the text decoder alone is counted)"),
    Preset("llama-4-maverick", "meta-llama/Llama-4-Maverick-17B-128E", {
        **_LLAMA4, "num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False,
    }, "400B", "17B", "model card of Llama 4 (the text decoder alone is counted)"),
    Preset("gpt-oss-20b", "openai/gpt-oss-20b", {
        **_GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    }, "20.91B", "3.61B", "arXiv:2508.10925"),
    Preset("gpt-oss-120b", "openai/gpt-oss-120b", {
        **_GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
    }, "116.83B", "5.13B", "arXiv:2508.10925"),
    Preset("olmoe-1b-7b", "allenai/OLMoE-1B-7B-0125", {
        **_UNTIED, "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "attention_bias": False,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "max_position_embeddings": 4096,
    }, "6.9B", "1.3B", "arXiv:2409.02060"),
    Preset("glm-4.5", "zai-org/GLM-4.5", {
        **_GLM, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 92, "first_k_dense_replace": 3, "n_routed_experts": 160, "use_qk_norm": True,
        "routed_scaling_factor": 2.5,
    }, "355B", "32B", "arXiv:2508.06471"),
    Preset("glm-4.5-air", "zai-org/GLM-4.5-Air", {
        **_GLM, "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 46, "first_k_dense_replace": 1, "n_routed_experts": 128, "use_qk_norm": False,
        "routed_scaling_factor": 1.0,
    }, "106B", "12B", "arXiv:2508.06471"),
    Preset("minimax-m2", "MiniMaxAI/MiniMax-M2", {
        **_UNTIED, **_FP8, "model_type": "minimax_m2", "vocab_size": 200064, "hidden_size": 3072,
        "intermediate_size": 1536, "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8,
        "head_dim": 128, "rotary_dim": 64, "num_local_experts": 256, "num_experts_per_tok": 8,
        "scoring_func": "sigmoid", "max_position_embeddings": 196608,
    }, "230B", "10B", "model card of MiniMax-M2"),
    Preset("dbrx", "databricks/dbrx-base", {
        **_UNTIED, "model_type": "dbrx", "vocab_size": 100352, "d_model": 6144, "n_layers": 40, "n_heads": 48,
        "max_seq_len": 32768, "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    }, "132B", "36B", "Databricks, blog post Introducing DBRX, March 2024"),
    Preset("phi-3.5-moe", "microsoft/Phi-3.5-MoE-instruct", {
        **_UNTIED, "model_type": "phimoe", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "attention_bias": True,
        "lm_head_bias": True, "num_local_experts": 16, "num_experts_per_tok": 2, "sliding_window": 131072,
        "max_position_embeddings": 131072,
    }, "42B", "6.6B", "Microsoft, blog post on the Phi-3.5 models, August 2024"),
    Preset("hunyuan-a13b", "tencent/Hunyuan-A13B-Instruct", {
        "model_type": "hunyuan_v1_moe", "tie_word_embeddings": True, "vocab_size": 128167, "hidden_size": 4096,
        "intermediate_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "attention_bias": False, "num_experts": 64, "moe_topk": 8, "num_shared_expert": 1,
        "norm_topk_prob": True, "max_position_embeddings": 32768,
    }, "80B", "13B", "model card of Hunyuan-A13B-Instruct"),
    Preset("ernie-4.5-21b-a3b", "baidu/ERNIE-4.5-21B-A3B-PT", {
        "model_type": "ernie4_5_moe", "tie_word_embeddings": True, "vocab_size": 103424, "hidden_size": 2560,
        "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 28,
        "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 128, "use_bias": False,
        "moe_num_experts": 64, "moe_k": 6, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_end_index": 27, "moe_layer_interval": 1, "max_position_embeddings": 131072,
    }, "21B", "3B", "model card of ERNIE-4.5-21B-A3B-PT"),
    Preset("nemotron-3-nano", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {
        **_UNTIED, "model_type": "nemotron_h", "vocab_size": 131072, "hidden_size": 2688, "intermediate_size": 1856,
        "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712, "n_routed_experts": 128,
        "n_shared_experts": 1, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
        "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
        "chunk_size": 128, "use_conv_bias": True, "use_bias": False, "mlp_bias": False, "num_hidden_layers": 52,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "max_position_embeddings": 262144, "sliding_window": None,
    }, "31.6B", "3.2B", "NVIDIA, technical report on Nemotron 3 Nano, December 2025"),
    Preset("granite-3.1-3b-a800m", "ibm-granite/granite-3.1-3b-a800m-base", {
        "model_type": "granitemoe", "tie_word_embeddings": True, "vocab_size": 49155, "hidden_size": 1536,
        "intermediate_size": 512, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
        "attention_bias": False, "num_local_experts": 40, "num_experts_per_tok": 8, "max_position_embeddings": 131072,
    }, "3.3B", "800M", "model card of granite-3.1-3b-a800m-base"),
    Preset("gemma-4-26b-a4b", "google/gemma-4-26B-A4B", {
        "model_type": "gemma4_text", "tie_word_embeddings": True, "vocab_size": 262144, "hidden_size": 2816,
        "intermediate_size": 2112, "moe_intermediate_size": 704, "num_hidden_layers": 30, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "num_global_key_value_heads": 2, "global_head_dim": 512,
        "attention_k_eq_v": True, "attention_bias": False, "enable_moe_block": True, "num_experts": 128,
        "top_k_experts": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
        "sliding_window": 1024, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "max_position_embeddings": 262144,
    }, "25.2B", "3.8B", "model card of Gemma 4 (the text decoder alone is counted)"),
    Preset("jamba-v0.1", "ai21labs/Jamba-v0.1", {
        **_UNTIED, "model_type": "jamba", "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_experts": 16,
        "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 8,
        "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256,
        "mamba_conv_bias": True, "mamba_proj_bias": False, "max_position_embeddings": 262144,
    }, "52B", "12B", "arXiv:2403.19887"),
)
# fmt: on
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _PRESETS}
"""By name."""


def preset_checkpoint(name: str) -> Checkpoint:
    """A preset's config and the tensors that transformers would have for it, in bfloat16, without weights.

    Raises MoetoolError where there is no preset of this name.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise MoetoolError(f"there is no preset {name!r}", "moetool models lists them")
    tensors = blueprint_tensors(preset.config)
    assert tensors is not None, name  # a test builds every preset
    return Checkpoint(name, None, deepcopy(dict(preset.config)), tensors, None)
