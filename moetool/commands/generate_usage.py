"""How much of a model a text needs: the experts of each token enter, touched experts, weights and cache hits leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.types import Checkpoint
from moetool.model.facts import facts_of
from moetool.model.inventory import take_inventory
from moetool.report.page import Weights, falling_weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moetool.capture.generation import Generation
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
    """The ``size`` experts of one layer that were used last. A token needs its experts at once, so they are looked up
    and kept together; ``size`` is at least their number."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._experts: dict[int, None] = {}

    def serve(self, experts: Sequence[int]) -> int:
        """How many of a token's experts were there. All of them are now, the first one as the one used last."""
        hits = sum(expert in self._experts for expert in experts)
        for expert in reversed(experts):
            self._experts.pop(expert, None)
            self._experts[expert] = None
        for expert in list(self._experts)[: -self.size]:
            del self._experts[expert]
        return hits


class Usage:
    """What a text has used so far. Experts that compute nothing have no weights, so they do not count."""

    def __init__(self, layers: Sequence[TraceLayer | MoELayer], cache: int) -> None:
        self.cache = cache
        self.experts = [layer.experts - layer.zero_experts for layer in layers]
        self.per_token = [layer.experts_per_token for layer in layers]
        self.used: list[set[int]] = [set() for _ in layers]
        self.lookups, self.hits = [0] * len(layers), [0] * len(layers)
        self._caches = [LruCache(cache) for _ in layers]

    def add(self, layers: Sequence[TraceLayer], decode: bool) -> None:
        """The routing of the next tokens in every layer; only that of ``decode`` counts as lookups.

        A prompt fills the cache: it is read at once, so there is nothing to wait for token by token.
        """
        for place, layer in enumerate(layers):
            for token in np.take_along_axis(layer.chosen, falling_weight(layer), axis=1).tolist():
                experts = [expert for expert in token if expert < self.experts[place]]
                hits = self._caches[place].serve(experts)
                self.used[place].update(experts)
                if decode:
                    self.lookups[place] += len(experts)
                    self.hits[place] += hits

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


def measure_usage(generation: Generation, cache: int) -> Usage:
    """What prompt and text have used."""
    layers, prompt = generation.trace.layers, generation.prompt_tokens
    usage = Usage(layers, cache)
    usage.add([_part(layer, slice(prompt)) for layer in layers], decode=False)
    usage.add([_part(layer, slice(prompt, None)) for layer in layers], decode=True)
    return usage


def running_hit_rate(generation: Generation, cache: int) -> NDArray[np.float64]:
    """``[T]`` the share of hits up to each token; NaN before the first new one."""
    usage, rates = Usage(generation.trace.layers, cache), []
    for token in range(len(generation.texts)):
        part = slice(token, token + 1)
        layers = [_part(layer, part) for layer in generation.trace.layers]
        usage.add(layers, decode=token >= generation.prompt_tokens)
        rates.append(usage.hit_rate)
    return np.array(rates, dtype=np.float64)


def _part(layer: TraceLayer, tokens: slice) -> TraceLayer:
    """Choices and weights of some of the tokens."""
    weight = None if layer.weight is None else layer.weight[tokens]
    return replace(layer, chosen=layer.chosen[tokens], weight=weight)
