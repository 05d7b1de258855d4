"""From hook calls to the arrays of one layer: keeps real tokens only, reduces on the device, copies without waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.capture.batches import Batch
from moetool.capture.routers import MoELayer, Routing, router_scores
from moetool.capture.trace import SCORE_COLUMNS, TraceLayer, chosen_dtype
from moetool.errors import MoetoolError


class LayerRecorder:
    """Collects one layer's routing of a whole corpus.

    ``add`` only queues work on the device; ``flush`` waits once and writes what was queued into the arrays.
    """

    def __init__(self, moe: MoELayer, tokens: int, domains: int, device: torch.device) -> None:
        self.moe = moe
        self.chosen: NDArray[Any] = np.zeros((tokens, moe.experts_per_token), dtype=chosen_dtype(moe.experts))
        self.weight = np.zeros((tokens, moe.experts_per_token), dtype=np.float16)
        self.scores = np.zeros((tokens, len(SCORE_COLUMNS)), dtype=np.float16)
        self.filled = 0
        self.has_logits = True
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.probability_sum = torch.zeros((domains, moe.experts), dtype=exact, device=device)
        self.counted = torch.zeros(domains, dtype=exact, device=device)
        self.queue: list[tuple[torch.Tensor, ...]] = []

    def add(self, batch: Batch, routing: Routing) -> None:
        """Queue the real tokens of one forward call."""
        chosen = routing.chosen[batch.real]
        weight = routing.weight[batch.real].float()
        parts = [batch.slots, chosen.to(torch.int32), weight]
        if routing.logits is None:
            self.has_logits = False
        else:
            scores, probability = router_scores(self.moe, routing.logits[batch.real], chosen)
            parts.append(scores)
            counted = batch.counted.to(self.probability_sum)
            self.probability_sum.index_add_(0, batch.domain, probability.to(self.probability_sum) * counted[:, None])
            self.counted.index_add_(0, batch.domain, counted)
        self.queue.append(tuple(_to_host(part) for part in parts))

    def flush(self) -> None:
        """Wait for the device and move what was queued into the arrays."""
        if self.queue and self.probability_sum.device.type == "cuda":
            torch.cuda.synchronize(self.probability_sum.device)
        for slots, chosen, weight, *scores in self.queue:
            rows = slots.numpy()
            ids, weights = chosen.numpy(), weight.numpy()
            self._check(ids, weights)
            self.chosen[rows] = ids
            with np.errstate(over="ignore"):
                self.weight[rows] = weights
                if scores:
                    self.scores[rows] = scores[0].numpy()
            self.filled += len(rows)
        self.queue.clear()

    def _check(self, ids: NDArray[Any], weights: NDArray[Any]) -> None:
        if not np.isfinite(weights).all():
            raise MoetoolError(
                f"layer {self.moe.layer}: the router's weights are NaN or infinite",
                "the checkpoint may be broken, or float16 overflows: try --dtype float32",
            )
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.moe.experts:
            raise MoetoolError(f"layer {self.moe.layer} chose expert {int(ids.max())} of {self.moe.experts}")

    def finish(self) -> TraceLayer:
        """The layer's part of the trace; a token that never reached the router is an error, not a zero."""
        self.flush()
        if self.filled != len(self.chosen):
            raise MoetoolError(
                f"layer {self.moe.layer}: {self.filled} of {len(self.chosen)} tokens reached its experts",
                "this model skips the layer for some tokens, which is not supported yet",
            )
        probability = self.probability_sum / self.counted.clamp_min(1)[:, None]
        return TraceLayer(
            self.moe.layer,
            self.moe.experts,
            self.moe.experts_per_token,
            self.moe.family.scoring,
            self.chosen,
            self.weight,
            self.scores if self.has_logits else None,
            probability.float().cpu().numpy() if self.has_logits else None,
        )


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy into pinned memory; on the CPU there is nothing to copy."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
