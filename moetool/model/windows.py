"""Which layers see a part of the context only: enters a config, leaves kind and window of every decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moetool.model.families import find, text_config

Window = tuple[Literal["sliding", "chunked"], int] | None
"""How a layer is restricted and to how many tokens; None for the whole context."""

_PERIODS = {"cohere2_moe": 4, "exaone_moe": 4, "afmoe": 4, "gemma3_text": 6, "gemma4_text": 6, "gpt_oss": 2}
"""Every so many layers one sees everything, where the config does not say (defaults of transformers' classes)."""
_PERIOD_KEYS = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")


def layer_windows(config: Mapping[str, Any], layers: int) -> list[Window]:
    """The restriction of each of ``layers`` decoder layers.

    ``layer_types`` says it where it is there, as in every config that transformers completed; published configs often
    have the keys instead from which transformers makes that list.
    """
    chunk = _size(find(config, "attention_chunk_size"))
    window = _size(find(config, "sliding_window", "sliding_window_size"))
    types = find(config, "layer_types", "attention_types")
    if isinstance(types, Sequence) and not isinstance(types, str) and len(types) >= layers:
        return [_by_name(str(kind), window, chunk) for kind in types[:layers]]
    if chunk:
        return [("chunked", chunk) if restricted else None for restricted in _with_positions(config, layers)]
    if not window:
        return [None] * layers
    return [("sliding", window) if restricted else None for restricted in _slides(config, layers)]


def _by_name(kind: str, window: int, chunk: int) -> Window:
    if "sliding" in kind or "local" in kind or "swa" in kind:
        return ("sliding", window) if window else None
    return ("chunked", chunk) if "chunked" in kind and chunk else None


def _with_positions(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Llama 4: layers without position embeddings see everything, the others their chunk."""
    listed = find(config, "no_rope_layers")
    if isinstance(listed, list) and len(listed) >= layers:
        return [bool(has_positions) for has_positions in listed[:layers]]
    interval = _size(find(config, "no_rope_layer_interval")) or 4
    return [(layer + 1) % interval != 0 for layer in range(layers)]


def _slides(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Whether each layer slides, for a config with a window and without a list of layer types."""
    pattern = find(config, "hybrid_layer_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers:
        return [bool(slides) for slides in pattern[:layers]]
    switch = find(config, "use_sliding_window")
    if switch is not None:
        first = _size(find(config, "max_window_layers"))
        return [bool(switch) and layer >= first for layer in range(layers)]
    period = find(config, *_PERIOD_KEYS)
    if isinstance(period, str) and period:
        return [period[layer % len(period)] == "L" for layer in range(layers)]
    period = _size(period) or _PERIODS.get(str(text_config(config).get("model_type")), 0)
    return [period == 0 or (layer + 1) % period != 0 for layer in range(layers)]


def _size(value: Any) -> int:
    """A positive whole number of a config, or 0."""
    return value if type(value) is int and value > 0 else 0
