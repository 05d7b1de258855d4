"""What a GGUF file says of its model, in transformers' words: enters metadata and tensors, leaves a config.

Keys and their meaning: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp, which computes some of
them (the layers with a window, MLA as attention to one wide head) where transformers names the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetool.checkpoint.types import TensorInfo
from moetool.errors import MoetoolError

_FAMILIES = {
    "bailingmoe": "bailing_moe",
    "bailingmoe2": "bailing_moe_v2",
    "command-r": "cohere",
    "dbrx": "dbrx",
    "deepseek32": "deepseek_v32",
    "ernie4_5-moe": "ernie4_5_moe",
    "exaone-moe": "exaone_moe",
    "falcon-h1": "falcon_h1",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "glm-dsa": "glm_moe_dsa",
    "glm4moe": "glm4_moe",
    "gpt-oss": "gpt_oss",
    "granitehybrid": "granitemoehybrid",
    "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe",
    "kimi-linear": "kimi_linear",
    "lfm2moe": "lfm2_moe",
    "llada-moe": "llada_moe",
    "llama4": "llama4_text",
    "mimo2": "mimo_v2_flash",
    "minimax-m2": "minimax_m2",
    "nemotron_h_moe": "nemotron_h",
    "qwen2moe": "qwen2_moe",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "qwen3vl": "qwen3_vl_text",
    "qwen3vlmoe": "qwen3_vl_moe_text",
    "step35": "step3p5",
}
"""Architectures of llama.cpp that transformers calls otherwise. A GGUF file holds the text decoder, so that models with
towers get the name of their decoder's config (``llama4_text``)."""

_KEYS = {
    "embedding_length": "hidden_size",
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
    "full_attention_interval": "full_attention_interval",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.sliding_window": "sliding_window",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
}
_ZERO_IS_NONE = ("num_experts", "num_experts_per_tok", "sliding_window", "q_lora_rank", "kv_lora_rank")
_STATE_KEYS = {
    "qwen": {"conv_kernel": "linear_conv_kernel_dim", "group_count": "linear_num_key_heads",
             "time_step_rank": "linear_num_value_heads", "state_size": "linear_key_head_dim"},
    "nemotron": {"conv_kernel": "conv_kernel", "group_count": "n_groups", "time_step_rank": "mamba_num_heads",
                 "state_size": "ssm_state_size"},
    "granite": {"conv_kernel": "mamba_d_conv", "group_count": "mamba_n_groups", "time_step_rank": "mamba_n_heads",
                "state_size": "mamba_d_state"},
    "jamba": {"conv_kernel": "mamba_d_conv", "time_step_rank": "mamba_dt_rank", "state_size": "mamba_d_state"},
}  # fmt: skip
"""Keys under ``ssm.`` by the begin of the family's name."""

_LOCAL = frozenset(
    {"mixtral", "gpt_oss", "phimoe", "granitemoe", "granitemoehybrid", "granitemoeshared", "llama4_text", "minimax_m2"}
)
_ROUTED = frozenset(
    {"deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe", "glm_moe_dsa", "dots1", "nemotron_h"}
) | {"mimo_v2_flash"}
"""Families that say ``num_local_experts`` and ``n_routed_experts`` where others say ``num_experts``."""

_WINDOW_PERIODS = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "llama4": 4,
    "smallthinker": 4,
}  # fmt: skip
"""Every so many layers one sees everything, where the file does not say (llama.cpp's own numbers)."""
_LLAMA4_CHUNK = 8192
_SIGMOID = 2
"""llama.cpp's number for it in ``expert_gating_func``."""
_GATING = {1: "softmax", _SIGMOID: "sigmoid"}


class _Metadata:
    """The metadata of one architecture; what is not a number of the right kind raises MoetoolError."""

    def __init__(self, where: str, metadata: Mapping[str, Any]) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not 0 < len(architecture) <= 100 or not architecture.isprintable():
            raise MoetoolError(
                f"{where}: general.architecture is {str(architecture)[:80]!r}, not the name of an architecture",
                "it may be no model, or the file is damaged",
            )
        self.where, self.metadata, self.architecture = where, metadata, architecture

    def counts(self, key: str) -> int | list[int] | None:
        """One count, or one per layer where layers differ (layers with 0 have nothing of it, and are left out of the
        comparison)."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not all(type(number) is int and number >= 0 for number in values):
            raise MoetoolError(
                f"{self.where}: {self.architecture}.{key} is {str(value)[:80]}, which is no count", "it is damaged"
            )
        different = set(values) - {0}
        return values if len(different) > 1 else different.pop() if different else 0

    def count(self, key: str) -> int | None:
        """One count for the whole model; the largest where layers differ."""
        value = self.counts(key)
        return max(value) if isinstance(value, list) else value

    def per_layer(self, key: str) -> list[Any] | None:
        """A list with one entry per layer; None where the file has none."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, list) else None


def translate(where: str, metadata: Mapping[str, Any], tensors: tuple[TensorInfo, ...]) -> dict[str, Any]:
    """The config of a model by its metadata and tensors; ``where`` names the file in messages.

    ``num_hidden_layers`` leaves out the layers for multi-token prediction, which llama.cpp counts as blocks. Raises
    MoetoolError where a value that is needed is no plausible number.
    """
    file = _Metadata(where, metadata)
    config: dict[str, Any] = {"model_type": _family(file)}
    for theirs, ours in _KEYS.items():
        value = file.counts(theirs)
        if value is not None and not (value == 0 and ours in _ZERO_IS_NONE):
            config[ours] = value
    layers = _layers(file, len(tensors))
    if layers is not None:
        config["num_hidden_layers"] = layers
    gating = _GATING.get(file.count("expert_gating_func") or 0)
    if gating:
        config["scoring_func"] = gating
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    embedding = shapes.get("token_embd.weight", ())
    vocabulary = embedding[0] if len(embedding) == 2 else file.count("vocab_size")
    if vocabulary is not None:
        config["vocab_size"] = vocabulary
    if embedding:
        config["tie_word_embeddings"] = "output.weight" not in shapes
    _name_parts(config, file)
    _set_layer_types(config, file, layers or 0)
    return _in_words_of_family(config)


def _family(file: _Metadata) -> str:
    """transformers' name; llama.cpp runs Mixtral as ``llama``, and all of DeepSeek-V2, V3 and Kimi K2 as one."""
    architecture = file.architecture
    if architecture == "llama":
        return "mixtral" if file.count("expert_count") else "llama"
    if architecture == "granitemoe":
        return "granitemoeshared" if file.count("expert_shared_feed_forward_length") else architecture
    if architecture == "deepseek2":
        if file.count("attention.indexer.top_k"):
            return "deepseek_v32"
        # V2 takes the softmax of the router's logits, everything since V3 a sigmoid
        return "deepseek_v3" if file.count("expert_gating_func") == _SIGMOID else "deepseek_v2"
    return _FAMILIES.get(architecture, architecture)


def _layers(file: _Metadata, tensors: int) -> int | None:
    blocks, predicting = file.count("block_count"), file.count("nextn_predict_layers") or 0
    if blocks is None:
        return None
    if blocks > tensors or predicting > blocks:
        raise MoetoolError(
            f"{file.where}: it says that it has {blocks} blocks, {predicting} of them for multi-token prediction, in "
            f"{tensors} tensors",
            "the file is damaged, or a part of it is missing",
        )
    return blocks - predicting


def _name_parts(config: dict[str, Any], file: _Metadata) -> None:
    """Sizes of heads and states that llama.cpp gives as sums and products of what transformers names."""
    values = file.count("attention.value_length")
    if config.get("kv_lora_rank"):
        # Newer files describe the absorbed form (one head of rank + rope) and give the true heads as *_mla
        keys = file.count("attention.key_length_mla") or file.count("attention.key_length") or 0
        rope = file.count("rope.dimension_count") or 0
        config |= {"qk_rope_head_dim": rope, "qk_nope_head_dim": max(keys - rope, 0)}
        config |= {"v_head_dim": file.count("attention.value_length_mla") or values or 0}
        config["num_key_value_heads"] = config.get("num_attention_heads", 0)
        config.pop("head_dim", None)
    elif values and values != config.get("head_dim"):
        config["v_head_dim"] = values
    sliding = file.count("attention.key_length_swa")
    if sliding and sliding != config.get("head_dim"):
        config |= {"head_dim": sliding, "global_head_dim": config.get("head_dim")}
    keys_of_states = next((k for begin, k in _STATE_KEYS.items() if config["model_type"].startswith(begin)), {})
    for theirs, ours in keys_of_states.items():
        value = file.count(f"ssm.{theirs}")
        if value is not None:
            config[ours] = value
    inner, heads = file.count("ssm.inner_size"), file.count("ssm.time_step_rank")
    if inner and heads:
        head = {"qwen": "linear_value_head_dim", "nemotron": "mamba_head_dim", "granite": "mamba_d_head"}
        config |= {name: inner // heads for begin, name in head.items() if config["model_type"].startswith(begin)}


def _set_layer_types(config: dict[str, Any], file: _Metadata, layers: int) -> None:
    """Which layers have a window, and which have a recurrent state instead of attention."""
    kv_heads = file.per_layer("attention.head_count_kv")
    if kv_heads and len(kv_heads) >= layers and 0 in kv_heads:
        other = "conv" if file.architecture.startswith("lfm2") else "linear_attention"
        types = ["full_attention" if heads else other for heads in kv_heads[:layers]]
        if config["model_type"] == "nemotron_h":
            wide = file.per_layer("feed_forward_length") or []
            feed_forward = "moe" if config.get("num_experts") else "mlp"
            types = [feed_forward if width else kind for kind, width in zip(types, wide, strict=False)]
            config["layers_block_type"] = types
        else:
            config["layer_types"] = types
        return
    interval = file.count("full_attention_interval")
    if interval:
        last = interval - 1
        config["layer_types"] = [
            "full_attention" if layer % interval == last else "linear_attention" for layer in range(layers)
        ]
        return
    restricted = "sliding_attention"
    if file.architecture == "llama4" and file.count("attention.sliding_window") != 0:
        restricted, config["attention_chunk_size"] = "chunked_attention", _LLAMA4_CHUNK
        config.pop("sliding_window", None)
    elif not config.get("sliding_window"):
        return
    slides = _slides(file, layers)
    if slides:
        config["layer_types"] = [restricted if yes else "full_attention" for yes in slides]


def _slides(file: _Metadata, layers: int) -> list[bool] | None:
    pattern = file.per_layer("attention.sliding_window_pattern")
    if pattern and len(pattern) >= layers:
        return [bool(slides) for slides in pattern[:layers]]
    period = None if pattern else file.count("attention.sliding_window_pattern")
    period = period or _WINDOW_PERIODS.get(file.architecture)
    return [layer % period < period - 1 for layer in range(layers)] if period else None


def _in_words_of_family(config: dict[str, Any]) -> dict[str, Any]:
    family = config["model_type"]
    ours = "num_local_experts" if family in _LOCAL else "n_routed_experts" if family in _ROUTED else "num_experts"
    if "num_experts" in config:
        config[ours] = config.pop("num_experts")
    if family == "llama4_text" and "moe_intermediate_size" in config:
        config["intermediate_size_mlp"] = config.get("intermediate_size")
        config["intermediate_size"] = config.pop("moe_intermediate_size")
    return config
