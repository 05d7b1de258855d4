"""Token mixers of decoder layers: enters a config, leave the names and shapes of the parameters of each mixer.

Shapes are those of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moetool.model.blueprint.blocks import Block, Part, linear
from moetool.model.blueprint.schedules import full_attention, shares_keys
from moetool.model.blueprint.settings import NEVER, Flag, Settings, UnknownSizeError


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) and what families vary in it."""

    name: str = "self_attn"
    own_head_dim: bool = False
    """The config must name ``head_dim``; else it is hidden size / heads where it does not."""
    all_kv_heads: bool = False
    """As many KV heads as heads where the config does not say."""
    bias: Flag = NEVER
    output_bias: Flag = NEVER
    norms: tuple[str, ...] = ()
    """Norms of queries and keys."""
    norm_flag: Flag = ("", True)
    wide_norms: bool = False
    """Over all heads at once; else over one head's channels."""
    gated: bool = False
    """The query projection also makes a gate of the output."""
    sinks: bool = False
    """One learned logit per head that takes part in the softmax."""

    def __call__(self, settings: Settings, layer: int) -> Iterator[Part]:
        """The parameters of one layer."""
        hidden, heads = settings.hidden, settings.size("num_attention_heads")
        named = self.own_head_dim or settings.config.get("head_dim") is not None
        head = settings.size("head_dim") if named else hidden // heads
        if self.all_kv_heads and settings.config.get("num_key_value_heads") is None:
            kv_heads = heads
        else:
            kv_heads = settings.size("num_key_value_heads")
        queries, keys = heads * head, kv_heads * head
        bias = settings.flag(self.bias)
        if self.sinks:
            yield f"{self.name}.sinks", (heads,)
        yield from linear(f"{self.name}.q_proj", hidden, queries * (2 if self.gated else 1), bias)
        yield from linear(f"{self.name}.k_proj", hidden, keys, bias)
        yield from linear(f"{self.name}.v_proj", hidden, keys, bias)
        yield from linear(f"{self.name}.o_proj", queries, hidden, settings.flag(self.output_bias))
        if self.norms and settings.flag(self.norm_flag):
            for norm, width in zip(self.norms, (queries, keys), strict=True):
                yield f"{self.name}.{norm}.weight", (width if self.wide_norms else head,)


def latent_attention(settings: Settings, layer: int) -> Iterator[Part]:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1); ``q_lora_rank`` null: full queries."""
    hidden, heads = settings.hidden, settings.size("num_attention_heads")
    nope, rope = settings.size("qk_nope_head_dim"), settings.size("qk_rope_head_dim")
    rank, value = settings.size("kv_lora_rank"), settings.size("v_head_dim")
    bias = settings.flag(("attention_bias", False))
    if settings.config.get("q_lora_rank", 0) is None:
        yield from linear("self_attn.q_proj", hidden, heads * (nope + rope))
    else:
        query_rank = settings.size("q_lora_rank")
        yield from linear("self_attn.q_a_proj", hidden, query_rank, bias)
        yield "self_attn.q_a_layernorm.weight", (query_rank,)
        yield from linear("self_attn.q_b_proj", query_rank, heads * (nope + rope))
    yield from linear("self_attn.kv_a_proj_with_mqa", hidden, rank + rope, bias)
    yield "self_attn.kv_a_layernorm.weight", (rank,)
    yield from linear("self_attn.kv_b_proj", rank, heads * (nope + value))
    yield from linear("self_attn.o_proj", heads * value, hidden, bias)


def indexed_latent_attention(settings: Settings, layer: int) -> Iterator[Part]:
    """Latent attention with the indexer that picks positions (DeepSeek-V3.2, arXiv:2512.02556)."""
    yield from latent_attention(settings, layer)
    heads, head, rank = settings.size("index_n_heads"), settings.size("index_head_dim"), settings.size("q_lora_rank")
    yield from linear("self_attn.indexer.wq_b", rank, heads * head)
    yield from linear("self_attn.indexer.wk", settings.hidden, head)
    yield "self_attn.indexer.k_norm.weight", (head,)
    yield "self_attn.indexer.k_norm.bias", (head,)
    yield from linear("self_attn.indexer.weights_proj", settings.hidden, heads)


def delta_net(fused: bool) -> Block:
    """A gated delta net (Yang et al. 2024, arXiv:2412.06464); ``fused``: its input projections are two matrices."""

    def parts(settings: Settings, layer: int) -> Iterator[Part]:
        hidden, heads = settings.hidden, settings.size("linear_num_value_heads")
        value_dim = settings.size("linear_value_head_dim")
        keys = settings.size("linear_num_key_heads") * settings.size("linear_key_head_dim")
        values = heads * value_dim
        yield "linear_attn.dt_bias", (heads,)
        yield "linear_attn.A_log", (heads,)
        yield "linear_attn.conv1d.weight", (2 * keys + values, 1, settings.size("linear_conv_kernel_dim"))
        if fused:
            inputs = {"qkvz": 2 * keys + 2 * values, "ba": 2 * heads}
        else:
            inputs = {"qkv": 2 * keys + values, "z": values, "b": heads, "a": heads}
        for name, width in inputs.items():
            yield from linear(f"linear_attn.in_proj_{name}", hidden, width)
        yield "linear_attn.norm.weight", (value_dim,)
        yield from linear("linear_attn.out_proj", values, hidden)

    return parts


def mamba(settings: Settings, layer: int) -> Iterator[Part]:
    """A Mamba mixer (Gu and Dao 2023, arXiv:2312.00752) with the norms that Jamba adds (arXiv:2403.19887)."""
    hidden, state, kernel = settings.hidden, settings.size("mamba_d_state"), settings.size("mamba_d_conv")
    inner, bias = settings.size("mamba_expand") * hidden, settings.flag(("mamba_proj_bias", False))
    automatic = settings.config.get("mamba_dt_rank", "auto") == "auto"
    rank = -(-hidden // 16) if automatic else settings.size("mamba_dt_rank")
    yield "mamba.A_log", (inner, state)
    yield "mamba.D", (inner,)
    yield "mamba.conv1d.weight", (inner, 1, kernel)
    if settings.flag(("mamba_conv_bias", True)):
        yield "mamba.conv1d.bias", (inner,)
    yield from linear("mamba.in_proj", hidden, 2 * inner, bias)
    yield from linear("mamba.x_proj", inner, rank + 2 * state)
    yield from linear("mamba.dt_proj", rank, inner, True)
    yield from linear("mamba.out_proj", inner, hidden, bias)
    for norm, width in (("dt", rank), ("b", state), ("c", state)):
        yield f"mamba.{norm}_layernorm.weight", (width,)


def mamba2(settings: Settings, layer: int) -> Iterator[Part]:
    """A Mamba-2 mixer (Dao and Gu 2024, arXiv:2405.21060) as Nemotron-H builds it."""
    hidden, heads = settings.hidden, settings.size("mamba_num_heads")
    inner = heads * settings.size("mamba_head_dim")
    groups = settings.size("mamba_n_groups" if "mamba_n_groups" in settings.config else "n_groups")
    kernel = settings.size("mamba_d_conv" if "mamba_d_conv" in settings.config else "conv_kernel")
    convolved = inner + 2 * groups * settings.size("ssm_state_size")
    bias = settings.flag(("use_bias", False))
    for name in ("dt_bias", "A_log", "D"):
        yield f"mixer.{name}", (heads,)
    yield "mixer.conv1d.weight", (convolved, 1, kernel)
    if settings.flag(("mamba_conv_bias", settings.flag(("use_conv_bias", True)))):
        yield "mixer.conv1d.bias", (convolved,)
    yield from linear("mixer.in_proj", hidden, inner + convolved + heads, bias)
    yield "mixer.norm.weight", (inner,)
    yield from linear("mixer.out_proj", inner, hidden, bias)


def dbrx_attention(settings: Settings, layer: int) -> Iterator[Part]:
    """Queries, keys and values come from one matrix; ``head_dim`` is never read."""
    hidden = settings.hidden
    keys = settings.size("num_key_value_heads") * (hidden // settings.size("num_attention_heads"))
    yield from linear("norm_attn_norm.attn.Wqkv", hidden, hidden + 2 * keys)
    yield from linear("norm_attn_norm.attn.out_proj", hidden, hidden)


def gemma_attention(settings: Settings, layer: int) -> Iterator[Part]:
    """Full layers have heads of their own size, may use keys as values; the last layers may share others' keys."""
    hidden, heads, bias = (
        settings.hidden,
        settings.size("num_attention_heads"),
        settings.flag(("attention_bias", False)),
    )
    keys_are_values = full_attention(settings, layer) and settings.flag(("attention_k_eq_v", False))
    head, kv_heads = _gemma_heads(settings, layer, keys_are_values)
    yield from linear("self_attn.q_proj", hidden, heads * head, bias)
    yield from linear("self_attn.o_proj", heads * head, hidden, bias)
    yield "self_attn.q_norm.weight", (head,)
    if not shares_keys(settings, layer):
        yield "self_attn.k_norm.weight", (head,)
        yield from linear("self_attn.k_proj", hidden, kv_heads * head, bias)
        if not keys_are_values:
            yield from linear("self_attn.v_proj", hidden, kv_heads * head, bias)


def _gemma_heads(settings: Settings, layer: int, keys_are_values: bool) -> tuple[int, int]:
    """Width of a head and number of KV heads; transformers saves those of unusual layers as ``per_layer_config``."""
    overrides = settings.config.get("per_layer_config")
    if isinstance(overrides, Mapping):
        own = overrides.get(str(layer), overrides.get(layer, {}))
        if not isinstance(own, Mapping):
            raise UnknownSizeError("per_layer_config")
        settings = Settings({**settings.config, **own})
        return settings.size("head_dim"), settings.size("num_key_value_heads")
    kv_heads = settings.size("num_key_value_heads")
    if keys_are_values:
        kv_heads = settings.size_or("num_global_key_value_heads", kv_heads)
    return settings.size("global_head_dim" if full_attention(settings, layer) else "head_dim"), kv_heads
