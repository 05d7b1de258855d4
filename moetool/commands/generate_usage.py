"""How much of a model a text needs: the experts of each token enter, touched experts, weights and cache hits leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.types import Checkpoint
from moetool.model.facts import facts_of
from moetool.model.inventory import take_inventory
from moetool.report.page import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moetool.capture.routers import MoELayer
    from moetool.capture.trace import TraceLayer


def weigh(checkpoint: Checkpoint, layers: Sequence[int], loaded_bytes: int) -> Weights:
    """Count the parameters of a checkpoint; ``layers`` are the numbers of its MoE layers."""
    facts = facts_of(checkpoint, take_inventory(checkpoint.tensors, checkpoint.config), "header")
    ledger = make_ledger(facts)
    total = ledger.total.parameters
    routed = dict.fromkeys(layers, 0)
    for group in facts.groups:
        if group.role == "routed_experts" and group.layer in routed:
            routed[group.layer] += group.parameters
    active = None if ledger.active_parameters is None else ledger.active_parameters / total
    return Weights(total, loaded_bytes, active, tuple(count / total for count in routed.values()))


class LruCache:
    """The last ``size`` distinct experts of one layer; the experts of a token are looked up in the router's order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._experts: OrderedDict[int, None] = OrderedDict()

    def look_up(self, expert: int) -> bool:
        """Whether the expert was there; it is now, in place of the one that was not used for the longest time."""
        there = expert in self._experts
        self._experts[expert] = None
        self._experts.move_to_end(expert)
        if len(self._experts) > self.size:
            self._experts.popitem(last=False)
        return there


class Usage:
    """What a text has used so far. Experts that compute nothing have no weights, so they do not count."""

    def __init__(self, layers: Sequence[TraceLayer | MoELayer], cache: int) -> None:
        self.cache = cache
        self.experts = [layer.experts - layer.zero_experts for layer in layers]
        self.per_token = [layer.experts_per_token for layer in layers]
        self.used: list[set[int]] = [set() for _ in layers]
        self.lookups, self.hits = [0] * len(layers), [0] * len(layers)
        self._caches = [LruCache(cache) for _ in layers]

    def add(self, chosen: Sequence[NDArray[np.unsignedinteger[Any]]], decode: bool) -> None:
        """The choices ``[N, K]`` of every layer for the next tokens; only those of ``decode`` count as lookups.

        A prompt fills the cache: it is read at once, so there is nothing to wait for token by token.
        """
        for place, layer in enumerate(chosen):
            for expert in layer.ravel().tolist():
                if expert < self.experts[place]:
                    self.used[place].add(expert)
                    hit = self._caches[place].look_up(expert)
                    self.lookups[place] += decode
                    self.hits[place] += decode and hit

    @property
    def distinct(self) -> list[int]:
        """``[L]`` experts that some token used."""
        return [len(used) for used in self.used]

    @property
    def distinct_share(self) -> float:
        """Of all routed experts of all layers."""
        return sum(self.distinct) / sum(self.experts)

    @property
    def hit_rate(self) -> float | None:
        """Over all layers; None before the first new token."""
        return sum(self.hits) / sum(self.lookups) if sum(self.lookups) else None

    def hit_rate_of(self, place: int) -> float | None:
        """Of one layer."""
        return self.hits[place] / self.lookups[place] if self.lookups[place] else None

    def touched_share(self, weights: Weights) -> float | None:
        """Of the parameters, those that some token has used: what one token needs, and the other experts."""
        if weights.active_share is None:
            return None
        layers = zip(weights.routed_share, self.distinct, self.per_token, self.experts, strict=True)
        return weights.active_share + sum(share * (used - k) / experts for share, used, k, experts in layers)
