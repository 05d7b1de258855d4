"""The seam: hooks routers and experts; out come the choice, the applied weights and the logits of every token.

In transformers a MoE layer calls ``experts(hidden [T, H], index [T, K], weights [T, K])``. A pre-hook there sees
exactly the experts that ran and the weights that were applied; a hook on the sibling ``gate`` or ``router`` sees the
logits. The choice is never derived from the logits: expert groups and correction biases make ``topk(logits)`` wrong.
Families that call their experts otherwise have a seam of their own, which reads what the router handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.capture.routers import MoELayer
from moetool.errors import MoetoolError


@dataclass(frozen=True, slots=True)
class Routing:
    """What one call of one MoE layer routed; ``N`` rows, padding included, on the device of the layer."""

    chosen: torch.Tensor
    """``[N, K]``"""
    weight: torch.Tensor
    """``[N, K]`` as applied."""
    logits: torch.Tensor | None
    """``[N, E]`` float32; None where the router shows none."""
    dropped: torch.Tensor | None = None
    """``[N, K]`` True where the chosen expert did not run, being full; None for families without capacity."""


Sink = Callable[[MoELayer, Routing], None]


@contextmanager
def tap(moe_layers: Iterable[MoELayer], sink: Sink) -> Iterator[None]:
    """Call ``sink`` at every forward of every given layer; hooks are removed whatever happens."""
    handles = []
    try:
        for moe in moe_layers:
            reader = _ROUTER_READERS.get(moe.family.seam)
            handles += _hook_router(moe, reader, sink) if reader else _hook_experts(moe, sink)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook_experts(moe: MoELayer, sink: Sink) -> list[Any]:
    seen: dict[str, torch.Tensor | None] = {"logits": None}

    def on_router(module: nn.Module, args: Any, output: Any) -> None:
        seen["logits"] = _logits(output, moe.experts)

    def on_experts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen, weight = _choice(moe, [*args, *kwargs.values()])
        logits, seen["logits"] = seen["logits"], None
        if logits is not None and len(logits) != len(chosen):
            logits = None
        sink(moe, Routing(chosen, weight, logits))

    return [
        moe.router.register_forward_hook(on_router),
        moe.experts_module.register_forward_pre_hook(on_experts, with_kwargs=True),
    ]


def _choice(moe: MoELayer, tensors: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """``[N, K]`` choice and weights from the arguments of the experts, whatever their order."""
    if len(tensors) < 3 or not all(isinstance(tensor, torch.Tensor) for tensor in tensors[:3]):
        raise MoetoolError(
            f"layer {moe.layer}: {type(moe.experts_module).__name__} was not called with hidden states, choice and "
            "weights"
        )
    chosen, weight = tensors[1], tensors[2]
    if chosen.is_floating_point():  # some call experts(hidden, weights, index)
        chosen, weight = weight, chosen
    if chosen.shape[-1] != moe.experts_per_token or weight.shape != chosen.shape:
        raise MoetoolError(
            f"layer {moe.layer}: experts received a choice of shape {list(chosen.shape)} and weights of shape "
            f"{list(weight.shape)}, not {moe.experts_per_token} per token"
        )
    rows = chosen.reshape(-1, moe.experts_per_token)
    weight = weight.reshape(rows.shape)
    if moe.family.seam == "skipping":  # expert 0 with weight 0 stands for the expert that computes nothing
        rows = torch.where(weight == 0, moe.experts - 1, rows)
    return rows, weight


def _logits(output: Any, experts: int) -> torch.Tensor | None:
    """The first ``[N, E]`` floating tensor that a router returns, as float32."""
    for tensor in output if isinstance(output, tuple | list) else (output,):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-1] == experts:
            return tensor.reshape(-1, experts).float()
    return None


def _hook_router(moe: MoELayer, read: Callable[[MoELayer, Any], Routing], sink: Sink) -> list[Any]:
    def on_router(module: nn.Module, args: Any, output: Any) -> None:  # what a hook returns would replace the output
        sink(moe, read(moe, output))

    return [moe.router.register_forward_hook(on_router)]


def _read_scattered(moe: MoELayer, output: Any) -> Routing:
    """Llama 4: ``(scores [N, E], logits [N, E])``; a score is 0 where the expert was not chosen."""
    scores, logits = output
    weight, chosen = scores.topk(moe.experts_per_token, dim=-1)
    return Routing(chosen, weight, logits.float())


def _read_sorted(moe: MoELayer, output: Any) -> Routing:
    """JetMoE: slots sorted by expert, the token of each, its gate, the slots of each expert, and the logits."""
    order, _, gates, slots_of_expert, logits = output
    expert = torch.arange(moe.experts, device=order.device)
    sizes = torch.as_tensor(slots_of_expert, device=order.device)
    chosen, weight = torch.empty_like(order), torch.empty_like(gates)
    chosen[order] = expert.repeat_interleave(sizes, output_size=len(order))
    weight[order] = gates
    shape = (-1, moe.experts_per_token)
    return Routing(chosen.reshape(shape), weight.reshape(shape), logits.float())


def _read_dispatched(moe: MoELayer, output: Any) -> Routing:
    """Switch: ``(mask [B, S, E], probability [B, S, 1], logits [B, S, E])``; the mask is empty for a dropped token."""
    shapes = [tensor.shape[2:] for tensor in output]
    if shapes != [(moe.experts,), (1,), (moe.experts,)] or output[0].is_floating_point():
        raise MoetoolError(f"layer {moe.layer}: this version of transformers hands its dispatch mask on otherwise")
    mask, weight, logits = (tensor[:, moe.lead :] for tensor in output)
    logits = logits.reshape(-1, moe.experts).float()
    ran = mask.reshape(-1, moe.experts).amax(-1, keepdim=True) > 0
    chosen = torch.where(ran, mask.reshape(-1, moe.experts).argmax(-1, keepdim=True), logits.argmax(-1, keepdim=True))
    return Routing(chosen, weight.reshape(-1, 1) * ran, logits, ~ran)


_ROUTER_READERS: dict[str, Callable[[MoELayer, Any], Routing]] = {
    "scattered": _read_scattered,
    "sorted": _read_sorted,
    "dispatched": _read_dispatched,
}
