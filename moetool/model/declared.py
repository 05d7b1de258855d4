"""Bytes of a planned model as its config declares them: enters tensors without quantisation, leaves those of the files.

Layouts are those that publishers use: FP8 with a scale per block of a matrix or per matrix (DeepSeek-V3, Qwen3), MXFP4
experts (gpt-oss), packed integers of compressed-tensors (Kimi-K2.5). Other methods are not planned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

from moetool.checkpoint.dtypes import BITS
from moetool.checkpoint.types import TensorInfo
from moetool.model.families import role_of, template, text_config
from moetool.model.packing import packed_bits, weight_groups

Layout = Callable[[TensorInfo, Mapping[str, Any]], Iterator[TensorInfo]]
_QUANTIZED = ("attention", "routed_experts", "shared_experts", "dense_ffn")
_PLAIN = re.compile(r"(?:^|\.)(?:\w*gate|\w*conv\w*|A_log|\w*norm\w*)(?:\.|$)|bias$")
"""Parts that stay as they are in every published layout: gates of shared experts, convolutions, norms, biases."""
_MXFP4_GROUP = 32


def as_declared(tensors: Iterable[TensorInfo], config: Mapping[str, Any]) -> tuple[TensorInfo, ...] | None:
    """The tensors that a checkpoint of this config stores, in the layout of its ``quantization_config``.

    None where the config declares no quantisation, or a method whose layout is not known here.
    """
    settings = _settings(config)
    layout = _LAYOUTS.get(str(settings.get("quant_method"))) if settings else None
    if layout is None or (layout is _packed and settings.get("format") != "pack-quantized"):
        return None
    settings = {**settings, "bits": packed_bits(config)}
    spared = _spared(settings)
    only_experts = layout is _mxfp4
    found: list[TensorInfo] = []
    for tensor in tensors:
        role = role_of(template(tensor.name))
        chosen = role == "routed_experts" if only_experts else role in _QUANTIZED
        plain = len(tensor.shape) < 2 or _PLAIN.search(tensor.name) or spared(tensor.name.removesuffix(".weight"))
        found += layout(tensor, settings) if chosen and not plain else [tensor]
    return tuple(found)


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for place in (config, text_config(config)):
        if isinstance(place.get("quantization_config"), Mapping):
            settings: Mapping[str, Any] = place["quantization_config"]
            return settings
    return {}


def _spared(settings: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a module is one of those that the config leaves as they are."""
    lists = [settings.get(key) for key in ("modules_to_not_convert", "ignore")]
    listed = [entry for found in lists if isinstance(found, list) for entry in found if isinstance(entry, str)]
    patterns = []
    for entry in listed:
        if entry.startswith("re:"):
            try:
                patterns.append(re.compile(entry[3:]))
            except re.error:
                continue
        else:
            patterns.append(re.compile(r"(?:^|.*\.)" + re.escape(entry).replace(r"\*", r"[^.]*") + r"(?:\.|$)"))
    return lambda module: any(pattern.match(module) for pattern in patterns)


def _make(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, dtype, shape, prod(shape) * BITS[dtype] // 8, None)


def _fp8(tensor: TensorInfo, settings: Mapping[str, Any]) -> Iterator[TensorInfo]:
    """One byte each, and a scale in float32 for every block, or for every matrix where no blocks are declared."""
    yield _make(tensor.name, "F8_E4M3", tensor.shape)
    block = settings.get("weight_block_size")
    *leading, rows, columns = tensor.shape
    matrices = 2 if "gate_up" in tensor.name else 1  # fused here, stored one by one
    if not (isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        yield _make(f"{tensor.name}_scale_inv", "F32", (*leading, matrices))
        return
    high = matrices * -(-(rows // matrices) // block[0])
    yield _make(f"{tensor.name}_scale_inv", "F32", (*leading, high, -(-columns // block[1])))


def _mxfp4(tensor: TensorInfo, settings: Mapping[str, Any]) -> Iterator[TensorInfo]:
    """Blocks of 32 numbers of four bits and their scale of eight, along the inputs, which gpt-oss has in the middle."""
    if len(tensor.shape) != 3:
        yield tensor
        return
    experts, inputs, outputs = tensor.shape
    groups = -(-inputs // _MXFP4_GROUP)
    yield _make(f"{tensor.name}_blocks", "U8", (experts, outputs, groups, _MXFP4_GROUP // 2))
    yield _make(f"{tensor.name}_scales", "U8", (experts, outputs, groups))


def _packed(tensor: TensorInfo, settings: Mapping[str, Any]) -> Iterator[TensorInfo]:
    """Integers packed into 32 bits along the inputs, a scale per group of inputs, and the shape of every matrix."""
    stem = tensor.name.removesuffix(".weight")
    *leading, rows, columns = tensor.shape
    matrices = 2 if "gate_up" in tensor.name else 1
    yield _make(f"{stem}.weight_packed", "I32", (*leading, rows, -(-columns * settings["bits"] // 32)))
    groups = -(-columns // size) if (size := _group_size(settings)) else 1
    yield _make(f"{stem}.weight_scale", tensor.dtype, (*leading, rows, groups))
    yield _make(f"{stem}.weight_shape", "I64", (*leading, matrices, 2))


def _group_size(settings: Mapping[str, Any]) -> int:
    sizes = [weights.get("group_size") for weights in weight_groups(settings)]
    return next((size for size in sizes if type(size) is int and size > 0), 0)


_LAYOUTS: dict[str, Layout] = {"fp8": _fp8, "mxfp4": _mxfp4, "compressed-tensors": _packed}
