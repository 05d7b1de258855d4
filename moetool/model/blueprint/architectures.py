"""How families of models are built, one entry each: the blocks of their layers, and what is around these.

Read from the model classes of transformers 5.23; what families share is in ``blocks``, ``mixers`` and ``schedules``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from moetool.model.blueprint.blocks import (
    Block,
    Experts,
    Shared,
    by_kind,
    choose,
    dbrx_experts,
    dense,
    gemma_ffn,
    gemma_layer_embeddings,
    gemma_layer_inputs,
    nemotron_experts,
    nemotron_mlp,
    norms,
)
from moetool.model.blueprint.mixers import (
    Attention,
    dbrx_attention,
    delta_net,
    gemma_attention,
    indexed_latent_attention,
    latent_attention,
    mamba,
    mamba2,
)
from moetool.model.blueprint.schedules import (
    after,
    between,
    block_kind,
    block_pattern,
    interleaved,
    jamba_experts,
    mixer_kind,
    periodic,
    sparse,
    sparse_type,
)
from moetool.model.blueprint.settings import NEVER, Flag, Settings


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How a family's text decoder is built."""

    layer: tuple[Block, ...]
    """The blocks of every decoder layer."""
    stem: str = "model"
    layers: str = "layers"
    embedding: str = "embed_tokens"
    norm: str = "norm"
    """The norm behind the last layer."""
    norm_bias: bool = False
    head_bias: Flag = NEVER
    tied: bool | None = False
    """Default of ``tie_word_embeddings``; None where the head is never the embedding, whatever the config says."""
    outside: Block | None = None
    """More parameters outside of the layers (called with layer 0)."""
    depth: Callable[[Settings], int] = lambda settings: settings.size("num_hidden_layers")
    """The number of decoder layers."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Config keys that the family spells differently, as {the usual one: its path}."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A model of several modalities around a text decoder."""

    stem: str
    head: str = "lm_head"
    tied: bool = False
    """Default of its ``tie_word_embeddings``."""
    decoder_ties: bool = False
    """The decoder's ``tie_word_embeddings`` governs, not the whole model's."""


PAIR = norms("input_layernorm", "post_attention_layernorm")
LOCAL = ("num_local_experts", "num_experts")
ROUTED = ("n_routed_experts", "num_local_experts")
ATTENTION_BIAS: Flag = ("attention_bias", False)
MLP_BIAS: Flag = ("mlp_bias", False)
USE_BIAS: Flag = ("use_bias", False)

GROUPED = Attention()
BIASED = Attention(bias=ATTENTION_BIAS, output_bias=ATTENTION_BIAS)
ANY_KV = replace(BIASED, all_kv_heads=True)
HEAD_NORMS = replace(BIASED, norms=("q_norm", "k_norm"))
OUTPUT_GATE = replace(HEAD_NORMS, own_head_dim=True, gated=True)

SHARED = Shared("shared_experts", "moe_intermediate_size", "n_shared_experts")
DEEPSEEK_V2 = Experts(ROUTED[:1], shared=replace(SHARED, bias=MLP_BIAS))
DEEPSEEK_V3 = Experts(ROUTED, correction="gate.e_score_correction_bias", shared=SHARED)
QWEN2 = Experts(("num_experts",), shared=Shared("shared_expert", "shared_expert_intermediate_size", gate=True))


GEMMA_NORMS = norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)


BLUEPRINTS: dict[str, Blueprint] = {
    "llama": Blueprint((ANY_KV, dense(bias=MLP_BIAS), PAIR)),
    "qwen3": Blueprint((replace(HEAD_NORMS, own_head_dim=True), dense(), PAIR)),
    "mixtral": Blueprint((GROUPED, Experts(LOCAL, "intermediate_size"), PAIR)),
    "olmoe": Blueprint(
        (
            replace(ANY_KV, norms=("q_norm", "k_norm"), wide_norms=True),
            Experts(LOCAL, "intermediate_size"),
            PAIR,
        )
    ),
    "phimoe": Blueprint(
        (
            BIASED,
            Experts(LOCAL[:1], "intermediate_size", router="router"),
            norms("input_layernorm", "post_attention_layernorm", bias=True),
        ),
        norm_bias=True,
        head_bias=("lm_head_bias", False),
    ),
    "granitemoe": Blueprint(
        (ANY_KV, Experts(LOCAL[:1], "intermediate_size", "block_sparse_moe", router="router"), PAIR)
    ),
    "hunyuan_v1_moe": Blueprint(
        (
            replace(ANY_KV, own_head_dim=True, norms=("query_layernorm", "key_layernorm")),
            Experts(LOCAL, "intermediate_size", router="gate.wg", shared=Shared("shared_mlp", "intermediate_size")),
            PAIR,
        )
    ),
    "minimax_m2": Blueprint(
        (
            Attention(own_head_dim=True, norms=("q_norm", "k_norm"), wide_norms=True),
            Experts(LOCAL, "intermediate_size", correction="e_score_correction_bias"),
            PAIR,
        )
    ),
    "gpt_oss": Blueprint(
        (
            Attention(
                own_head_dim=True, bias=("attention_bias", True), output_bias=("attention_bias", True), sinks=True
            ),
            Experts(LOCAL, "intermediate_size", router="router", transposed=True, bias=True),
            PAIR,
        )
    ),
    "qwen2_moe": Blueprint((Attention(bias=("qkv_bias", True)), choose(sparse, QWEN2, dense()), PAIR)),
    "qwen3_moe": Blueprint((HEAD_NORMS, choose(sparse, Experts(LOCAL), dense()), PAIR)),
    "qwen3_next": Blueprint(
        (
            by_kind(mixer_kind, {"linear_attention": delta_net(fused=True), "full_attention": OUTPUT_GATE}),
            choose(sparse, QWEN2, dense()),
            PAIR,
        )
    ),
    "qwen3_5_moe_text": Blueprint(
        (by_kind(mixer_kind, {"linear_attention": delta_net(fused=False), "full_attention": OUTPUT_GATE}), QWEN2, PAIR)
    ),
    "deepseek_v2": Blueprint((latent_attention, choose(after(0), DEEPSEEK_V2, dense(bias=MLP_BIAS)), PAIR)),
    "deepseek_v3": Blueprint((latent_attention, choose(after(3), DEEPSEEK_V3, dense()), PAIR)),
    "deepseek_v32": Blueprint((indexed_latent_attention, choose(sparse_type, DEEPSEEK_V3, dense()), PAIR)),
    "glm4_moe": Blueprint(
        (
            Attention(bias=ATTENTION_BIAS, norms=("q_norm", "k_norm"), norm_flag=("use_qk_norm", False)),
            choose(after(1), DEEPSEEK_V3, dense()),
            PAIR,
        )
    ),
    "ernie4_5_moe": Blueprint(
        (
            Attention(bias=USE_BIAS, output_bias=USE_BIAS),
            choose(
                between,
                Experts(
                    ("moe_num_experts", "num_experts"),
                    correction="gate.moe_statics.e_score_correction_bias",
                    shared=replace(SHARED, count="moe_num_shared_experts", bias=USE_BIAS, left_out=True),
                ),
                dense(bias=USE_BIAS),
            ),
            PAIR,
        ),
        head_bias=USE_BIAS,
        tied=True,
    ),
    "llama4_text": Blueprint(
        (
            replace(BIASED, own_head_dim=True),
            choose(
                interleaved,
                Experts(
                    LOCAL[:1],
                    "intermediate_size",
                    "feed_forward",
                    router="router",
                    shared=Shared("shared_expert", "intermediate_size"),
                    transposed=True,
                ),
                dense("feed_forward", "intermediate_size_mlp"),
            ),
            PAIR,
        )
    ),
    "jamba": Blueprint(
        (
            choose(periodic("attn", 8, 4), GROUPED, mamba),
            choose(
                jamba_experts,
                Experts(LOCAL[::-1], "intermediate_size", "feed_forward", router="router"),
                dense("feed_forward"),
            ),
            norms("input_layernorm", "pre_ff_layernorm"),
        ),
        norm="final_layernorm",
    ),
    "nemotron_h": Blueprint(
        (
            by_kind(
                block_kind,
                {
                    "linear_attention": mamba2,
                    "full_attention": Attention("mixer", own_head_dim=True),
                    "moe": nemotron_experts,
                    "mlp": nemotron_mlp,
                },
            ),
            norms("norm"),
        ),
        embedding="embeddings",
        norm="norm_f",
        tied=None,
        depth=lambda settings: len(block_pattern(settings)),
    ),
    "gemma4_text": Blueprint(
        (gemma_attention, gemma_ffn, gemma_layer_inputs, GEMMA_NORMS), tied=True, outside=gemma_layer_embeddings
    ),
    "dbrx": Blueprint(
        (dbrx_attention, dbrx_experts, norms("norm_attn_norm.norm_1", "norm_attn_norm.norm_2")),
        stem="transformer",
        layers="blocks",
        embedding="wte",
        norm="norm_f",
        keys={
            "hidden_size": "d_model",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "num_key_value_heads": "attn_config.kv_n_heads",
            "intermediate_size": "ffn_config.ffn_hidden_size",
            "num_local_experts": "ffn_config.moe_num_experts",
        },
    ),
}
"""By transformers' ``model_type`` of the text decoder."""

WRAPPERS: dict[str, Wrapper] = {
    "gemma4": Wrapper("model.language_model", tied=True),
    "kimi_k25": Wrapper("model.language_model", tied=True),
    "llama4": Wrapper("language_model.model", "language_model.lm_head", decoder_ties=True),
    "qwen3_5_moe": Wrapper("model.language_model"),
}
"""By ``model_type`` of the whole model; others do not lead to their decoders, whose place nobody has checked."""

ELSEWHERE: dict[str, Blueprint] = {
    # DeepSeekMoE (arXiv:2401.06066): Llama's attention and the experts of DeepSeek-V2
    "deepseek": Blueprint((ANY_KV, choose(after(0), DEEPSEEK_V2, dense()), PAIR)),
}
"""Families that transformers does not have: their publishers ship code, which is never run here."""
