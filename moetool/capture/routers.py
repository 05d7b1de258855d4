"""The seam: hooks the routers and experts of a transformers model; out come the choice, the weights and the scores.

In transformers a MoE layer calls ``experts(hidden [T, H], index [T, K], weights [T, K])``. A pre-hook there sees
exactly the experts that ran and the weights that were applied; a hook on the sibling ``gate`` or ``router`` sees the
logits. The choice is never derived from the logits: expert groups and correction biases make ``topk(logits)`` wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.errors import MoetoolError
from moetool.model.families import Family

ROUTER_NAMES = ("gate", "router")
BIAS_NAMES = ("e_score_correction_bias", "expert_bias")


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One MoE layer of a model: its experts, its router and what the router selects by."""

    layer: int
    """Decoder layer number."""
    experts_module: nn.Module
    router: nn.Module
    parent: nn.Module
    experts: int
    experts_per_token: int
    family: Family


@dataclass(frozen=True, slots=True)
class Routing:
    """What one call of one MoE layer routed; ``N`` rows, padding included, on the device of the layer."""

    chosen: torch.Tensor
    """``[N, K]``"""
    weight: torch.Tensor
    """``[N, K]`` as applied."""
    logits: torch.Tensor | None
    """``[N, E]`` float32; None where the router shows none."""


@dataclass(frozen=True, slots=True)
class DecoderStack:
    """The run of decoder layers that holds the MoE layers, and the module that owns it and embeds the tokens."""

    owner: nn.Module
    owner_path: str
    layers: nn.ModuleList
    layers_path: str
    moe_layers: tuple[MoELayer, ...]


def find_decoder(model: nn.Module, family: Family) -> DecoderStack:
    """The decoder whose layers have routers; MoetoolError where there is none, or more than one."""
    stacks = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and path.count(".layers") <= 1:
            found = tuple(_moe_layers(module, family))
            if found:
                stacks.append((path, module, found))
    if not stacks:
        raise MoetoolError(
            f"no MoE layer found in {type(model).__name__}: no experts beside a gate or router",
            "dense models have no routing to report; moetool memory works on them",
        )
    if len(stacks) > 1:
        names = ", ".join(path for path, _, _ in stacks)
        raise MoetoolError(
            f"{type(model).__name__} has several stacks of MoE layers ({names}), which is not supported yet"
        )
    path, layers, found = stacks[0]
    owner_path = path.rpartition(".")[0]
    return DecoderStack(model.get_submodule(owner_path), owner_path, layers, path, found)


def _moe_layers(layers: nn.ModuleList, family: Family) -> Iterator[MoELayer]:
    for number, layer in enumerate(layers):
        here = [
            (parent, getattr(parent, name))
            for parent in layer.modules()
            if isinstance(getattr(parent, "experts", None), nn.Module)
            for name in ROUTER_NAMES
            if isinstance(getattr(parent, name, None), nn.Module)
        ]
        if len(here) > 1:
            raise MoetoolError(f"layer {number} has {len(here)} routers, which is not supported yet")
        for parent, router in here:
            yield _describe(number, parent, router, family)


def _describe(number: int, parent: Any, router: Any, family: Family) -> MoELayer:
    experts = _first_integer((parent.experts, router, parent), ("num_experts", "n_routed_experts"))
    top_k = _first_integer((router, parent, parent.experts), ("top_k", "num_experts_per_tok", "moe_top_k"))
    if top_k is None:
        config = getattr(router, "config", None) or getattr(parent, "config", None)
        top_k = _first_integer((config,), ("num_experts_per_tok", "top_k_experts", "moe_top_k", "experts_per_token"))
    if experts is None or top_k is None:
        raise MoetoolError(
            f"layer {number}: {type(parent).__name__} does not tell its number of experts or experts per token"
        )
    return MoELayer(number, parent.experts, router, parent, experts, top_k, family)


def _first_integer(places: Iterable[Any], names: Iterable[str]) -> int | None:
    for place in places:
        for name in names:
            value = getattr(place, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


@contextmanager
def tap(moe_layers: Iterable[MoELayer], sink: Callable[[MoELayer, Routing], None]) -> Iterator[None]:
    """Call ``sink`` at every forward of every given layer; hooks are removed whatever happens."""
    handles = []
    try:
        for moe in moe_layers:
            handles += _hook(moe, sink)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(moe: MoELayer, sink: Callable[[MoELayer, Routing], None]) -> list[Any]:
    seen: dict[str, torch.Tensor | None] = {"logits": None}

    def on_router(module: nn.Module, args: Any, output: Any) -> None:
        seen["logits"] = _logits(output, moe.experts)

    def on_experts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [*args, *kwargs.values()]
        if len(tensors) < 3 or not all(isinstance(tensor, torch.Tensor) for tensor in tensors[:3]):
            raise MoetoolError(
                f"layer {moe.layer}: {type(module).__name__} was not called with hidden states, choice and weights"
            )
        chosen, weight = tensors[1], tensors[2]
        if chosen.is_floating_point():  # some call experts(hidden, weights, index)
            chosen, weight = weight, chosen
        if chosen.shape[-1] != moe.experts_per_token or weight.shape != chosen.shape:
            raise MoetoolError(
                f"layer {moe.layer}: experts received a choice of shape {list(chosen.shape)} and weights of shape "
                f"{list(weight.shape)}, not {moe.experts_per_token} per token"
            )
        logits, seen["logits"] = seen["logits"], None
        rows = chosen.reshape(-1, moe.experts_per_token)
        if logits is not None and len(logits) != len(rows):
            logits = None
        sink(moe, Routing(rows, weight.reshape(rows.shape), logits))

    return [
        moe.router.register_forward_hook(on_router),
        moe.experts_module.register_forward_pre_hook(on_experts, with_kwargs=True),
    ]


def _logits(output: Any, experts: int) -> torch.Tensor | None:
    """The first ``[N, E]`` floating tensor that a router returns, as float32."""
    for tensor in output if isinstance(output, tuple | list) else (output,):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-1] == experts:
            return tensor.reshape(-1, experts).float()
    return None


def router_scores(moe: MoELayer, logits: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per token the four SCORE_COLUMNS ``[N, 4]`` and the router's distribution ``[N, E]``.

    Softmax routers: ``p = softmax(logits)``; sigmoid routers: the scores divided by their sum (DeepSeek-V3).
    The margin is NaN for a token whose choice is not the top K of the score that is known here, and the logsumexp is
    NaN for routers that return probabilities only.
    """
    normaliser = logits.logsumexp(-1)
    if moe.family.router_output == "probabilities":
        score = probability = logits
        normaliser = torch.full_like(normaliser, float("nan"))
    elif moe.family.scoring == "sigmoid":
        score = logits.sigmoid()
        probability = score / score.sum(-1, keepdim=True).clamp_min(torch.finfo(score.dtype).tiny)
    else:
        score = probability = logits.softmax(-1)
    entropy = -torch.special.xlogy(probability, probability).sum(-1)
    columns = (entropy, probability.amax(-1), _margin(moe, score, chosen), normaliser)
    return torch.stack(columns, dim=-1), probability


def _margin(moe: MoELayer, score: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Lowest chosen minus highest refused score, after the correction bias and inside the selected groups."""
    bias = _correction_bias(moe)
    selecting = score if bias is None else score + bias.to(score).reshape(1, -1)
    if moe.experts == moe.experts_per_token:
        return torch.full_like(score[:, 0], float("nan"))
    selecting = _limit_to_groups(moe, selecting)
    lowest_chosen = selecting.gather(1, chosen.long()).amin(-1)
    refused = selecting.scatter(1, chosen.long(), float("-inf")).amax(-1)
    margin = lowest_chosen - refused
    return torch.where((margin >= 0) & margin.isfinite(), margin, float("nan"))


def _correction_bias(moe: MoELayer) -> torch.Tensor | None:
    for place in (moe.router, moe.parent, getattr(moe.router, "moe_statics", None)):
        for name in BIAS_NAMES:
            bias = getattr(place, name, None)
            if isinstance(bias, torch.Tensor) and bias.numel() == moe.experts:
                return bias
    return None


def _limit_to_groups(moe: MoELayer, selecting: torch.Tensor) -> torch.Tensor:
    """Scores outside the best groups become -inf (DeepSeek-V3: a group scores the sum of its two best experts)."""
    groups, kept = (getattr(moe.router, name, None) for name in ("num_group", "topk_group"))
    if not isinstance(groups, int) or not isinstance(kept, int) or groups <= 1 or kept >= groups:
        return selecting
    if moe.family.group_score == "max" and getattr(moe.router, "topk_method", None) == "greedy":
        return selecting
    grouped = selecting.view(len(selecting), groups, -1)
    best = (
        grouped.amax(-1)
        if moe.family.group_score == "max"
        else grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    )
    allowed = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(kept, dim=-1).indices, True)
    return grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).view_as(selecting)
