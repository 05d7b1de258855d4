"""Tiny random checkpoints of real families, made by transformers and saved in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT_ATTENTION = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "deepseek_v2": {**DEEPSEEK, **LATENT_ATTENTION, "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**DEEPSEEK, **LATENT_ATTENTION, "q_lora_rank": 16},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 16,
    },
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "glm4_moe": {**DEEPSEEK, "n_group": 2, "topk_group": 1, "head_dim": 8},
    "dots1": {**DEEPSEEK, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "minimax": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "block_size": 16},
    "minimax_m2": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "rotary_dim": 8},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 8},
    "ernie4_5_moe": {
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
        "moe_num_shared_experts": 1,
    },
    "flex_olmo": {"num_experts": 8, "num_experts_per_tok": 3},
    "lfm2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
}
EIGHT_OF_THREE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 8}
LINEAR_ATTENTION = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MAMBA = {"num_hidden_layers": 4, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 16, "use_mamba_kernels": False}
FAMILIES |= {
    "qwen3_next": {
        **EIGHT_OF_THREE,
        **LINEAR_ATTENTION,
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 16,
    },
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 8,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 300,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "granitemoeshared": {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "granitemoehybrid": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
        "mamba_expand": 2,
    },
    "nemotron_h": {
        **MAMBA,
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "kimi_linear": {
        **LATENT_ATTENTION,
        **DENSE_FIRST,
        "q_lora_rank": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "exaone_moe": {**EIGHT_OF_THREE, **SLIDING, **DENSE_FIRST, "num_shared_experts": 1},
    "solar_open": {**DEEPSEEK, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "axk1": {**DEEPSEEK, **LATENT_ATTENTION, **DENSE_FIRST, "q_lora_rank": 16},
    "afmoe": {**EIGHT_OF_THREE, **SLIDING, "num_dense_layers": 1, "num_shared_experts": 1},
    "cohere2_moe": {**SLIDING, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 8},
    "aria_text": {"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 1},
    "laguna": {**EIGHT_OF_THREE, **SLIDING, **DENSE_FIRST, "shared_expert_intermediate_size": 16},
    "hy_v3": {**EIGHT_OF_THREE, **DENSE_FIRST, "num_shared_experts": 1},
    "glm4_moe_lite": {
        **DEEPSEEK,
        **LATENT_ATTENTION,
        **DENSE_FIRST,
        "q_lora_rank": 16,
        "n_group": 1,
        "topk_group": 1,
    },
    "deepseek_v32": {
        **DEEPSEEK,
        **LATENT_ATTENTION,
        "q_lora_rank": 16,
        "index_topk": 8,
        "index_n_heads": 2,
        "index_head_dim": 16,
    },
}
ROUTER_PARTS = ("gate.weight", "router.weight", "router.layer.weight")
BIAS_PARTS = ("correction_bias", "expert_bias")


def make_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A random model whose routers have standard deviation 1 and whose correction biases are not zero."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(ROUTER_PARTS):
                tensor.normal_(0, 1)
            elif name.endswith(BIAS_PARTS):
                tensor.normal_(0, 0.3)
    return model.eval()


def make_tokenizer(begin: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, and a beginning-of-sequence token."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {piece: index + 3 for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_checkpoint(folder: Path, family: str = "mixtral", **options: Any) -> Any:
    """Save a tiny model with its tokenizer and return it; ``max_shard_size`` splits it into several files."""
    shard_size = options.pop("max_shard_size", "5GB")
    model = make_model(family, **options)
    model.save_pretrained(folder, max_shard_size=shard_size)
    make_tokenizer().save_pretrained(folder)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def write_corpus(folder: Path, domains: int = 2, documents: int = 6) -> list[str]:
    """JSONL files of short documents of different lengths, as ``NAME=FILE`` arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = []
    for domain in range(domains):
        path = folder / f"domain{domain}.jsonl"
        words = ["alpha", "beta;", "(x+1)", "Gamma", "42", "ünï", "end."][domain:]
        texts = [" ".join(words[(i + j) % len(words)] for j in range(5 + 3 * i)) for i in range(documents)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        arguments.append(f"d{domain}={path}")
    return arguments
