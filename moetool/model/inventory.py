"""What every stored tensor is: enters tensors and their config, leaves kinds of tensors with role and parameters.

Tensors that differ in nothing but the number of their expert are one kind: DeepSeek-V3 has 90,000 tensors of some 3,000
kinds.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from moetool.checkpoint.types import TensorInfo
from moetool.model import families
from moetool.model.families import Role
from moetool.model.packing import Sibling, is_quantization, logical_parameters, packed_bits, scheme_of

_DECODER = re.compile(r"(?:^|\.)decoder\.")
_PLAIN_2D = ("bias", "A_log", "ssm_a", "sinks")
"""Ends of names of tensors with two axes that multiply no matrix: biases of fused experts, decays."""


@dataclass(slots=True, eq=False)
class Kind:
    """Tensors that differ in nothing but the number of their expert."""

    name: str
    """Template: every index is ``#``."""
    first: str
    """Name of the first of them."""
    layer: int | None
    dtype: str
    shape: tuple[int, ...]
    tensors: int = 0
    bytes: int = 0
    """Stored bytes of all of them."""
    role: Role = "other"
    owner: Role = "other"
    """The role itself; for ``quantization`` the role of the weights that it belongs to."""
    parameters: int = 0
    """Logical parameters of each."""
    copied: int = 0
    """Elements of each that are a second copy of parameters stored elsewhere, and so are none."""
    steers: bool = False
    """A correction bias of a router."""
    scheme: str = ""
    """How parameters are packed or scaled: ``mxfp4``, ``fp8``, ...; empty for plain numbers."""

    @property
    def is_matrix(self) -> bool:
        """Whether a token is multiplied with it."""
        return self.owner not in ("norm", "embedding") and len(self.shape) > 1 and not self.name.endswith(_PLAIN_2D)


@dataclass(slots=True)
class Inventory:
    """The kinds of a checkpoint's tensors."""

    kinds: list[Kind]
    kind_of: list[Kind]
    """The kind of every tensor, in the order of the tensors."""
    experts: dict[int | None, set[int]] = field(default_factory=dict)
    """Expert ids that occur in each layer, where experts are stored one by one."""


def take_inventory(tensors: Iterable[TensorInfo], config: Mapping[str, Any]) -> Inventory:
    """Sort tensors into kinds and find out what each kind is."""
    tensors = tuple(tensors)
    inventory = _sort(tensors, families.encoder_layers(config))
    kinds = inventory.kinds
    depth = families.depth_of(config)
    # A layer beyond the config's number is multi-token prediction if it has what only such layers have.
    ahead = {kind.layer for kind in kinds if families.MTP_PART.search(kind.name)}
    beyond = (
        () if depth is None or families.encoder_layers(config) else {n for n in ahead if n is not None and n >= depth}
    )
    for kind in kinds:
        role = families.role_of(kind.name)
        kind.owner = "mtp" if kind.layer in beyond and role != "vision" else role
    _tell_dense(kinds)
    neighbours = _Neighbours(tensors, inventory)
    tied = config.get("tie_word_embeddings") is True and any(kind.owner == "embedding" for kind in kinds)
    bits = packed_bits(config)
    for kind in kinds:
        _measure(kind, neighbours.of(kind), bits, tied)
    return inventory


def expert_of(name: str) -> int | None:
    """The number of the expert that a tensor belongs to; None where it holds all of them, or none."""
    _, cut, tail = name.partition(".experts.")
    return _read_tail(tail)[1] if cut else None


def _read_tail(tail: str) -> tuple[str, int | None]:
    """The template of what comes after ``.experts.``, and the number of the expert that it begins with, if any."""
    template = families.template("." + tail)[1:]
    return template, next(families.indices("." + tail)) if template.startswith("#.") else None


@dataclass(slots=True)
class _Place:
    """A template in a layer: what comes before ``.experts.``, or a whole name."""

    template: str
    layer: int | None
    kinds: dict[tuple[str, str, tuple[int, ...]], Kind] = field(default_factory=dict)
    """By the template of what comes after, type and shape."""
    experts: set[int] = field(default_factory=set)


def _sort(tensors: Iterable[TensorInfo], encoder_layers: int) -> Inventory:
    """Names are cut at ``.experts.`` and both halves looked up: few differ, so that 90,000 names are read quickly."""
    places: dict[tuple[str, int | None], _Place] = {}
    heads: dict[str, _Place] = {}
    tails: dict[str, tuple[str, int | None]] = {}
    kind_of: list[Kind] = []
    for name, dtype, shape, size_bytes, _ in tensors:
        before, cut, after = name.partition(".experts.")
        place = heads.get(before)
        if place is None:
            key = _place(before, encoder_layers)
            place = heads[before] = places.setdefault(key, _Place(*key))
        if after not in tails:
            tails[after] = _read_tail(after)
        tail, expert = tails[after]
        kind = place.kinds.get((tail, dtype, shape))
        if kind is None:
            kind = place.kinds[tail, dtype, shape] = Kind(place.template + cut + tail, name, place.layer, dtype, shape)
        kind.tensors += 1
        kind.bytes += size_bytes
        kind_of.append(kind)
        if expert is not None:
            place.experts.add(expert)
    experts: dict[int | None, set[int]] = defaultdict(set)
    for place in places.values():
        experts[place.layer] |= place.experts
    return Inventory(list(dict.fromkeys(kind_of)), kind_of, experts)


def _place(head: str, encoder_layers: int) -> tuple[str, int | None]:
    """The template of the first part of a name, and the decoder layer that it names."""
    first = next(families.indices(head), None)
    offset = encoder_layers if _DECODER.search(head) else 0
    return families.template(head), None if first is None else first + offset


def _tell_dense(kinds: list[Kind]) -> None:
    """granitemoehybrid calls its only FFN shared_mlp in layers without experts."""
    with_experts = {kind.layer for kind in kinds if kind.owner == "routed_experts"}
    for kind in kinds:
        if kind.owner == "shared_experts" and kind.layer not in with_experts:
            kind.owner = "dense_ffn"


class _Neighbours:
    """Finds the tensors beside a kind; where experts of one layer differ, those of the same expert."""

    def __init__(self, tensors: Sequence[TensorInfo], inventory: Inventory) -> None:
        self._tensors, self._inventory = tensors, inventory
        self._by_name: dict[tuple[str, int | None], list[Kind]] = defaultdict(list)
        for kind in inventory.kinds:
            self._by_name[kind.name, kind.layer].append(kind)
        self._exact: dict[str, Kind] = {}

    def of(self, kind: Kind) -> Sibling:
        """By the template of a name, the tensor of that name beside ``kind``."""

        def sibling(name: str) -> tuple[str, tuple[int, ...]] | None:
            found = self._by_name.get((name, kind.layer), ())
            if len(found) == 1:
                return found[0].dtype, found[0].shape
            exact = self._exactly(name, kind) if found else None
            return None if exact is None else (exact.dtype, exact.shape)

        return sibling

    def _exactly(self, name: str, kind: Kind) -> Kind | None:
        """The one of several kinds of this name that has the numbers of ``kind``'s first tensor."""
        if not self._exact:
            pairs = zip(self._tensors, self._inventory.kind_of, strict=True)
            self._exact = {tensor.name: other for tensor, other in pairs}
        return self._exact.get(families.fill(name, kind.first))


def _measure(kind: Kind, sibling: Sibling, bits: int, tied: bool) -> None:
    kind.role = kind.owner
    if is_quantization(kind.name, kind.shape, sibling):
        kind.role = "quantization"
    elif families.CORRECTION_BIAS.search(kind.name):
        kind.steers = True
    elif not families.BUFFER.search(kind.name):
        parameters = logical_parameters(kind.name, kind.dtype, kind.shape, sibling, bits)
        copy = kind.owner == "mtp" and families.COPY_IN_MTP.search(kind.name)
        if (kind.owner == "lm_head" and tied) or copy:
            kind.copied = parameters
        else:
            kind.parameters = parameters
        kind.scheme = scheme_of(kind.name, kind.dtype, kind.shape, sibling)
    if kind.owner == "vision" or families.MTP.search(kind.name):
        kind.layer = None


def correction_biases(kinds: Iterable[Kind]) -> int:
    """Elements of router correction biases, which are no parameters."""
    return sum(prod(kind.shape) * kind.tensors for kind in kinds if kind.steers)
