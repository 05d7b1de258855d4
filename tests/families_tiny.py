"""Tiny configs of the Mixture-of-Experts families that tests/checkpoints.py has none of."""

from __future__ import annotations

from typing import Any

from tests.checkpoints import COMMON, DEEPSEEK, DENSE_FIRST, EIGHT_OF_THREE, FAMILIES, LATENT_ATTENTION, SLIDING
from tests.checkpoints import LINEAR_ATTENTION as DELTA_NET

LATENT = {**DEEPSEEK, **LATENT_ATTENTION, "q_lora_rank": 16}
INDEXER = {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16}
FIVE_LAYERS = {"num_hidden_layers": 5, "mlp_layer_types": ["dense", *["sparse"] * 4]}
SHARED_INDEXER = {"indexer_types": ["full", "full", "shared", "full", "shared"]}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {"rope_parameters": {**ROTARY, "mrope_section": [2, 1, 1]}}

TEXT: dict[str, dict[str, Any]] = {
    "axk2": {**LATENT, **INDEXER, **FIVE_LAYERS, "gated_norm_rank": 4},
    "bailing_hybrid": {
        **LATENT,
        "num_experts": 8,
        "num_hidden_layers": 4,
        "layer_group_size": 2,
        "head_dim": 8,
        "num_mtp_layers": 0,
    },
    "beam": {
        **EIGHT_OF_THREE,
        "n_group": 4,
        "topk_group": 2,
        "num_hidden_layers": 4,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", *["sparse"] * 3],
    },
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 3},
    },
    "deepseek_v4": {
        "head_dim": 16,
        "num_hidden_layers": 5,
        "num_key_value_heads": 1,
        "sliding_window": 9,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "o_lora_rank": 16,
        "o_groups": 2,
        "index_n_heads": 3,
        "index_head_dim": 8,
        "index_topk": 4,
        "qk_rope_head_dim": 8,
        "layer_types": ["sliding_attention", *["heavily_compressed_attention", "compressed_sparse_attention"] * 2],
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 3},
    "flint": {
        **EIGHT_OF_THREE,
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 16,
        "sliding_window": 16,
        "mlp_only_layers": [0],
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    "glm_moe_dsa": {**LATENT, **INDEXER, **FIVE_LAYERS, **SHARED_INDEXER},
    "granitemoe_swa": {**SLIDING, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "hy_v4": {**LATENT, **INDEXER, **FIVE_LAYERS, **SHARED_INDEXER},
    "jetmoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "kv_channels": 8},
    "kolibri1": {**EIGHT_OF_THREE, **SLIDING, "num_local_experts": 8, "shared_expert_intermediate_size": 16},
    "longcat_flash": {
        **LATENT_ATTENTION,
        "num_hidden_layers": 6,
        "ffn_hidden_size": 48,
        "q_lora_rank": 16,
        "head_dim": 8,
        "moe_topk": 3,
        "n_routed_experts": 8,
        "zero_expert_num": 4,
        "expert_ffn_hidden_size": 16,
    },
    "mellum": {**EIGHT_OF_THREE, **SLIDING, **DENSE_FIRST, "num_local_experts": 8},
    "mimo_v2_flash": {**DEEPSEEK, **SLIDING, **DENSE_FIRST, "head_dim": 12, "v_head_dim": 8},
    "mistral4": {**LATENT},
    "nllb-moe": {
        "d_model": 32,
        "num_hidden_layers": 4,
        "num_experts": 8,
        "expert_capacity": 64,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "decoder_start_token_id": 2,
    },
    "openai_privacy_filter": {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 8, "sliding_window": 8},
    "switch_transformers": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_hidden_layers": 4,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "num_experts": 8,
    },
    "zaya": {
        "num_hidden_layers": 4,
        "num_experts": 8,
        "head_dim": 8,
        "router_hidden_size": 16,
        "moe_intermediate_size": 16,
        "sliding_window": 16,
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
    },
}

VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "mlp_dim": 24,
    "window_size": 4,
    "global_attn_indexes": [1],
}
SPEECH = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

ARIA = {"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 1}
OCR = {**DEEPSEEK, **DENSE_FIRST, "num_key_value_heads": 4, "topk_method": "group_limited_greedy"}
GEMMA = {**FAMILIES["gemma4_text"]}
DIFFUSION = {key: value for key, value in GEMMA.items() if "per_layer" not in key and key != "enable_moe_block"}
QWEN = {**EIGHT_OF_THREE, **MROPE, "mlp_only_layers": [1]}
QWEN_HYBRID = {
    **EIGHT_OF_THREE,
    **DELTA_NET,
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 16,
    "rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 1.0},
}
THINKER = {
    "text_config": {**COMMON, **QWEN},
    "vision_config": {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    "audio_config": {
        "num_mel_bins": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "d_model": 16,
        "output_dim": 32,
        "max_source_positions": 64,
        "downsample_hidden_size": 8,
    },
}

NESTED: dict[str, dict[str, Any]] = {
    "aria": {
        "text_config": {**COMMON, **ARIA},
        "vision_config": {"model_type": "idefics3_vision", **TOWER, "image_size": 16},
        "projector_patch_to_query_dict": {16: 4},
    },
    "deepseek_ocr2": {
        "text_config": {**COMMON, **OCR},
        "vision_config": {
            "sam_config": {**SAM, "downsample_channels": [8, 16]},
            "encoder_config": {**TOWER, "num_key_value_heads": 2},
        },
    },
    "diffusion_gemma": {
        "text_config": {**COMMON, **DIFFUSION},
        "vision_config": {**TOWER, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64},
        "canvas_length": 16,
    },
    "dots3_note": {
        "text_config": {
            **COMMON,
            **LATENT,
            **INDEXER,
            **FIVE_LAYERS,
            "head_dim": 16,
            "shared_experts_intermediate_size": 16,
            "sliding_window": 16,
            "layer_types": ["indexed_attention", "sliding_attention"] * 2 + ["indexed_attention"],
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 16,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 16,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        },
        "vision_config": {
            **TOWER,
            "adapter_in_dim": 16,
            "adapter_out_dim": 32,
            "moe_intermediate_size": 8,
            "pyramid_num_routed": [-1, 8],
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "feature_size": 16,
            "downsample_hidden_size": 8,
            "adapter_input_size": 16,
            "adapter_out_dim": 32,
        },
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            **COMMON,
            "num_hidden_layers": 4,
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_intermediate_size": [16, 8],
            "moe_num_shared_experts": 1,
            "rope_parameters": {**ROTARY, "mrope_section": [1, 1, 2]},
        },
        "vision_config": {key: value for key, value in VISION.items() if "temporal" not in key and key[:3] != "out"},
    },
    "gemma4": {
        "text_config": {**COMMON, **GEMMA},
        "vision_config": {**TOWER, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64},
    },
    "glm4v_moe": {
        "text_config": {
            **COMMON,
            **DEEPSEEK,
            "rope_parameters": {**ROTARY, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0},
        },
        "vision_config": {**VISION, "image_size": 16},
    },
    "glm5_next": {
        "text_config": {
            **COMMON,
            **LATENT,
            **INDEXER,
            "qk_rope_head_dim": 0,
            "qk_nope_head_dim": 16,
            "index_kpool": 4,
            "layer_types": ["linear_attention", *["indexed_attention"] * 2] * 2,
            "num_hidden_layers": 6,
            "mlp_layer_types": ["dense", *["sparse"] * 5],
            "indexer_types": ["full", "full", "shared"] * 2,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "hc_mult": 2,
        },
        "vision_config": {**VISION, "image_size": 16, "projection_intermediate_size": 24},
    },
    "inkling_mm_model": {
        "text_config": {
            **COMMON,
            "head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 16,
            "d_rel": 4,
            "rel_extent": 32,
            "num_hidden_layers": 4,
            "layer_types": ["hybrid_sliding", "hybrid"] * 2,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
            "moe_intermediate_size": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
        },
        "vision_config": {
            "patch_size": 2,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
        },
        "audio_config": {"n_mel_bins": 8, "mel_vocab_size": 16},
    },
    "inkling2": {
        "text_config": {
            **COMMON,
            "head_dim": 8,
            "unpadded_vocab_size": 290,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 16,
            "d_rel": 4,
            "rel_extent": 32,
            "num_hidden_layers": 4,
            "layer_types": ["hybrid_sliding", "hybrid"] * 2,
            "moe_intermediate_size": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_layers_per_attn_res_block": 2,
        },
        "vision_config": {**TOWER, "projection_hidden_dim": 16, "text_hidden_size": 32, "posemb_grid_size": 4},
    },
    "llama4": {
        "text_config": {
            **COMMON,
            "head_dim": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "attention_chunk_size": 9,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 48,
            "moe_layers": [0, 2, 3],
        },
        "vision_config": {
            **TOWER,
            "image_size": 16,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    },
    "minimax_m3_vl": {
        "text_config": {
            **COMMON,
            "head_dim": 8,
            "intermediate_size": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 4,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 16,
            "rotary_dim": 4,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 8,
            "index_topk_blocks": 2,
        },
        "vision_config": {**TOWER, "image_size": 16},
        "projector_hidden_size": 16,
    },
    "mistral_large4": {
        "text_config": {
            **COMMON,
            **LATENT,
            **INDEXER,
            **FIVE_LAYERS,
            **SHARED_INDEXER,
            "no_rope_layers": [1, 0, 1, 0, 1],
            "kv_source_layers": [0, 1, 0, 1, 4],
        },
        "vision_config": {**TOWER, "image_size": 16},
    },
    "muse_spark": {
        "text_config": {
            **COMMON,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "moe_intermediate_size": 16,
            "moe_hidden_size": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
        },
        "vision_config": {**TOWER, "pos_emb_height": 4, "pos_emb_width": 4},
        "audio_config": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "out_hidden_size": 32},
        "out_hidden_size": 32,
        "projector_hidden_size": 16,
    },
    "qwen3_omni_moe_thinker": THINKER,
    "qwen3_vl_moe": {
        "text_config": {**COMMON, **QWEN},
        "vision_config": {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_5_moe": {
        "text_config": {**COMMON, **QWEN_HYBRID},
        "vision_config": {**VISION, "num_position_embeddings": 16},
    },
    "qwen4_exp": {
        "text_config": {
            **COMMON,
            **QWEN_HYBRID,
            "hc_count": 2,
            "hc_lowrank": 8,
            "ple_layer_ids": [1, 3],
            "ple_embed_dim": 32,
            "ngram_size": 3,
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 50,
            "make_ngram_vocab_size_divisible_by": 4,
            "split_ngram_parts": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
        },
        "vision_config": {**VISION, "num_position_embeddings": 16},
    },
    "step3p7": {
        "text_config": {
            **COMMON,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "share_expert_dim": 16,
            "sliding_window": 16,
            "num_sliding_attention_heads": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
        },
        "vision_config": {**TOWER, "image_size": 16, "mlp_ratio": 1.5, "max_position_embeddings": 16},
    },
    "unlimited_ocr": {
        "text_config": {**COMMON, **OCR, "sliding_window": 16},
        "vision_config": {
            "sam_config": {**SAM, "downsample_channels": [8, 16]},
            "encoder_config": {**TOWER, "image_size": 16},
        },
    },
    "qwen3_omni_moe": {
        "thinker_config": THINKER,
        "talker_config": {
            "text_config": {
                **COMMON,
                **EIGHT_OF_THREE,
                **MROPE,
                "num_local_experts": 8,
                "shared_expert_intermediate_size": 16,
            },
            "code_predictor_config": {**COMMON, "head_dim": 8, "num_code_groups": 4},
            "thinker_hidden_size": 32,
            "accept_hidden_layer": 1,
            "num_code_groups": 4,
            "spatial_merge_size": 2,
        },
        "code2wav_config": {
            "codebook_size": 32,
            "hidden_size": 16,
            "max_position_embeddings": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_quantizers": 4,
            "upsample_rates": [2, 2],
            "upsampling_ratios": [2],
            "decoder_dim": 16,
        },
    },
    "kimi_k25": {
        "text_config": {"model_type": "deepseek_v3", **COMMON, **FAMILIES["deepseek_v3"]},
        "vision_config": {**TOWER, "pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2},
        "projection_hidden_size": 16,
    },
    "nemotron_h_omni": {
        "text_config": {"model_type": "nemotron_h", **COMMON, **FAMILIES["nemotron_h"]},
        "vision_config": {
            "model_type": "radio",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "image_size": 16,
            "max_img_size": 32,
            "video_temporal_patch_size": 2,
        },
        "vision_hidden_size": 16,
        "projector_hidden_size": 16,
    },
    "nemo_speechlm": {
        "text_config": {"model_type": "nemotron_h", **COMMON, **FAMILIES["nemotron_h"]},
        "audio_config": {
            "asr_config": SPEECH,
            "diarization_config": {
                "model_type": "nemotron3_diarization",
                "audio_config": SPEECH,
                "head_config": {"hidden_size": 8, "audio_hidden_size": 16},
            },
        },
        "word_timestamp_config": {**SPEECH, "vocab_size": 20, "blank_token_id": 19},
    },
}
"""Models of several towers, whole as they are published."""

TEXT |= {
    f"{name}_text": NESTED[name]["text_config"]
    for name in (
        "dots3_note",
        "glm4v_moe",
        "glm5_next",
        "inkling2",
        "llama4",
        "minimax_m3_vl",
        "mistral_large4",
        "muse_spark",
        "qwen3_5_moe",
        "qwen3_vl_moe",
        "qwen4_exp",
    )
}
TEXT["inkling_text"] = NESTED["inkling_mm_model"]["text_config"]

DEEPER = {
    "dots1": {**FAMILIES["dots1"], "sliding_window": 16, "max_window_layers": 1},
    "jamba": {**FAMILIES["jamba"], "num_hidden_layers": 4},
    "kimi_linear": {
        **FAMILIES["kimi_linear"],
        "num_hidden_layers": 4,
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}
"""Families of tests/checkpoints.py of which its configs lack a kind of layer, or have one MoE layer only."""
SHARING = {
    **GEMMA,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "axk2, no groups": ("axk2", {**TEXT["axk2"], "n_group": None, "topk_group": None}),
    "cohere2_moe, sigmoid, shared": (
        "cohere2_moe",
        {**FAMILIES["cohere2_moe"], "expert_selection_fn": "sigmoid", "norm_topk_prob": True, "num_shared_experts": 1},
    ),
    "cohere2_moe, dense first": ("cohere2_moe", {**FAMILIES["cohere2_moe"], **DENSE_FIRST}),
    "deepseek_v2, greedy": ("deepseek_v2", {**FAMILIES["deepseek_v2"], "topk_method": "greedy"}),
    "deepseek_v4, hashed only": ("deepseek_v4", {**TEXT["deepseek_v4"], "mlp_layer_types": ["hash_moe"] * 5}),
    "gemma4_text, keys are values": (
        "gemma4_text",
        {**GEMMA, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    "gemma4_text, per-layer inputs": ("gemma4_text", {**GEMMA, "hidden_size_per_layer_input": 8}),
    "gemma4_text, shared KV and per-layer inputs": ("gemma4_text", {**SHARING, "hidden_size_per_layer_input": 8}),
    "glm_moe_dsa, every layer indexes": ("glm_moe_dsa", {**TEXT["glm_moe_dsa"], "indexer_types": ["full"] * 5}),
    "hunyuan_v1_moe, numbers by layer": (
        "hunyuan_v1_moe",
        {**FAMILIES["hunyuan_v1_moe"], "moe_topk": [1, 2, 3]},
    ),
    "lfm2_moe, no bias": ("lfm2_moe", {**FAMILIES["lfm2_moe"], "use_expert_bias": False}),
    "llama4_text, one expert": ("llama4_text", {**TEXT["llama4_text"], "num_experts_per_tok": 1}),
    "longcat_flash, no empty experts": ("longcat_flash", {**TEXT["longcat_flash"], "zero_expert_num": 0}),
    "nemotron_h, latent": ("nemotron_h", {**FAMILIES["nemotron_h"], "moe_latent_size": 16}),
    "nllb-moe, drops": ("nllb-moe", {**TEXT["nllb-moe"], "moe_eval_capacity_token_fraction": 0.1}),
    "qwen2_moe, sliding": (
        "qwen2_moe",
        {**FAMILIES["qwen2_moe"], "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    ),
    "qwen4_exp_text, plain": ("qwen4_exp_text", {**TEXT["qwen4_exp_text"], "ple_layer_ids": None}),
    "switch_transformers, drops": ("switch_transformers", {**TEXT["switch_transformers"], "expert_capacity": 4}),
}
"""Other kinds of layers of the same families, as {what: (model type, settings)}."""
