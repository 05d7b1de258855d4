"""What generating a token reads from memory: enters ModelFacts and a batch, leaves bytes of weights and of the cache.

Decoding reads every weight that some token of the batch uses, once per step. Dense parts are read whole whatever the
batch; of the experts those that at least one token chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma

from moetool.accounting.kv_cache import CacheOptions, cache_bytes, total_cache
from moetool.accounting.ledger import INACTIVE
from moetool.model.facts import ModelFacts

Loads = Mapping[int, Sequence[int]]
"""By MoE layer: how many tokens of a recording chose each expert."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of decoding: a new token for each sequence of the batch."""

    batch: int
    distinct_experts: float | None
    """Experts that some token of the batch uses, mean over MoE layers; None for a dense model."""
    weight_bytes: int
    cache_bytes: int
    """Cache and states of all sequences."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes read per generated token, rounded up."""
        return -(-(self.weight_bytes + self.cache_bytes) // self.batch)


def distinct_uniform(experts: int, experts_per_token: int, batch: int) -> float:
    """Expected distinct experts of ``batch`` tokens that choose uniformly: E (1 - (1 - K/E)^B)."""
    return float(experts * (1 - (1 - experts_per_token / experts) ** batch))


def distinct_measured(loads: Sequence[int], tokens: int, batch: int) -> float:
    """Expected distinct experts of ``batch`` different tokens drawn at random from a recording of ``tokens``.

    ``loads``: tokens that chose each expert. An expert with n of T tokens is missed with probability
    C(T - n, B) / C(T, B) (hypergeometric).
    """
    batch = min(batch, tokens)
    return sum(1 - _missed(load, tokens, batch) for load in loads)


def _missed(load: int, tokens: int, batch: int) -> float:
    others = tokens - load
    if others < batch:
        return 0.0
    return exp(lgamma(others + 1) - lgamma(others - batch + 1) - lgamma(tokens + 1) + lgamma(tokens - batch + 1))


def decode_step(facts: ModelFacts, cache: CacheOptions, measured: tuple[Loads, int] | None = None) -> Step | None:
    """What one step reads at the context and batch of ``cache``; None where the experts per token are unknown.

    ``measured``: loads of a recording and its tokens; without it the choice of experts is taken to be uniform. The
    input embedding, of which a token reads one row, is left out, unless it is the output head too.
    """
    distinct = distinct_by_layer(facts, cache.batch, measured)
    if distinct is None:
        return None
    weights = 0.0
    experts_of = {layer.layer: layer.experts for layer in facts.moe_layers}
    head_is_embedding = facts.tied_head and not any(group.owner == "lm_head" for group in facts.groups)
    for group in facts.groups:
        if group.owner == "routed_experts" and group.layer in experts_of:
            weights += group.bytes * distinct[group.layer] / experts_of[group.layer]
        elif group.owner == "embedding" and not head_is_embedding:
            continue
        elif group.owner not in INACTIVE:
            weights += group.bytes
    mean = sum(distinct.values()) / len(distinct) if distinct else None
    return Step(cache.batch, mean, round(weights), _cache_read(facts, cache))


def _cache_read(facts: ModelFacts, cache: CacheOptions) -> int:
    """Bytes of cache and states that a step reads: what is needed, however much is reserved; of a sparse attention all
    index keys and the entries that it chooses."""
    needed = replace(cache, policy="exact")
    total = total_cache(facts.mixers, needed)
    spared = 0
    for mixer in facts.mixers:
        for pool in mixer.pools:
            if mixer.chosen is not None and pool.what != "index keys":
                fewer = replace(needed, context_tokens=min(needed.context_tokens, mixer.chosen * pool.every))
                spared += cache_bytes(pool, needed) - cache_bytes(pool, fewer)
    return total.cache_bytes + total.state_bytes - spared


def distinct_by_layer(
    facts: ModelFacts, batch: int, measured: tuple[Loads, int] | None = None
) -> dict[int, float] | None:
    """Expected distinct experts per MoE layer; a layer that the recording lacks is taken to be uniform.

    None where that is not known: experts per token, or a batch larger than the recording.
    """
    found = {}
    for layer in facts.moe_layers:
        if layer.experts_per_token is None:
            return None
        if measured and layer.layer in measured[0]:
            if batch > measured[1]:
                return None
            found[layer.layer] = distinct_measured(measured[0][layer.layer], measured[1], batch)
        else:
            found[layer.layer] = distinct_uniform(layer.experts, layer.experts_per_token, batch)
    return found
