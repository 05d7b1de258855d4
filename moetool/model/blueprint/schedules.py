"""Which block a decoder layer has: a config and a layer's number enter, yes or no or the name of a kind leaves.

Read from the model classes of transformers 5.23. A schedule that a config does not mention has the default of its
class; one that is no schedule raises UnknownSizeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moetool.model.blueprint.settings import Settings, UnknownSizeError

Choice = Callable[[Settings, int], bool]
"""Whether the layer of a number is chosen."""

_LEGACY_KINDS = {"mamba": "linear_attention", "attention": "full_attention"}
_PATTERN = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


def _period(settings: Settings, key: str, default: int) -> int:
    period = settings.size_or(key, default)
    if period == 0:
        raise UnknownSizeError(key)
    return period


def _entry(entries: Sequence[Any], layer: int) -> Any:
    if layer >= len(entries):
        raise UnknownSizeError(layer)
    return entries[layer]


def sparse(settings: Settings, layer: int) -> bool:
    """Qwen: every ``decoder_sparse_step``-th layer but for those of ``mlp_only_layers``."""
    step, without = _period(settings, "decoder_sparse_step", 1), settings.kinds("mlp_only_layers") or ()
    return (
        layer not in without
        and settings.size("num_experts", "num_local_experts", zero=True) > 0
        and (layer + 1) % step == 0
    )


def after(default: int) -> Choice:
    """DeepSeek: all layers but the first ``first_k_dense_replace``."""
    return lambda settings, layer: layer >= settings.size_or("first_k_dense_replace", default)


def sparse_type(settings: Settings, layer: int) -> bool:
    """DeepSeek-V3.2: ``mlp_layer_types``, or all layers but the first ones."""
    types = settings.kinds("mlp_layer_types")
    return after(3)(settings, layer) if types is None else _entry(types, layer) == "sparse"


def interleaved(settings: Settings, layer: int) -> bool:
    """Llama 4: every ``interleave_moe_layer_step``-th layer, or a list of layers."""
    listed = settings.kinds("moe_layers")
    return (layer + 1) % _period(settings, "interleave_moe_layer_step", 1) == 0 if listed is None else layer in listed


def between(settings: Settings, layer: int) -> bool:
    """ERNIE: every ``moe_layer_interval``-th layer from a first to a last one, -1 for the end."""
    last = settings.config.get("moe_layer_end_index", -1)
    if type(last) is not int:
        raise UnknownSizeError("moe_layer_end_index")
    first = settings.size_or("moe_layer_start_index", 1)
    interval = _period(settings, "moe_layer_interval", 1)
    return (layer + 1) % interval == 0 and first <= layer and (last == -1 or layer <= last)


def periodic(kind: str, period: int, offset: int) -> Choice:
    """Jamba: the layers whose number leaves ``offset`` when it is divided by ``period``."""

    def chosen(settings: Settings, layer: int) -> bool:
        remainder = layer % _period(settings, f"{kind}_layer_period", period)
        return remainder == settings.size_or(f"{kind}_layer_offset", offset)

    return chosen


def jamba_experts(settings: Settings, layer: int) -> bool:
    """Jamba: experts in every ``expert_layer_period``-th layer, where there are several."""
    return settings.size("num_experts") > 1 and periodic("expert", 2, 1)(settings, layer)


def mixer_kind(settings: Settings, layer: int) -> str:
    """Qwen3-Next: ``layer_types``, or full attention in every ``full_attention_interval``-th layer."""
    types = settings.kinds("layer_types")
    if types is None:
        full = (layer + 1) % _period(settings, "full_attention_interval", 4) == 0
        return "full_attention" if full else "linear_attention"
    kind = str(_entry(types, layer))
    return _LEGACY_KINDS.get(kind, kind)


def block_pattern(settings: Settings) -> list[str]:
    """Nemotron-H: a list of kinds, or a string with a letter per layer. Its class invents one where there is none."""
    listed = settings.kinds("layers_block_type") or settings.kinds("layer_types")
    pattern = settings.config.get("hybrid_override_pattern")
    if listed is not None:
        return [_LEGACY_KINDS.get(str(kind), str(kind)) for kind in listed]
    if not isinstance(pattern, str) or not pattern or set(pattern) - _PATTERN.keys():
        raise UnknownSizeError("hybrid_override_pattern")
    return [_PATTERN[letter] for letter in pattern]


def block_kind(settings: Settings, layer: int) -> str:
    """Nemotron-H: what a layer consists of."""
    return block_pattern(settings)[layer]


def full_attention(settings: Settings, layer: int) -> bool:
    """Gemma 4: ``layer_types``, or every sixth layer; the last one in any case."""
    return _gemma_kinds(settings)[layer]


def shares_keys(settings: Settings, layer: int) -> bool:
    """Gemma 4: whether a layer reads the keys and values of an earlier one of its kind instead of making its own."""
    kinds = _gemma_kinds(settings)
    first = len(kinds) - settings.size_or("num_kv_shared_layers", 0)
    if first < len(kinds) and (first < 0 or set(kinds[:first]) != set(kinds)):
        raise UnknownSizeError("num_kv_shared_layers")
    return layer >= first


def _gemma_kinds(settings: Settings) -> list[bool]:
    """Whether attention is full, for all layers."""
    layers, types = settings.size("num_hidden_layers"), settings.kinds("layer_types")
    if types is None:
        types = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(layers)]
    if len(types) != layers or any(kind not in ("sliding_attention", "full_attention") for kind in types):
        raise UnknownSizeError("layer_types")
    return [*(kind == "full_attention" for kind in types[:-1]), True]
