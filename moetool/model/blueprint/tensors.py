"""A model counted from its config, without torch: enters a config, leave the tensors that transformers would have.

Tests hold that every tensor is the one of transformers' own model on the meta device (``meta``), which takes a hundred
times as long. How families are built is in ``architectures``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from moetool.checkpoint.dtypes import BITS, FROM_TORCH
from moetool.checkpoint.types import TensorInfo
from moetool.model.blueprint.architectures import BLUEPRINTS, ELSEWHERE, WRAPPERS, Blueprint, Wrapper
from moetool.model.blueprint.blocks import Part, linear, norms
from moetool.model.blueprint.settings import Settings, UnknownSizeError
from moetool.model.families import text_config, to_native
from moetool.model.meta import DEFAULT_DTYPE, MOST_LAYERS


def blueprint_tensors(config: Mapping[str, Any]) -> tuple[TensorInfo, ...] | None:
    """The tensors of the text decoder that a config describes: names, shapes and bytes of transformers' model.

    Bytes are those of the config's dtype (bfloat16 where it names none). Routed experts are fused and a tied head is
    left out; towers beside the decoder and multi-token prediction are not built. None where the family has no
    blueprint, and where the config lacks a size or holds something else in its place: nothing is guessed. Switches and
    schedules that are missing have the defaults of transformers' config class.
    """
    try:
        native = to_native(dict(config))
        text = text_config(native)
        wrapper = WRAPPERS.get(str(native.get("model_type"))) if text is not native else None
        blueprint = {**BLUEPRINTS, **ELSEWHERE}.get(str(text.get("model_type")))
        if blueprint is None or (wrapper is None and text is not native):
            return None
        tied = _is_tied(native, text, blueprint, wrapper)
        parts = tuple(_parts(blueprint, _settings(text, blueprint.keys), wrapper, tied))
    except (UnknownSizeError, RecursionError):  # the latter of a config nested without end
        return None
    dtype = _dtype(native, text)
    return tuple(TensorInfo(name, dtype, shape, prod(shape) * BITS[dtype] // 8, None) for name, shape in parts)


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    named = (place.get(key) for place in (config, text) for key in ("dtype", "torch_dtype"))
    return FROM_TORCH.get(next((name for name in named if isinstance(name, str)), DEFAULT_DTYPE), "BF16")


def _is_tied(config: Mapping[str, Any], text: Mapping[str, Any], blueprint: Blueprint, wrapper: Wrapper | None) -> bool:
    place, default = text, blueprint.tied
    if wrapper is not None and not wrapper.decoder_ties:
        place, default = config, wrapper.tied
    return default is not None and Settings(place).flag(("tie_word_embeddings", default))


def _settings(config: Mapping[str, Any], keys: Mapping[str, str]) -> Settings:
    """A config in which values are found under the usual keys; two spellings that disagree raise UnknownSizeError."""
    usual = dict(config)
    for key, path in keys.items():
        place, _, name = path.rpartition(".")
        if place:  # the usual key outside of the nested config is not read
            usual.pop(key, None)
        inside = config.get(place) if place else config
        if isinstance(inside, Mapping) and name in inside:
            if usual.get(key, inside[name]) != inside[name]:
                raise UnknownSizeError(key)
            usual[key] = inside[name]
    return Settings(usual)


def _parts(blueprint: Blueprint, settings: Settings, wrapper: Wrapper | None, tied: bool) -> Iterator[Part]:
    stem, head = (wrapper.stem, wrapper.head) if wrapper else (blueprint.stem, "lm_head")
    hidden, vocabulary, layers = settings.hidden, settings.size("vocab_size"), blueprint.depth(settings)
    if layers > MOST_LAYERS:
        raise UnknownSizeError("num_hidden_layers")
    yield f"{stem}.{blueprint.embedding}.weight", (vocabulary, hidden)
    if blueprint.outside:
        yield from ((f"{stem}.{name}", shape) for name, shape in blueprint.outside(settings, 0))
    for layer in range(layers):
        place = f"{stem}.{blueprint.layers}.{layer}"
        for block in blueprint.layer:
            yield from ((f"{place}.{name}", shape) for name, shape in block(settings, layer))
    for name, shape in norms(blueprint.norm, bias=blueprint.norm_bias)(settings, 0):
        yield f"{stem}.{name}", shape
    for name, shape in linear(head, hidden, vocabulary, settings.flag(blueprint.head_bias)):
        if not (tied and name.endswith(".weight")):
            yield name, shape
