"""Which layers see a part of the context only: enters a config, leaves kind and window of every decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moetool.model.families import canonical, find, text_config

Window = tuple[Literal["sliding", "chunked"], int] | None
"""How a layer is restricted and to how many tokens, itself among them; None for the whole context."""


@dataclass(frozen=True, slots=True)
class _Class:
    """What a config class of transformers fills in where a config says nothing."""

    window: int = 0
    """Tokens; 0 for none."""
    period: int = 0
    """Of so many layers one sees everything; 0: none does."""
    phase: int = -1
    """Which of them: the last one of each period, unless another is named."""
    first: int = 0
    """So many layers at the beginning see everything."""
    last: bool = False
    """The last layer sees everything."""
    from_end: bool = False
    """Periods are counted back from the last layer."""


_CLASSES = {
    "afmoe": _Class(1024, 4),
    "beam": _Class(512, 6, last=True),
    "cohere2": _Class(4096, 4),
    "cohere2_moe": _Class(4096, 4),
    "deepseek_v4": _Class(128),
    "diffusion_gemma": _Class(512, 6, last=True),
    "dots1": _Class(4096),
    "dots3_note": _Class(512, 4, phase=1, first=2),
    "exaone_moe": _Class(4096, 4),
    "flint": _Class(513, 4, phase=1, first=2, last=True),
    "gemma2": _Class(4096, 2),
    "gemma3": _Class(4096, 6),
    "gemma4": _Class(512, 6, last=True),
    "gpt_oss": _Class(128, 2),
    "granitemoe_swa": _Class(128, 4, phase=0),
    "inkling": _Class(512, 6),
    "inkling2": _Class(1024, 6),
    "kolibri1": _Class(513, 5),
    "laguna": _Class(512, 1),
    "mellum": _Class(1024, 1),
    "mimo_v2_flash": _Class(129, 6, first=1),
    "muse_spark": _Class(2048, 4, from_end=True),
    "olmo3": _Class(4096, 4),
    "openai_privacy_filter": _Class(128),
    "step3p7": _Class(0, 1),
    "unlimited_ocr": _Class(128),
    "zaya": _Class(0, 1),
}
"""Read from the config classes of transformers 5.23, by ``model_type`` without ``_text``; others have no window unless
their config names one, and then every layer has it."""
_CHUNKS = {"llama4": 8192}
_BORDERS = {"dots1": 62, "qwen2": 28, "qwen2_moe": 28, "qwen3": 28, "qwen3_moe": 0}
"""``max_window_layers`` of classes that have it; qwen3_moe has none, but the switch ``use_sliding_window``."""
_PERIOD_KEYS = ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
_WINDOW_KEYS = ("sliding_window", "sliding_window_size")


def layer_windows(config: Mapping[str, Any], layers: int) -> list[Window]:
    """The restriction of each of ``layers`` decoder layers.

    ``layer_types`` says it where it is there, as in every config that transformers completed; published configs often
    have the keys instead from which transformers makes that list.
    """
    name = _class_name(config)
    chunk = _length(config, ("attention_chunk_size",), _CHUNKS.get(name, 0))
    window = _length(config, _WINDOW_KEYS, _CLASSES.get(name, _Class()).window)
    if name == "mimo_v2_flash" and (before := _size(find(config, "sliding_window_size"))):
        window = before + 1  # it counts the tokens before the current one
    types = find(config, "layer_types", "attention_types")
    if isinstance(types, Sequence) and not isinstance(types, str) and len(types) >= layers:
        return [_by_name(str(kind), window, chunk) for kind in types[:layers]]
    if chunk:
        return [("chunked", chunk) if restricted else None for restricted in _with_positions(config, layers)]
    if not window:
        return [None] * layers
    return [("sliding", window) if restricted else None for restricted in _slides(config, layers, name)]


def _class_name(config: Mapping[str, Any]) -> str:
    """The name of the class that describes the text decoder, as far as defaults are concerned."""
    names = [canonical(str(place.get("model_type"))).removesuffix("_text") for place in (text_config(config), config)]
    return next((name for name in names if name in _CLASSES or name in _CHUNKS or name in _BORDERS), names[0])


def _length(config: Mapping[str, Any], keys: tuple[str, ...], default: int) -> int:
    """A number of tokens; the default only where no key is there: ``null`` stands for no window."""
    stated = any(key in place for place in (text_config(config), config) for key in keys)
    return _size(find(config, *keys)) if stated else default


def _by_name(kind: str, window: int, chunk: int) -> Window:
    if any(word in kind for word in ("sliding", "local", "swa", "compressed")):  # compressed: beside a window
        return ("sliding", window) if window else None
    return ("chunked", chunk) if "chunked" in kind and chunk else None


def _with_positions(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Llama 4: layers without position embeddings see everything, the others their chunk."""
    listed = find(config, "no_rope_layers")
    if isinstance(listed, list) and len(listed) >= layers:
        return [bool(has_positions) for has_positions in listed[:layers]]
    interval = _size(find(config, "no_rope_layer_interval")) or 4
    return [(layer + 1) % interval != 0 for layer in range(layers)]


def _slides(config: Mapping[str, Any], layers: int, name: str) -> list[bool]:
    """Whether each layer slides, for a config with a window and without a list of layer types."""
    pattern = find(config, "hybrid_layer_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers:
        return [bool(slides) for slides in pattern[:layers]]
    listed = find(config, "local_layer_ids")
    if isinstance(listed, list):
        return [layer in listed for layer in range(layers)]
    switch, border = find(config, "use_sliding_window"), find(config, "max_window_layers")
    if name in _BORDERS or (switch is not None and border is not None):
        border = border if type(border) is int and name != "qwen3_moe" else _BORDERS.get(name, 0)
        on = bool(switch) or name == "dots1"  # which has no switch
        return [on and _inside(layer, border, name) for layer in range(layers)]
    if switch is False:
        return [False] * layers
    period = find(config, *_PERIOD_KEYS)
    if isinstance(period, str) and period:
        return [period[layer % len(period)] == "L" for layer in range(layers)]
    prefix = _size(find(config, "first_k_dense_replace")) if name == "cohere2_moe" else 0
    before = _size(find(config, "prefix_dense_sliding_window_pattern")) or 1
    rest = _periodic(_CLASSES.get(name, _Class()), _size(period), layers - prefix)
    return [(layer + 1) % before != 0 for layer in range(min(prefix, layers))] + rest


def _inside(layer: int, border: int, name: str) -> bool:
    """Whether a layer slides where the config names a border between layers that do and layers that do not."""
    return layer % 2 == 0 and layer < border if name == "qwen2_moe" else layer >= border


def _periodic(defaults: _Class, period: int, layers: int) -> list[bool]:
    period = period or defaults.period
    phase = layers - 1 if defaults.from_end else defaults.phase
    return [
        not (
            layer < defaults.first
            or (period and (layer - phase) % period == 0)
            or (defaults.last and layer == layers - 1)
        )
        for layer in range(layers)
    ]


def _size(value: Any) -> int:
    """A positive whole number of a config, which some tools write as 4096.0, or 0."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return whole if type(whole) is int and whole > 0 else 0
