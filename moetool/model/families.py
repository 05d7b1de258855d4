"""Names of families, the only file that knows any: a config or a tensor name enters, what is special leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Role = Literal[
    "embedding",
    "attention",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_ffn",
    "norm",
    "lm_head",
    "mtp",
    "vision",
    "quantization",
    "other",
]
"""What a tensor is for. ``attention`` is any token mixer (Mamba and linear attention too, with their inner norms);
``vision`` is any tower beside the text decoder (audio and speech too); ``mtp`` is multi-token prediction."""


@dataclass(frozen=True, slots=True)
class Family:
    """What capturing needs to know about a family and cannot see in the running model."""

    name: str
    """transformers' name of the architecture (``kimi_k2`` is ``deepseek_v3``)."""
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    """How the router turns logits into scores; ``sigmoid`` stands for every element-wise function."""
    group_score: Literal["top2", "max"] = "top2"
    """How a group of experts is scored where experts are chosen in groups: sum of its two best, or its best."""
    router_output: Literal["logits", "probabilities"] = "logits"
    """What the router module returns in the slot of the logits."""
    padding: bool = True
    """False: padding changes what real tokens attend to (sparse attention picks a number of positions)."""
    engine: Literal["any", "resident", "refused"] = "any"
    """``resident``: layers hand on more than the hidden states, so they cannot run one by one."""
    reason: str = ""
    """Why the engine is restricted; a sentence for people."""


ALIASES = {
    "kimi_k2": "deepseek_v3",
    "hunyuan": "hunyuan_v1_moe",
    "AXK1": "axk1",
}
"""Custom ``model_type`` names of architectures that transformers knows under another one."""
RENAMED_KEYS = {"hunyuan": {"attention_head_dim": "head_dim"}}
"""Config keys that such a custom name spells differently, as {theirs: transformers'}."""

# fmt: off
_SIGMOID = frozenset({
    "afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1",
    "dots3_note", "exaone_moe", "flint", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm5_next", "glm_moe_dsa",
    "hy_v3", "hy_v4", "inkling", "inkling2", "kimi_linear", "kolibri1", "laguna", "lfm2_moe", "llama4",
    "mimo_v2_flash", "minimax_m2", "minimax_m3_vl", "muse_spark", "nemotron_h", "solar_open", "step3p5", "step3p7",
})
# fmt: on
"""Read from the routers of transformers 5.23; the others take the softmax (deepseek_v4: sqrt of softplus)."""
_CONFIGURED_SCORING = {"cohere2_moe": "expert_selection_fn", "inkling2": "scoring_func"}
_GROUP_MAX = frozenset({"deepseek_v2", "deepseek_ocr2", "unlimited_ocr"})
_PROBABILITIES = frozenset({"gemma4", "diffusion_gemma"})
_RESIDENT = {
    "deepseek_v4": "its layers hand on several residual streams and the token ids",
    "glm5_next": "its layers hand on the positions that the indexer chose",
    "glm_moe_dsa": "its layers hand on the positions that the indexer chose",
    "hy_v4": "its layers hand on the positions that the indexer chose",
    "inkling2": "its layers read the outputs of all earlier blocks",
    "mistral_large4": "its layers hand on the positions that the indexer chose",
}
_UNPADDED = frozenset({"deepseek_v32", "glm_moe_dsa"})
_REFUSED = {
    "inkling": "its router returns four tensors",
    "jetmoe": "its experts are not called with the chosen experts and weights",
    "llama4": "its experts get tokens that are already scattered and scaled",
    "longcat_flash": "some of its experts compute nothing and are numbered with the others",
    "nllb-moe": "its experts are called with a dispatch mask",
    "switch_transformers": "its experts are called with a dispatch mask",
    "zaya": "its router carries a state from layer to layer",
}


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


def family_of(config: Mapping[str, Any]) -> Family:
    """What is special about the family of a ``config.json``; an unknown name gets the defaults.

    The name is that of the whole model, the rest is looked up for it and, failing that, for its text decoder.
    """
    name = canonical(str(config.get("model_type") or "unknown"))
    text = canonical(str(text_config(config).get("model_type") or name))
    known = (
        _SIGMOID
        | _UNPADDED
        | _GROUP_MAX
        | _PROBABILITIES
        | _RESIDENT.keys()
        | _REFUSED.keys()
        | _CONFIGURED_SCORING.keys()
    )
    candidates = (name, name.removesuffix("_text"), text, text.removesuffix("_text"))
    key = next((candidate for candidate in candidates if candidate in known), name)
    configured = find(config, _CONFIGURED_SCORING[key]) if key in _CONFIGURED_SCORING else None
    sigmoid = configured == "sigmoid" if configured else key in _SIGMOID
    why = _REFUSED.get(key)
    return Family(
        name=name,
        scoring="sigmoid" if sigmoid else "softmax",
        group_score="max" if key in _GROUP_MAX else "top2",
        router_output="probabilities" if key in _PROBABILITIES else "logits",
        padding=key not in _UNPADDED and find(config, "index_topk") is None,
        engine="refused" if why else "resident" if key in _RESIDENT else "any",
        reason=f"routing of the family {name} cannot be captured yet: {why}" if why else _RESIDENT.get(key, ""),
    )


def restricted_families() -> tuple[Family, ...]:
    """The families that not every engine runs, by name: those that stream no layers first, then those refused."""
    return tuple(family_of({"model_type": name}) for name in (*sorted(_RESIDENT), *sorted(_REFUSED)))


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


# Tensor names ------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<=\.)(expert_)?(\d{1,9})(?=\.|$)|^(\d{1,9})(?=\.)", re.ASCII)


def template(name: str) -> str:
    """A tensor name with every index (a component of digits, or ``expert_3``) replaced by ``#``."""
    return _NUMBER.sub("#", name)


def fill(name_template: str, name: str) -> str:
    """A template with the numbers of a name, in their order; unchanged where ``name`` has fewer."""
    numbers = [match[0] for match in _NUMBER.finditer(name)]
    parts = name_template.split("#")
    if len(parts) > len(numbers) + 1:
        return name_template
    return parts[0] + "".join(number + part for number, part in zip(numbers, parts[1:], strict=False))


def indices(name: str) -> Iterator[int]:
    """The numbers that ``template`` replaced, in order."""
    return (int(match[2] or match[3]) for match in _NUMBER.finditer(name))


CORRECTION_BIAS = re.compile(
    r"(?:^|\.)(?:e_score_correction_bias|expert_bias|router_bias|balancing_biases|(?<!router\.)gate\.bias"
    r"|exp_probs_b(?:\.bias)?)$"
)
"""Biases that only steer the choice of experts. They are set by a balancing rule, not by gradient, and are buffers in
most families of transformers: bytes of the router, but no parameters."""

BUFFER = re.compile(
    r"(?:^|\.)(?:\w*inv_freq|freqs_ci|slope_rate|query_decay|key_decay|diagonal_decay|layer_scalar|tid2eid|embed_scale"
    r"|std_bias|std_scale|(?:input|output)_(?:min|max)|layer_multipliers|ngram_heads_\w+|token_ordering|code_offset"
    r"|audio_tokens_offsets|rotary_emb\.alpha|running_mean|running_var|num_batches_tracked|masked_bias|final_logits_bias"
    r"|(?:rope_freqs|rope_factors_\w+|layer_output_scale)\.weight)$"
)
"""Constants that checkpoints store beside the parameters."""

MTP = re.compile(r"(?:^|\.)(?:mtp|nextn)[^.]*\.")
"""Multi-token prediction under a name of its own; elsewhere its layers follow the decoder's."""
MTP_PART = re.compile(r"(?:^|\.)(?:eh_proj|enorm|hnorm|shared_head|mtp\w*|nextn\w*)\.")
"""What a decoder layer has only if it predicts further tokens."""
MTP_LIKE_LAST_LAYER = frozenset({"deepseek_v3", "deepseek_v32", "glm4_moe"})
"""Families whose layers of multi-token prediction are a further decoder layer, a projection of two hidden states to one
and three norms (DeepSeek-V3, arXiv:2412.19437, section 2.2); embedding and head are the model's own."""
COPY_IN_MTP = re.compile(r"(?:^|\.)(?:embed_tokens|shared_head(?:\.|_)(?:head|output))\.weight$")
"""Second copies of the model's embedding and head in multi-token prediction layers."""

_TOWER = (
    r"^[^#]*(?:vision|visual|audio|speech|image|video|view_sep\w+|resampler|multi_modal|mm_projector|qformer|perceiver|talker|code2wav)"
    r"|^(?:model\.)?(?:vit|aligner|sam_model|vae)\.|\.vision_moe\."
)
_FFN_BLOCK = r"\.(?:mlp|ffn|feed_forward|feedforward|moe|moe_block|block_sparse_moe|text_moe|mixer|experts|#)"
_ROUTER = _FFN_BLOCK + r"\.(?:gate|router|moe_gate|gating)\."
_SHARED = r"\.(?:shared?_experts?\w*|shared_mlp|shared_expert_gate)(?:\.|$)"
_FUSED = r"\.(?:(?:block_sparse_moe|moe)\.(?:input_linear|output_linear|w[123]|#)|moe\.(?:gate|up|down)_proj)(?:\.|$)"
_JETMOE = r"\.(?:mlp|experts)\.(?:input_linear|output_linear)\."
_ATTENTION = (
    r"\.(?:self_attn|self_attention|attention|attn|cross_attn|encoder_attn|linear_attn|linear_attention|mamba\d*|mixer"
    r"|conv|short_conv|SelfAttention|EncDecAttention|cross_attention|token_mixer|delta_net|kda|ssm)\."
)
_MIXER_FFN = r"\.mixer\.(?:up_proj|gate_proj|down_proj|fc\d_latent_proj)\."
_NORM = r"(?:^|\.)(?:[^.#]*(?:norm|Norm|rms)[^.]*|ln_\w+|ln\d?)(?:\.|$)"
_FFN = r"\.(?:mlps?|ffn|feed_forward|feedforward|moe\w*|block_sparse_moe|residual_mlp|DenseReluDense|fc\d)\."

_GGUF_BLOCK = r"^(?:(?:dec|enc)\.)?blk\.#\."
_GGUF_PATTERNS: tuple[tuple[Role, str], ...] = (
    ("vision", r"^(?:v|a|mm|resampler)\.|" + _GGUF_BLOCK + r"vis_"),
    ("router", _GGUF_BLOCK + r"(?:ffn_gate_inp\.|exp_probs_b|ffn_down_exps\.scale$)"),
    ("shared_experts", _GGUF_BLOCK + r"ffn_(?:gate_inp|gate|up|down)_shexp\."),
    ("routed_experts", _GGUF_BLOCK + r"ffn_(?:(?:gate|up|down|gate_up)_(?:ch)?exps|(?:gate|up|down)\.#)\."),
    ("norm", _GGUF_BLOCK + r"(?:(?:cross_)?attn_(?:norm|post_norm|output_norm|out_norm)\w*|layer_output_scale)\."),
    ("attention", _GGUF_BLOCK + r"(?:(?:cross_)?attn_|ssm_|indexer\.|shortconv\.|time_mix_)|^rope_f(?:req|actor)s"),
    ("dense_ffn", _GGUF_BLOCK + r"(?:ffn_(?:gate|up|down|latent_\w+)|channel_\w+|inp_gate|proj|laurel_.|altup_\w+)\."),
    ("embedding", r"^(?:token_embd|position_embd|token_types|per_layer_token_embd|per_layer_model_proj|altup_\w+)\."),
)
"""Names of llama.cpp's files, of which none occurs elsewhere. ``exps`` is fused, with a leading axis of experts;
``ffn_gate.3`` is an expert in the oldest files. Gemma 4's scale per expert is applied to the router's weights."""

_PATTERNS: tuple[tuple[Role, str], ...] = (
    ("vision", _TOWER),
    ("mtp", MTP.pattern),
    *_GGUF_PATTERNS,
    (
        "embedding",
        r"(?:^|\.)(?:embed_tokens\w*|embeddings?|word_embeddings|tok_embeddings|wte|wpe|embed|embed_in)\.\w+$",
    ),
    ("embedding", r"^(?:model\.)?(?:shared|embed_positions)\.weight$"),
    ("lm_head", r"(?:^|\.)(?:lm_head|embed_out|unembed)\.|^(?:head|output)\."),
    ("router", _ROUTER + "|" + CORRECTION_BIAS.pattern),
    ("shared_experts", _SHARED),
    ("norm", r"\.experts\.[^.#]*norm[^.]*\."),
    ("dense_ffn", r"\.experts\.bias$"),
    ("routed_experts", r"\.experts(?:\.|$)|" + _FUSED + "|" + _JETMOE),
    ("dense_ffn", _MIXER_FFN),
    ("attention", _ATTENTION),
    ("norm", _NORM),
    ("dense_ffn", _FFN),
)
ROLE_PATTERNS = tuple((role, re.compile(pattern)) for role, pattern in _PATTERNS)
"""Role by the first pattern that a template matches; anything else is ``other``. Whole path components are matched:
``shared_expert_gate`` and ``gate_proj`` are no routers."""


@cache
def role_of(name_template: str) -> Role:
    """The role of a tensor by the ``template`` of its name."""
    for role, pattern in ROLE_PATTERNS:
        if pattern.search(name_template):
            return role
    return "other"
