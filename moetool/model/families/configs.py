"""Names of config keys and model types: a ``config.json`` of any family enters, a value by its meaning leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALIASES = {
    "kimi_k2": "deepseek_v3",
    "hunyuan": "hunyuan_v1_moe",
    "AXK1": "axk1",
}
"""Custom ``model_type`` names of architectures that transformers knows under another one."""
RENAMED_KEYS = {"hunyuan": {"attention_head_dim": "head_dim"}}
"""Config keys that such a custom name spells differently, as {theirs: transformers'}."""


def canonical(model_type: str) -> str:
    """transformers' name of a ``model_type``; unknown names come back unchanged."""
    return ALIASES.get(model_type, model_type)


def to_native(settings: Any) -> Any:
    """A config with the custom names of types and keys replaced by transformers' own, nested configs too."""
    if not isinstance(settings, dict):
        return settings
    native = {key: to_native(value) for key, value in settings.items()}
    model_type = native.get("model_type")
    if not isinstance(model_type, str):
        return native
    for theirs, ours in RENAMED_KEYS.get(model_type, {}).items():
        if theirs in native:
            native.setdefault(ours, native.pop(theirs))
    return {**native, "model_type": canonical(model_type)}


_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "decoder_attention_heads")
MAX_CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length", "model_max_length")
HIDDEN_SIZE = ("hidden_size", "d_model", "n_embd")
EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_routed_experts")
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
)
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
ZERO_EXPERTS = ("zero_expert_num",)
"""Experts that compute nothing: a router chooses them like the others, but they have no weights."""
TOP1_FAMILIES = frozenset({"switch_transformers"})
TOP2_FAMILIES = frozenset({"nllb-moe"})
"""Families whose number of experts per token is fixed in code, not in the config."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the text decoder: itself, or the innermost nested one."""
    while nested := [config[key] for key in _TEXT_CONFIGS if isinstance(config.get(key), Mapping)]:
        config = nested[0]
    return config


def find(config: Mapping[str, Any], *keys: str) -> Any:
    """The first of ``keys`` that is set in the text decoder's config, its ``ffn_config`` or the whole config."""
    text = text_config(config)
    ffn = text.get("ffn_config")
    for place in (text, ffn if isinstance(ffn, Mapping) else {}, config):
        for key in keys:
            if place.get(key) is not None:
                return place[key]
    return None


def experts_per_token_of(config: Mapping[str, Any], layer: int) -> int | None:
    """How many experts a token uses in a layer, by the config (one number, or one per layer); None where unsaid."""
    name = canonical(str(config.get("model_type")))
    if name in TOP1_FAMILIES or name in TOP2_FAMILIES:
        return 1 if name in TOP1_FAMILIES else 2
    return per_layer(find(config, *EXPERTS_PER_TOKEN), layer) or None


def depth_of(config: Mapping[str, Any]) -> int | None:
    """Decoder layers by the config."""
    return per_layer(find(config, LAYERS[0]), 0)


def encoder_layers(config: Mapping[str, Any]) -> int:
    """Layers of the encoder in front of the decoder; 0 for decoder-only models."""
    if not (config.get("is_encoder_decoder") or text_config(config).get("is_encoder_decoder")):
        return 0
    return (
        per_layer(
            find(
                config,
                "encoder_layers",
                "encoder_num_hidden_layers",
                "num_encoder_layers",
                "num_layers",
                "num_hidden_layers",
            ),
            0,
        )
        or 0
    )


def per_layer(value: Any, layer: int) -> int | None:
    """A config value that is one number for all layers or a list with one per layer; None where it is neither."""
    if isinstance(value, list):
        value = value[layer] if 0 <= layer < len(value) else value[-1] if value else None
    return value if type(value) is int and value >= 0 else None
