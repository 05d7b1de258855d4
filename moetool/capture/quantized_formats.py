"""Formats of quantised weights: enters a stored tensor and the config, leaves which tensors make a weight, and how.

Each format is told by names and stored types, and every shape is checked against the config before anything is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moetool.capture.dequantize import Layout
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.errors import MoetoolError

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
EXPONENTS = ("F8_E8M0", "U8")
"""How scales that are powers of two are stored."""
MX_BLOCK, NV_BLOCK = (1, 32), (1, 16)
"""The rows and columns that share a scale in the MX formats, and in NVFP4."""
COMPRESSED_FORMATS = frozenset(
    {
        "dense",
        "float-quantized",
        "int-quantized",
        "mixed-precision",
        "mxfp4-pack-quantized",
        "mxfp8-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "pack-quantized",
    }
)
"""The formats of compressed-tensors that are known here; the others are sparse, or pack six bits."""
PLAIN_BITS = (1, 2, 4, 8)
"""Widths of which a word of 32 bits holds a whole number; how others are packed changed between versions."""
_AGAIN = "download it again: a shard may be missing or from another model"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight as a model wants it, and the stored tensors that it is made of."""

    name: str
    """The name that it has, or would have, in a checkpoint that is not quantised."""
    parts: Mapping[str, str]
    """Names of tensors by role: ``weight``, and for a quantised one ``scale`` and what else its format has."""
    shape: tuple[int, ...]
    """As the model wants it; empty where only ``weight_shape`` tells."""
    layout: Layout | None = None
    """None for a weight that is stored as it is."""


class StoredTensors:
    """The tensors of a checkpoint by name, and the errors that are told of them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.by_name = {tensor.name: tensor for tensor in checkpoint.tensors}

    def first(self, *names: str) -> TensorInfo | None:
        """The first of these that is stored."""
        return next((self.by_name[name] for name in names if name in self.by_name), None)

    def need(self, weight: TensorInfo, *names: str) -> TensorInfo:
        """The first of these that is stored; MoetoolError where none is: the weight would be other numbers."""
        found = self.first(*names)
        if found is None:
            raise MoetoolError(
                f"the checkpoint lacks {names[0]}, without which {weight.name} ({weight.dtype}) means nothing", _AGAIN
            )
        return found

    def check_plain(self, weight: TensorInfo, scale: str) -> None:
        """MoetoolError where a tensor that is not packed has a scale nevertheless: nobody knows what that means."""
        found = self.first(scale)
        if found is not None:
            raise _unknown(weight, found)

    def assemble(
        self, name: str, weight: TensorInfo, scale: TensorInfo, layouts: Sequence[Layout], **others: TensorInfo | None
    ) -> StoredWeight:
        """The weight in the one layout that its shapes fit; MoetoolError where none of the possible does, or two do."""
        fitting = [layout for layout in layouts if layout.fits(weight.shape, scale.shape)]
        if not fitting:
            blocks = " or ".join(sorted({_block(layout) for layout in layouts})) or "any block of the config"
            raise MoetoolError(
                f"{weight.name} has shape {list(weight.shape)} and {scale.name} has shape {list(scale.shape)},"
                f" which does not fit {blocks}",
                "take the config.json that belongs to these weights",
            )
        if any(layout != fitting[0] for layout in fitting[1:]):
            raise MoetoolError(
                f"{weight.name}: the config describes it in more than one way", "moetool memory works on it"
            )
        parts = {role: part for role, part in {"weight": weight, "scale": scale, **others}.items() if part}
        shape = fitting[0].model_shape(weight.shape, scale.shape, "shape" in parts)
        return StoredWeight(name, {role: part.name for role, part in parts.items()}, shape, fitting[0])


Format = Callable[[StoredTensors, Mapping[str, Any], TensorInfo], StoredWeight | None]
"""Takes all tensors, the quantisation settings and one tensor; None where that one is no quantised weight."""


def deepseek_fp8(tensors: StoredTensors, settings: Mapping[str, Any], tensor: TensorInfo) -> StoredWeight | None:
    """FP8 in blocks (DeepSeek-V3, Qwen, MiniMax-M2) or per tensor (Mistral), MXFP8, and the FP4 of DeepSeek-V4."""
    if tensor.dtype not in (*FLOAT8, "I8", "F4"):
        tensors.check_plain(tensor, f"{tensor.name}_scale_inv")
        return None
    stem = tensor.name.removesuffix(".weight")
    scale = tensors.need(tensor, f"{tensor.name}_scale_inv", f"{stem}.scale", f"{stem}.qscale_weight")
    if tensor.dtype not in FLOAT8:
        if scale.dtype not in EXPONENTS:
            raise _unknown(tensor, scale)
        return tensors.assemble(tensor.name, tensor, scale, [Layout("fp4", MX_BLOCK)])
    block = settings.get("weight_block_size", (128, 128))
    layouts = [Layout("plain", (block[0], block[1]) if block else (0, 0))]
    if scale.dtype in EXPONENTS and not layouts[0].fits(tensor.shape, scale.shape):
        layouts = [Layout("plain", MX_BLOCK)]
    return tensors.assemble(tensor.name, tensor, scale, layouts)


def gpt_oss_mxfp4(tensors: StoredTensors, settings: Mapping[str, Any], tensor: TensorInfo) -> StoredWeight | None:
    """MXFP4 as gpt-oss has it: ``[E, rows, blocks, 16]`` bytes; the model wants the rows last."""
    if not tensor.name.endswith("_blocks") or tensor.dtype != "U8":
        return None
    name = tensor.name.removesuffix("_blocks")
    scale = tensors.need(tensor, f"{name}_scales")
    return tensors.assemble(name, tensor, scale, [Layout("fp4", MX_BLOCK, transposed=True, split=True)])


def modelopt(tensors: StoredTensors, settings: Mapping[str, Any], tensor: TensorInfo) -> StoredWeight | None:
    """NVIDIA's FP8 (one scale per tensor) and NVFP4 (scales of 16 columns, and one for them all)."""
    if tensor.name.endswith("pre_quant_scale"):
        raise MoetoolError(f"{tensors.checkpoint.name} scales its activations ({tensor.name}), which cannot be run")
    if not tensor.name.endswith("weight") or tensor.dtype not in (*FLOAT8, "U8"):
        tensors.check_plain(tensor, f"{tensor.name}_scale")
        return None
    scale = tensors.need(tensor, f"{tensor.name}_scale")
    if tensor.dtype in FLOAT8:
        return tensors.assemble(tensor.name, tensor, scale, [Layout("plain", (0, 0))])
    whole = tensors.need(tensor, f"{tensor.name}_scale_2")
    return tensors.assemble(tensor.name, tensor, scale, [Layout("fp4", NV_BLOCK)], global_scale=whole)


def compressed(tensors: StoredTensors, settings: Mapping[str, Any], tensor: TensorInfo) -> StoredWeight | None:
    """compressed-tensors: integers in words or bytes, FP8, MXFP8, MXFP4 and NVFP4, by groups of modules."""
    stem, _, last = tensor.name.rpartition(".")
    if last == "weight_packed":
        return (_packed_integers if tensor.dtype == "I32" else _packed_fp4)(tensors, settings, tensor, stem)
    if last != "weight":
        return None
    if tensor.dtype not in (*FLOAT8, "I8"):
        tensors.check_plain(tensor, f"{tensor.name}_scale")
        return None
    scale = tensors.need(tensor, f"{tensor.name}_scale")
    if scale.dtype in EXPONENTS:
        return tensors.assemble(tensor.name, tensor, scale, [Layout("plain", MX_BLOCK)])
    groups = list(_groups(settings, stem))
    layouts = [Layout("plain", block) for group in groups for block in _blocks(group)]
    zeros = _zero_points(tensors, tensor, stem, groups)
    return tensors.assemble(tensor.name, tensor, scale, layouts, zero_point=zeros)


def _packed_integers(
    tensors: StoredTensors, settings: Mapping[str, Any], tensor: TensorInfo, stem: str
) -> StoredWeight:
    groups = list(_groups(settings, stem))
    widths = {group.get("num_bits", 8) for group in groups}
    if not widths <= set(PLAIN_BITS):
        bits = ", ".join(sorted(map(str, widths)))
        raise MoetoolError(f"{tensor.name} packs integers of {bits} bits, which cannot be run")
    layouts = [Layout("packed", block, group.get("num_bits", 8)) for group in groups for block in _blocks(group)]
    return tensors.assemble(
        f"{stem}.weight",
        tensor,
        tensors.need(tensor, f"{stem}.weight_scale"),
        layouts,
        zero_point=_zero_points(tensors, tensor, stem, groups),
        shape=tensors.first(f"{stem}.weight_shape"),
        order=tensors.first(f"{stem}.weight_g_idx"),
    )


def _packed_fp4(tensors: StoredTensors, settings: Mapping[str, Any], tensor: TensorInfo, stem: str) -> StoredWeight:
    scale = tensors.need(tensor, f"{stem}.weight_scale")
    if tensor.dtype != "U8" or tensors.first(f"{stem}.weight_zero_point"):
        raise _unknown(tensor, scale)
    if scale.dtype in EXPONENTS:
        return tensors.assemble(f"{stem}.weight", tensor, scale, [Layout("fp4", MX_BLOCK)])
    whole = tensors.need(tensor, f"{stem}.weight_global_scale")
    layout = Layout("fp4", NV_BLOCK, inverse=True)
    return tensors.assemble(f"{stem}.weight", tensor, scale, [layout], global_scale=whole)


def _zero_points(
    tensors: StoredTensors, tensor: TensorInfo, stem: str, groups: Sequence[Mapping[str, Any]]
) -> TensorInfo | None:
    """Zero points, which every group that could be meant must have for them to be needed."""
    name = f"{stem}.weight_zero_point"
    asymmetric = bool(groups) and not any(group.get("symmetric", True) for group in groups)
    return tensors.need(tensor, name) if asymmetric else tensors.first(name)


def _groups(settings: Mapping[str, Any], module: str) -> Iterator[Mapping[str, Any]]:
    """The settings of weights of the groups that a module may be in: those that name it, else those of its class."""
    groups = [group for group in (settings.get("config_groups") or {}).values() if group.get("weights")]
    naming = [group for group in groups if any(_names(target, module) for target in group.get("targets", ()))]
    classes = [g for g in groups if any(t.isidentifier() for t in g.get("targets", ()))]
    for group in naming or classes or groups:
        yield group["weights"]


def _names(target: str, module: str) -> bool:
    return bool(re.match(target[3:], module)) if target.startswith("re:") else target == module


def _blocks(group: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The rows and columns that share a scale by a group's strategy; empty for one that weights do not have."""
    size = group.get("group_size") or 0
    strategy = group.get("strategy") or ("group" if size > 0 else "channel" if size == -1 else "tensor")
    if strategy == "block" and group.get("block_structure"):
        rows, columns = group["block_structure"]
        return [(int(rows), int(columns))]
    known = {"tensor": (0, 0), "channel": (1, 0), "group": (1, size), "tensor_group": (1, size)}
    return [known[strategy]] if strategy in known else []


def _block(layout: Layout) -> str:
    rows, columns = (str(size) if size else "all" for size in layout.block)
    return f"blocks of {rows} rows and {columns} columns"


def _unknown(tensor: TensorInfo, scale: TensorInfo) -> MoetoolError:
    return MoetoolError(
        f"{tensor.name} is stored as {tensor.dtype} with {scale.name} as {scale.dtype}, which is no known format",
        "moetool memory works on it",
    )
