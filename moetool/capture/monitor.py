"""Counts routing while a model trains: its forward passes enter, loads and router entropy per MoE layer leave."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.routers import MoELayer, find_decoder
from moetool.capture.scores import distribution
from moetool.capture.seams import Routing, tap
from moetool.errors import MoetoolError
from moetool.model.families import family_of


@dataclass(frozen=True, slots=True)
class LayerWindow:
    """What one router did in a window of training."""

    layer: int
    tokens: int
    """Real tokens that were routed."""
    experts_per_token: int
    counts: NDArray[np.int64]
    """``[E]`` real tokens that chose each expert."""
    entropy_nats: float | None
    """Mean entropy of the router's distribution over real tokens; None where the router shows no logits."""


class RoutingCounter:
    """Hooks a model and counts its routing, from construction until ``close``.

    Only what runs inside a forward pass of the model in training mode counts: evaluation does not, and neither does
    what gradient checkpointing runs again in the backward pass, nor a pass that raises. Padding does not count where
    the forward pass is given an ``attention_mask`` ``[B, S]``; without one every position does. Nothing waits for the
    device before ``take``.
    Raises MoetoolError for a model without MoE layers, an encoder-decoder, or a family that cannot be captured.
    """

    def __init__(self, model: Any) -> None:
        self.model = model if hasattr(model, "config") else getattr(model, "module", model)
        self.moe_layers = _watched_layers(self.model)
        self._rows = {moe.layer: row for row, moe in enumerate(self.moe_layers)}
        self._experts = max(moe.experts for moe in self.moe_layers)
        self._sums: dict[torch.device, torch.Tensor] = {}
        """``[L, E + 2]`` by device: choices of each expert, the sum of entropies, and tokens whose entropy is known."""
        self._pass: dict[torch.device, torch.Tensor] = {}
        """The same of the forward pass that runs."""
        self._running = False
        self._mask: torch.Tensor | None = None
        self._hooks = ExitStack()
        self._hooks.enter_context(tap(self.moe_layers, self._count))
        for handle in (
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._keep),
            self.model.register_forward_hook(self._end, always_call=True),
        ):
            self._hooks.callback(handle.remove)

    def close(self) -> None:
        """Remove all hooks."""
        self._hooks.close()

    def take(self) -> Iterator[LayerWindow]:
        """What was counted since the last call, layers without a token left out; the count starts again.

        Where torch.distributed is initialised, counts are those of all ranks, and all of them must call this.
        """
        total = self._total()
        for moe, row in zip(self.moe_layers, total, strict=True):
            counts = np.rint(row[: moe.experts]).astype(np.int64)
            if counts.any():
                nats = float(row[-2] / row[-1]) if row[-1] else None
                tokens = int(counts.sum()) // moe.experts_per_token
                yield LayerWindow(moe.layer, tokens, moe.experts_per_token, counts, nats)

    def _total(self) -> NDArray[np.floating[Any]]:
        # A rank that routed nothing takes part in the sum all the same: without it the others would wait forever.
        sums = list(self._sums.values()) or [self._zeros(next(self.model.parameters()).device)]
        self._sums = {}
        total = sums[0]
        for other in sums[1:]:
            total += other.to(total.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        result: NDArray[np.floating[Any]] = total.cpu().numpy()
        return result

    def _zeros(self, device: torch.device) -> torch.Tensor:
        # Whole numbers up to 2**53 are exact in float64, which Apple's GPUs lack.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return torch.zeros(len(self.moe_layers), self._experts + 2, dtype=dtype, device=device)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if mask is None and len(args) > 1:
            mask = inspect.signature(module.forward).bind_partial(*args).arguments.get("attention_mask")
        self._running, self._pass = module.training, {}
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        for device, counted in self._pass.items():
            self._sums[device] = counted + self._sums.get(device, 0)

    def _end(self, module: Any, args: Any, output: Any) -> None:
        self._running, self._mask = False, None

    @torch.no_grad()
    def _count(self, moe: MoELayer, routing: Routing) -> None:
        if not self._running:
            return
        chosen, device = routing.chosen.long(), routing.chosen.device
        if device not in self._pass:
            self._pass[device] = self._zeros(device)
        row = self._pass[device][self._rows[moe.layer]]
        real = self._real(moe, chosen)
        row.scatter_add_(0, chosen.flatten(), real.to(row.dtype).unsqueeze(-1).expand_as(chosen).flatten())
        if routing.logits is not None and moe.family.scoring != "unknown":
            nats = torch.special.entr(distribution(moe, routing.logits)[1]).sum(-1)
            row[-2] += torch.where(real, nats, 0).sum()
            row[-1] += real.sum()

    def _real(self, moe: MoELayer, chosen: torch.Tensor) -> torch.Tensor:
        """``[N]`` which rows are no padding; a mask may begin with tokens that a cache already holds."""
        if self._mask is None:
            return chosen.new_ones(len(chosen), dtype=torch.bool)
        length, left = divmod(len(chosen), len(self._mask))
        if left or not 0 < length <= self._mask.shape[1]:
            raise MoetoolError(
                f"layer {moe.layer} routed {len(chosen)} rows, which an attention mask of shape "
                f"{list(self._mask.shape)} does not describe"
            )
        return self._mask[:, -length:].to(chosen.device).flatten() != 0


def _watched_layers(model: Any) -> tuple[MoELayer, ...]:
    if not hasattr(model, "config"):
        raise MoetoolError(f"{type(model).__name__} is not a model of transformers: it has no config")
    family = family_of(model.config.to_dict())
    if family.engine == "refused":
        raise MoetoolError(f"{type(model).__name__}: {family.reason}")
    if model.config.is_encoder_decoder:
        raise MoetoolError(f"{type(model).__name__} has an encoder and a decoder, which is not watched yet")
    return find_decoder(model, family).moe_layers
