"""What a model is: enters a Checkpoint (of headers, or of a model built on the meta device), leaves ModelFacts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moetool.checkpoint.dtypes import KNOWN
from moetool.checkpoint.types import Checkpoint
from moetool.model import families
from moetool.model.caches import Mixer
from moetool.model.families import Role
from moetool.model.inventory import Inventory, Kind, correction_biases, take_inventory
from moetool.model.mixer_parts import Weight
from moetool.model.mixing import read_mixers
from moetool.model.packing import quantization_method


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
    matrices: int = 0
    """Parameters among them with which every token is multiplied: no norms, biases and input embeddings."""


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
    mixers: tuple[Mixer, ...] = ()
    """Token mixers of the decoder layers, in layer order; empty where the hidden size is not known."""
    config_layers: int | None = None
    """Decoder layers by the config, which an incomplete checkpoint may contradict; None for encoder-decoders."""
    heads: int | None = None
    """Attention heads, by the config."""
    vocabulary: int | None = None
    """Tokens that the config's vocabulary has."""
    max_context: int | None = None
    """Tokens of the longest sequence that the config allows."""

    @property
    def total_bytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(group.bytes for group in self.groups)


def model_facts(checkpoint: Checkpoint, source: Literal["header", "config"] = "header") -> ModelFacts:
    """Sort the tensors of a checkpoint by role, layer and dtype; the config adds what no tensor shows (top-k)."""
    return facts_of(checkpoint, take_inventory(checkpoint.tensors, checkpoint.config), source)


def facts_of(checkpoint: Checkpoint, inventory: Inventory, source: Literal["header", "config"]) -> ModelFacts:
    """The facts of a checkpoint whose inventory was taken before."""
    config, kinds = checkpoint.config, inventory.kinds
    groups = _groups(kinds)
    roles = {kind.owner for kind in kinds}
    trunk = {group.layer for group in groups if group.layer is not None and group.owner != "mtp"}
    shared = {group.layer for group in groups if group.role == "shared_experts"}
    hidden_size = families.per_layer(families.find(config, *families.HIDDEN_SIZE), 0)
    tie = config.get("tie_word_embeddings")
    routed = [kind for kind in kinds if kind.role == "routed_experts"]
    return ModelFacts(
        name=checkpoint.name,
        revision=checkpoint.revision,
        family=families.family_of(config).name,
        source=source,
        layers=len(trunk),
        hidden_size=hidden_size,
        moe_layers=_moe_layers(config, routed, inventory.experts, shared),
        groups=groups,
        tied_head=tie is True or (tie is None and "lm_head" not in roles and "embedding" in roles),
        correction_biases=correction_biases(kinds),
        copied_parameters=sum(kind.copied * kind.tensors for kind in kinds),
        quantization=quantization_method(config),
        config_experts=families.per_layer(families.find(config, *families.EXPERTS), 0),
        zero_experts=families.per_layer(families.find(config, *families.ZERO_EXPERTS), 0) or 0,
        unknown_dtypes=tuple(sorted({kind.dtype for kind in kinds} - KNOWN)),
        mixers=read_mixers(config, hidden_size, _mixing_weights(kinds), max(trunk, default=-1) + 1),
        config_layers=None if families.encoder_layers(config) else families.depth_of(config),
        heads=families.per_layer(families.find(config, *families.HEADS), 0),
        vocabulary=families.per_layer(families.find(config, "vocab_size"), 0),
        max_context=families.per_layer(families.find(config, *families.MAX_CONTEXT), 0) or None,
    )


def _groups(kinds: Iterable[Kind]) -> tuple[ParameterGroup, ...]:
    """The sums by role, layer and dtype, by layer and role."""
    sums: dict[tuple[Role, Role, int | None, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for kind in kinds:
        total = sums[kind.role, kind.owner, kind.layer, kind.dtype]
        parameters = kind.parameters * kind.tensors
        total[0] += parameters
        total[1] += kind.bytes
        total[2] += parameters if kind.is_matrix else 0
    order = sorted(sums, key=lambda key: (key[2] is not None, key[2] or 0, key[0], key[1], key[3]))
    return tuple(
        ParameterGroup(role, layer, dtype, parameters, size, owner, matrices)
        for role, owner, layer, dtype in order
        for parameters, size, matrices in [sums[role, owner, layer, dtype]]
    )


def _mixing_weights(kinds: Iterable[Kind]) -> dict[int, list[Weight]]:
    """The weights of token mixers by decoder layer, each named by what comes after the layer's number."""
    found: dict[int, list[Weight]] = defaultdict(list)
    for kind in kinds:
        if kind.role == "attention" and kind.layer is not None:
            name = kind.name.partition("#.")[2]
            found[kind.layer].append(Weight(name, kind.shape, kind.tensors, kind.parameters * kind.tensors))
    return found


def _moe_layers(
    config: Mapping[str, Any], routed: Iterable[Kind], seen: Mapping[int | None, set[int]], shared: set[int | None]
) -> tuple[MoELayer, ...]:
    """Layers with routed experts: their number is that of the stored ones, or the leading axis of fused ones."""
    fused: dict[int, int] = {}
    for kind in routed:
        if kind.layer is not None:
            axis = kind.shape[0] if len(kind.shape) > 2 else 0
            fused[kind.layer] = max(fused.get(kind.layer, 0), axis)
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
