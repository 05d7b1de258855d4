"""Logical parameters of stored tensors: enters one kind of tensor and its siblings, leaves how many parameters it has.

Formats: MXFP4 as gpt-oss publishes it (``*_blocks`` and ``*_scales``), NVFP4 and bitsandbytes (two parameters per U8
element of a scaled weight), DeepSeek's FP4 (two per I8 element), AWQ and GPTQ (``qweight``), compressed-tensors
(``weight_packed``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from moetool.checkpoint.dtypes import BITS
from moetool.model.families import text_config

Shape = tuple[int, ...]
Sibling = Callable[[str], tuple[str, Shape] | None]
"""Dtype and shape of the tensor of this name (a template) next to the one in question; None where there is none."""

DEFAULT_BITS = 4
_SCALE = re.compile(
    r"\.(?:\w+_)?(?:weight_scale(?:_inv|_2)?|scale_inv|(?:weight|input|output)_global_scale|(?<!correct_)(?:input|output)_scale"
    r"|(?:weight|input|output)_zero_point|weight_shape|weight_g_idx)$"
    r"|\.(?:scales|qzeros|g_idx|SCB|weight_format)$|\.weight\.(?:absmax|quant_map|nested_\w+|quant_state\.\w+)$"
)
_CACHE_SCALE = re.compile(r"\.(?:[qkv]|kv|prob)_(?:\w+_)?(?:scale|zero_point)$")
_LOW_PRECISION = ("F8_", "F4", "F6_", "I8", "U8", "NVFP4")


def is_quantization(name: str, shape: Shape, sibling: Sibling) -> bool:
    """Whether a tensor is scales, zero points or another aid of quantisation: bytes, but no parameters."""
    if _SCALE.search(name) or (prod(shape) == 1 and _CACHE_SCALE.search(name)):
        return True
    if name.endswith("_scales"):
        return sibling(name.removesuffix("_scales") + "_blocks") is not None
    stem, _, last = name.rpartition(".")
    if last == "scale" or last.endswith("_scale"):
        weight = sibling(f"{stem}.weight" if last == "scale" else name.removesuffix("_scale"))
        return weight is not None and weight[0].startswith(_LOW_PRECISION)
    return False


def logical_parameters(name: str, dtype: str, shape: Shape, sibling: Sibling, bits: int) -> int:
    """Parameters in one stored tensor: its elements, or more where several are packed into one element.

    ``bits`` is the width that the config gives for packed integers.
    """
    elements = prod(shape)
    stem, _, last = name.rpartition(".")
    if last == "qweight":
        return _qweight(stem, dtype, shape, sibling, bits)
    if last == "weight_packed":
        return elements * (2 if dtype == "U8" else BITS.get(dtype, bits) // bits)
    if last.endswith("_blocks") and dtype == "U8":
        return elements * 2
    if dtype not in ("U8", "I8"):
        return elements
    return elements * 2 if _is_packed(dtype, shape, _scale_of(name, sibling)) else elements


def _scale_of(name: str, sibling: Sibling) -> tuple[str, Shape] | None:
    suffixes = ("_scale", "_scales", "_scale_inv", "_weight_scale", ".absmax")
    stem = name.rpartition(".")[0]
    return next((found for suffix in suffixes if (found := sibling(name + suffix))), sibling(f"{stem}.scale"))


def _is_packed(dtype: str, shape: Shape, scale: tuple[str, Shape] | None) -> bool:
    """Whether an element of eight bits with this scale holds two parameters."""
    if scale is None or dtype == "U8":
        return scale is not None
    # 32 parameters share a scale of eight bits: they fill 16 bytes where they have four bits each
    return scale[0] == "F8_E8M0" and bool(shape) and bool(scale[1]) and shape[-1] == 16 * scale[1][-1]


def _qweight(stem: str, dtype: str, shape: Shape, sibling: Sibling, bits: int) -> int:
    """AWQ packs the outputs, GPTQ the inputs; scales ``[groups, outputs]`` and ``g_idx`` ``[inputs]`` are plain."""
    scales, order = sibling(f"{stem}.scales"), sibling(f"{stem}.g_idx")
    if len(shape) == 2 and scales and len(scales[1]) == 2 and scales[1][1] != shape[1]:
        return shape[0] * scales[1][1]
    if len(shape) == 2 and order and len(order[1]) == 1:
        return order[1][0] * shape[1]
    return prod(shape) * BITS.get(dtype, 32) // bits


def packed_bits(config: Mapping[str, Any]) -> int:
    """The width of packed integers by ``quantization_config``: ``bits``, ``w_bit`` or, in groups, ``num_bits``."""
    for place in (config, text_config(config)):
        settings = place.get("quantization_config") or place.get("compression_config")
        if not isinstance(settings, Mapping):
            continue
        found = [
            settings.get("bits"),
            settings.get("w_bit"),
            *(weights.get("num_bits") for weights in weight_groups(settings)),
        ]
        for bits in found:
            if type(bits) is int and 1 <= bits <= 32:
                return bits
    return DEFAULT_BITS


def weight_groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What compressed-tensors says of the weights of each group of modules."""
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    weights = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return [settings for settings in weights if isinstance(settings, Mapping)]


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """The name of the quantisation that a config declares, such as ``fp8``; None where it declares none."""
    for place in (config, text_config(config)):
        settings = place.get("quantization_config") or place.get("compression_config")
        if isinstance(settings, Mapping):
            return str(settings.get("quant_method") or settings.get("quant_algo") or "unnamed")
    return None


def scheme_of(name: str, dtype: str, shape: Shape, sibling: Sibling) -> str:
    """How the parameters of a weight are stored, told by its own type and the tensors beside it; "" for plain ones."""
    stem, _, last = name.rpartition(".")
    if last == "qweight":
        return _integer_scheme(stem, shape, sibling)
    if last == "weight_packed":
        return "nvfp4" if sibling(f"{stem}.weight_global_scale") and dtype == "U8" else "compressed-tensors"
    if last.endswith("_blocks") and dtype == "U8":
        return "mxfp4"
    if dtype == "U8" and sibling(f"{name}.absmax"):
        return "bitsandbytes"
    if dtype == "U8" and (sibling(f"{name}_scale_2") or sibling(f"{name}_weight_scale_2")):
        return "nvfp4"
    if dtype.startswith("F8_"):
        return "fp8 blocks" if sibling(f"{name}_scale_inv") else "fp8"
    if dtype not in ("I8", "U8"):
        return ""
    scale = _scale_of(name, sibling)
    if _is_packed(dtype, shape, scale):
        return "mxfp4" if scale and scale[0] in ("U8", "F8_E8M0") else "packed"
    return "int8" if scale or sibling(f"{stem}.SCB") else ""


def _integer_scheme(stem: str, shape: Shape, sibling: Sibling) -> str:
    """AWQ packs the outputs, so that scales have more of them; GPTQ the inputs, whose order may be stored."""
    scales = sibling(f"{stem}.scales")
    if sibling(f"{stem}.g_idx") or (len(shape) == 2 and scales and scales[1][-1:] == shape[1:]):
        return "gptq"
    return "awq" if sibling(f"{stem}.qzeros") else "packed"
