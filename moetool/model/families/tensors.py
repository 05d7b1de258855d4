"""Names of tensors: one from any published layout enters, the role of the tensor leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Literal

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
