"""What a model is: enters a Checkpoint (of headers, or of a model built on the meta device), leaves ModelFacts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from moetool.checkpoint.dtypes import BITS
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.model import families
from moetool.model.families import Role
from moetool.model.packing import is_quantization, logical_parameters, packed_bits, quantization_method


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """All tensors of one role, layer and dtype."""

    role: Role
    layer: int | None
    """Decoder layer; None outside of the decoder's layers. Layers of a decoder behind an encoder count on from it."""
    dtype: str
    """The header's name of the stored type."""
    parameters: int
    """Logical parameters: packed ones each, a shared matrix once; scales, correction biases and buffers are none."""
    bytes: int
    """Stored bytes."""
    owner: Role
    """The role itself; for ``quantization`` the role of the weights that it belongs to."""


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One layer with routed experts."""

    layer: int
    experts: int
    experts_per_token: int | None
    """None where the config does not say."""
    shared_experts: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model consists of; its groups add up to the checkpoint to the byte."""

    name: str
    revision: str | None
    family: str
    source: Literal["header", "config"]
    """Stored tensors, or those of a model that only the config describes."""
    layers: int
    """Decoder layers (of an encoder-decoder: both stacks), without multi-token prediction."""
    hidden_size: int | None
    moe_layers: tuple[MoELayer, ...]
    """In layer order; empty for a dense model."""
    groups: tuple[ParameterGroup, ...]
    tied_head: bool
    """The output head is the input embedding."""
    correction_biases: int
    """Elements of router correction biases, which are no parameters."""
    copied_parameters: int
    """Elements of stored second copies: a tied head, the embedding and head inside multi-token prediction layers."""
    quantization: str | None
    """The method that the config declares."""
    config_experts: int | None
    """Routed experts per layer by the config, which a pruned checkpoint may contradict."""
    zero_experts: int
    """Experts per layer that a router may choose and that compute nothing; not in ``MoELayer.experts``."""
    unknown_dtypes: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(group.bytes for group in self.groups)


@dataclass(slots=True)
class _Cell:
    """Tensors that differ in nothing but the number of their expert."""

    name: str
    """Template: every index is ``#``."""
    layer: int | None
    dtype: str
    shape: tuple[int, ...]
    tensors: int = 0
    bytes: int = 0


def model_facts(checkpoint: Checkpoint, source: Literal["header", "config"] = "header") -> ModelFacts:
    """Sort the tensors of a checkpoint by role, layer and dtype; the config adds what no tensor shows (top-k)."""
    config = checkpoint.config
    cells, experts_seen = _cells(checkpoint.tensors, families.encoder_layers(config))
    depth = families.per_layer(families.find(config, families.LAYERS[0]), 0)
    roles = [_role(cell, None if families.encoder_layers(config) else depth) for cell in cells]
    routed = [cell for cell, role in zip(cells, roles, strict=True) if role == "routed_experts"]
    with_experts = {cell.layer for cell in routed}
    tie = config.get("tie_word_embeddings")
    sorter = _Sorter(cells, packed_bits(config), tied=tie is True and "embedding" in roles)
    for cell, role in zip(cells, roles, strict=True):
        # granitemoehybrid calls its only FFN shared_mlp in layers without experts
        sorter.add(cell, "dense_ffn" if role == "shared_experts" and cell.layer not in with_experts else role)
    groups = sorter.groups()
    trunk = {group.layer for group in groups if group.layer is not None and group.owner != "mtp"}
    shared = {group.layer for group in groups if group.role == "shared_experts"}
    return ModelFacts(
        name=checkpoint.name,
        revision=checkpoint.revision,
        family=families.family_of(config).name,
        source=source,
        layers=len(trunk),
        hidden_size=families.per_layer(families.find(config, *families.HIDDEN_SIZE), 0),
        moe_layers=_moe_layers(config, routed, experts_seen, shared),
        groups=groups,
        tied_head=tie is True or (tie is None and "lm_head" not in roles and "embedding" in roles),
        correction_biases=sorter.correction_biases,
        copied_parameters=sorter.copied,
        quantization=quantization_method(config),
        config_experts=families.per_layer(families.find(config, *families.EXPERTS), 0),
        zero_experts=families.per_layer(families.find(config, *families.ZERO_EXPERTS), 0) or 0,
        unknown_dtypes=tuple(sorted({cell.dtype for cell in cells} - BITS.keys())),
    )


def _cells(tensors: Iterable[TensorInfo], encoder_layers: int) -> tuple[list[_Cell], dict[int | None, set[int]]]:
    """Tensors grouped by template, layer, dtype and shape; and the expert ids that occur in each layer.

    Names are cut at ``.experts.`` and both halves looked up: few differ, so that 90,000 names are read quickly.
    """
    heads: dict[str, tuple[str, int | None]] = {}
    tails: dict[str, tuple[str, int | None]] = {}
    cells: dict[tuple[str, str, int | None, str, tuple[int, ...]], _Cell] = {}
    experts_seen: dict[int | None, set[int]] = defaultdict(set)
    for tensor in tensors:
        head, cut, tail = tensor.name.partition(".experts.")
        if head not in heads:
            first = next(families.indices(head), None)
            offset = encoder_layers if head.startswith(("decoder.", "model.decoder.")) else 0
            heads[head] = families.template(head), None if first is None else first + offset
        if tail not in tails:
            pattern = families.template("." + tail)[1:]
            tails[tail] = pattern, next(families.indices("." + tail)) if pattern.startswith("#.") else None
        (before, layer), (after, expert) = heads[head], tails[tail]
        key = before, after, layer, tensor.dtype, tensor.shape
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = _Cell(before + cut + after, layer, tensor.dtype, tensor.shape)
        cell.tensors += 1
        cell.bytes += tensor.size_bytes
        if expert is not None:
            experts_seen[layer].add(expert)
    return list(cells.values()), experts_seen


def _role(cell: _Cell, depth: int | None) -> Role:
    """The role by name; decoder layers beyond the config's number are multi-token prediction."""
    role = families.role_of(cell.name)
    beyond = depth is not None and cell.layer is not None and cell.layer >= depth
    return "mtp" if beyond and role != "vision" else role


@dataclass(slots=True)
class _Sum:
    parameters: int = 0
    bytes: int = 0


class _Sorter:
    """Adds up tensors by role, layer and dtype."""

    def __init__(self, cells: Iterable[_Cell], bits: int, tied: bool) -> None:
        self.kinds = {(cell.name, cell.layer): (cell.dtype, cell.shape) for cell in cells}
        self.bits, self.tied = bits, tied
        self.sums: dict[tuple[Role, Role, int | None, str], _Sum] = defaultdict(_Sum)
        self.correction_biases = self.copied = 0

    def add(self, cell: _Cell, owner: Role) -> None:
        def sibling(name: str) -> tuple[str, tuple[int, ...]] | None:
            return self.kinds.get((name, cell.layer))

        role, parameters = owner, 0
        if is_quantization(cell.name, cell.shape, sibling):
            role = "quantization"
        elif families.CORRECTION_BIAS.search(cell.name):
            self.correction_biases += prod(cell.shape) * cell.tensors
        elif not families.BUFFER.search(cell.name):
            parameters = logical_parameters(cell.name, cell.dtype, cell.shape, sibling, self.bits) * cell.tensors
            if (owner == "lm_head" and self.tied) or (owner == "mtp" and families.COPY_IN_MTP.search(cell.name)):
                self.copied, parameters = self.copied + parameters, 0
        layer = None if owner == "vision" or families.MTP.search(cell.name) else cell.layer
        total = self.sums[role, owner, layer, cell.dtype]
        total.parameters += parameters
        total.bytes += cell.bytes

    def groups(self) -> tuple[ParameterGroup, ...]:
        """The sums, by layer and role."""
        order = sorted(self.sums, key=lambda key: (key[2] is not None, key[2] or 0, key[0], key[1], key[3]))
        return tuple(
            ParameterGroup(role, layer, dtype, self.sums[key].parameters, self.sums[key].bytes, owner)
            for key in order
            for role, owner, layer, dtype in [key]
        )


def _moe_layers(
    config: Mapping[str, Any], routed: Iterable[_Cell], seen: Mapping[int | None, set[int]], shared: set[int | None]
) -> tuple[MoELayer, ...]:
    """Layers with routed experts: their number is that of the stored ones, or the leading axis of fused ones."""
    fused: dict[int, int] = {}
    for cell in routed:
        if cell.layer is not None:
            axis = cell.shape[0] if len(cell.shape) > 2 else 0
            fused[cell.layer] = max(fused.get(cell.layer, 0), axis)
    declared = families.find(config, *families.EXPERTS)
    shared_experts = families.find(config, *families.SHARED_EXPERTS)
    layers = []
    for layer, axis in sorted(fused.items()):
        experts = len(seen.get(layer, ())) or axis or families.per_layer(declared, layer) or 1
        chosen = families.experts_per_token_of(config, layer)
        layers.append(
            MoELayer(
                layer,
                experts,
                None if chosen is None else min(chosen, experts),
                families.per_layer(shared_experts, layer) or 1 if layer in shared else 0,
            )
        )
    return tuple(layers)
