"""What a model costs in parameters and bytes: enters ModelFacts, leaves sums; exact integer arithmetic throughout.

Active, per token: everything outside the routed experts, and of these K of E in every layer. Vision towers and
multi-token prediction are left out. Publishers count in three conventions, so all three are given (see ``Ledger``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from moetool.model.facts import ModelFacts, MoELayer, ParameterGroup

INACTIVE = ("vision", "mtp")
"""Owners that a text token does not use."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Parameters and stored bytes of a part of the model."""

    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One decoder layer; ``experts`` and ``experts_per_token`` are None in dense layers."""

    layer: int
    kind: Literal["moe", "dense", "mtp"]
    parameters: int
    active_parameters: int | None
    bytes: int
    experts: int | None
    experts_per_token: int | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """Sums over a model. Active numbers are None where the config does not say how many experts a token uses."""

    total: Amount
    """Parameters without multi-token prediction, with towers; bytes of everything that is stored."""
    active_parameters: int | None
    """Convention ``all`` (Mixtral, Qwen3, OLMoE)."""
    active_parameters_no_embedding: int | None
    """Without the input embedding, of which a token reads one row (DeepSeek-V3, gpt-oss)."""
    active_parameters_no_embedding_no_head: int | None
    """Without embedding and output head (GLM-4.5); a tied matrix is left out once."""
    active_bytes: int | None
    """Stored bytes of the active parameters (convention ``all``) with their scales."""
    components: dict[str, Amount]
    """By role, in the order of their bytes."""
    dtypes: dict[str, Amount]
    layers: tuple[LayerCost, ...]

    def parameters(self, role: str) -> int:
        """Parameters of one role; 0 where the model has none of it."""
        return self.components[role].parameters if role in self.components else 0


def make_ledger(facts: ModelFacts) -> Ledger:
    """Add up a model's groups."""
    layer_of = {layer.layer: layer for layer in facts.moe_layers}
    active = active_sum(facts.groups, layer_of, lambda group: group.parameters)
    components = _sum_by(facts.groups, lambda group: group.role)
    embedding, head = (components[r].parameters if r in components else 0 for r in ("embedding", "lm_head"))
    total = sum(amount.parameters for role, amount in components.items() if role != "mtp")
    return Ledger(
        total=Amount(total, facts.total_bytes),
        active_parameters=active,
        active_parameters_no_embedding=None if active is None else active - embedding,
        active_parameters_no_embedding_no_head=None if active is None else active - embedding - head,
        active_bytes=active_sum(facts.groups, layer_of, lambda group: group.bytes),
        components=components,
        dtypes=_sum_by(facts.groups, lambda group: group.dtype),
        layers=_layers(facts.groups, layer_of),
    )


def _sum_by(groups: Iterable[ParameterGroup], key: Callable[[ParameterGroup], str]) -> dict[str, Amount]:
    sums: dict[str, Amount] = {}
    for group in groups:
        before = sums.get(key(group), Amount(0, 0))
        sums[key(group)] = Amount(before.parameters + group.parameters, before.bytes + group.bytes)
    return dict(sorted(sums.items(), key=lambda item: (-item[1].bytes, item[0])))


def active_sum(
    groups: Iterable[ParameterGroup], layer_of: dict[int, MoELayer], measure: Callable[[ParameterGroup], int]
) -> int | None:
    """Everything outside the routed experts, and K of E of these in every layer.

    Where experts of one layer differ in size (pruned, merged, mixed precision) this is the mean over experts, floored.
    """
    active = 0
    routed: dict[int, int] = {}
    for group in groups:
        if group.owner == "routed_experts" and group.layer in layer_of:
            routed[group.layer] = routed.get(group.layer, 0) + measure(group)
        elif group.owner not in INACTIVE:
            active += measure(group)
    for layer, amount in routed.items():
        experts_per_token = layer_of[layer].experts_per_token
        if experts_per_token is None:
            return None
        active += amount * experts_per_token // layer_of[layer].experts
    return active


def _layers(groups: Iterable[ParameterGroup], layer_of: dict[int, MoELayer]) -> tuple[LayerCost, ...]:
    by_layer: dict[int, list[ParameterGroup]] = {}
    for group in groups:
        if group.layer is not None:
            by_layer.setdefault(group.layer, []).append(group)
    rows = []
    for number, members in sorted(by_layer.items()):
        moe = layer_of.get(number)
        rows.append(
            LayerCost(
                layer=number,
                kind="moe" if moe else "mtp" if all(group.owner == "mtp" for group in members) else "dense",
                parameters=sum(group.parameters for group in members),
                active_parameters=active_sum(members, layer_of, lambda group: group.parameters),
                bytes=sum(group.bytes for group in members),
                experts=moe.experts if moe else None,
                experts_per_token=moe.experts_per_token if moe else None,
            )
        )
    return tuple(rows)
