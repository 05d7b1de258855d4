"""Finds the MoE layers of a transformers model: enters a model, leaves its stack of layers and their routers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from moetool.errors import MoetoolError
from moetool.model.families import Family

ROUTER_NAMES = ("gate", "router")


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One router of a model: its experts and what it selects by."""

    layer: int
    """Decoder layer number. A second router of a layer (JetMoE's attention) is numbered on after the last layer, and so
    are the layers of a decoder after those of its encoder."""
    block: int
    """Index of the layer in its stack."""
    experts_module: nn.Module
    router: nn.Module
    parent: nn.Module
    experts: int
    """What the router chooses from, zero-compute experts included."""
    experts_per_token: int
    family: Family
    zero_experts: int = 0
    """The last so many experts compute nothing (LongCat-Flash, ZAYA)."""
    part: str = ""
    """``attention`` where the experts are parts of it, ``decoder`` behind an encoder; else empty."""
    lead: int = 0
    """Positions in front of a document's first token (a decoder's start token)."""

    @property
    def scoring(self) -> str:
        """How the choice comes from the logits; ``hash``: from the token id alone (DeepSeek-V4's first layers)."""
        return "hash" if hasattr(self.router, "tid2eid") else self.family.scoring

    @property
    def expert_groups(self) -> int:
        """How many groups of neighbouring experts there are, of which a token may choose from a few only; else 0."""
        groups, kept = (getattr(self.router, name, None) for name in ("num_group", "topk_group"))
        if not isinstance(groups, int) or not isinstance(kept, int) or groups <= 1 or kept >= groups:
            return 0
        ignored = self.family.group_score == "max" and getattr(self.router, "topk_method", None) == "greedy"
        return 0 if ignored else groups


@dataclass(frozen=True, slots=True)
class DecoderStack:
    """The run of decoder layers that holds the MoE layers, and the module that owns it and embeds the tokens."""

    owner: nn.Module
    owner_path: str
    layers: nn.ModuleList
    layers_path: str
    moe_layers: tuple[MoELayer, ...]


def find_decoder(model: Any, family: Family) -> DecoderStack:
    """The layers that read text and have routers; MoetoolError where there are none, or more than one run of them."""
    every = list(_stacks(model, family))
    stacks = [stack for stack in every if family.stack in stack.owner_path] or every
    if not stacks:
        raise MoetoolError(
            f"no MoE layer found in {type(model).__name__}: no experts beside a gate or router",
            "dense models have no routing to report; moetool memory works on them",
        )
    if len(stacks) > 1 and model.config.is_encoder_decoder:
        return _encoder_and_decoder(model, stacks)
    if len(stacks) > 1:
        names = ", ".join(stack.layers_path for stack in stacks)
        raise MoetoolError(
            f"{type(model).__name__} has several stacks of MoE layers ({names}), which is not supported yet"
        )
    return stacks[0]


def _stacks(model: Any, family: Family) -> Iterator[DecoderStack]:
    """Runs of layers with routers, but for towers that embed something else than tokens."""
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(outer + ".") for outer in found):
            continue
        moe_layers = tuple(_moe_layers(module, family))
        owner_path = path.rpartition(".")[0]
        owner = model.get_submodule(owner_path)
        if moe_layers and _embeds_tokens(owner):
            found.append(path)
            yield DecoderStack(owner, owner_path, module, path, moe_layers)


def _embeds_tokens(owner: Any) -> bool:
    """Whether a module turns token ids into vectors; towers for images turn patches into them."""
    try:
        embedding = owner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    return isinstance(embedding, nn.Module) and any(isinstance(part, nn.Embedding) for part in embedding.modules())


def _encoder_and_decoder(model: Any, stacks: list[DecoderStack]) -> DecoderStack:
    """Both as one: the decoder's layers are numbered after the encoder's, as ``moetool memory`` does."""
    encoder, decoder = stacks
    before = len(encoder.layers)
    later = (replace(moe, layer=moe.layer + before, part="decoder", lead=1) for moe in decoder.moe_layers)
    return DecoderStack(model, "", encoder.layers, encoder.layers_path, (*encoder.moe_layers, *later))


def _moe_layers(layers: nn.ModuleList, family: Family) -> Iterator[MoELayer]:
    second = []
    for number, layer in enumerate(layers):
        here = list(_routers(layer, family))
        parts = ["attention" if "attention" in path and len(here) > 1 else "" for path, *_ in here]
        if len(set(parts)) < len(parts):
            paths = ", ".join(path for path, *_ in here)
            raise MoetoolError(f"layer {number} has several routers ({paths}), which is not supported yet")
        for (_, parent, router), part in zip(here, parts, strict=True):
            moe = _describe(number, parent, router, family, part)
            if part:
                second.append(replace(moe, layer=number + len(layers)))
            else:
                yield moe
    yield from second


def _routers(layer: nn.Module, family: Family) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Path, block and router of every MoE block of a layer that text passes through."""
    for path, parent in layer.named_modules():
        has_experts = isinstance(getattr(parent, "experts", None), nn.Module)
        if (family.seam != "sorted" and not has_experts) or "vision" in path:
            continue
        for name in ROUTER_NAMES:
            router = getattr(parent, name, None)
            if isinstance(router, nn.Module) and (has_experts or hasattr(router, "top_k")):
                yield path, parent, router


def _describe(number: int, parent: Any, router: Any, family: Family, part: str) -> MoELayer:
    experts_module = getattr(parent, "experts", parent)
    places = (experts_module, router, parent)
    real = _first_integer(places, ("num_routed_experts", "num_experts", "n_routed_experts"))
    every = _first_integer(places, ("total_experts", "num_router_classes")) or real
    top_k = _first_integer((router, parent, experts_module), ("top_k", "num_experts_per_tok", "moe_top_k"))
    if top_k is None:
        config = getattr(router, "config", None) or getattr(parent, "config", None)
        names = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "experts_per_token")
        top_k = 1 if family.seam == "dispatched" else _first_integer((config,), names)
    if real is None or every is None or top_k is None:
        raise MoetoolError(
            f"layer {number}: {type(parent).__name__} does not tell its number of experts or experts per token"
        )
    return MoELayer(number, number, experts_module, router, parent, every, top_k, family, every - real, part)


def _first_integer(places: Iterable[Any], names: Iterable[str]) -> int | None:
    for place in places:
        for name in names:
            value = getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
