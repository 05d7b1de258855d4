"""What the context costs in memory: enters the mixers of a model, leaves bytes of cache and state with formulas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from moetool.checkpoint.dtypes import BITS
from moetool.model.caches import Mixer, MixerKind, Pool, State

Policy = Literal["exact", "reserve"]
"""``exact``: what the layers need. ``reserve``: what engines set aside that give all layers pages of one size: in
layers with a window too the whole context, in full pages."""
PAGE_TOKENS = 16
"""Tokens per page of vLLM's cache (``block_size``), which the policy ``reserve`` rounds up to."""


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What is to be kept."""

    context_tokens: int
    batch: int = 1
    """Sequences of that length."""
    dtype: str = "BF16"
    """Header name of the type of cached numbers."""
    policy: Policy = "exact"


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one mixer keeps; bytes are those of one sequence but for ``cache_bytes``."""

    layer: int
    kind: MixerKind
    bytes_per_token: int
    """Bytes that one token adds where nothing is dropped; of one entry for several tokens its share, rounded up."""
    window_tokens: int | None
    cache_bytes: int
    """At the context and batch asked for."""
    state_bytes: int
    """Of one sequence, whatever its length."""
    formula: str


def cache_bytes(pool: Pool, options: CacheOptions) -> int:
    """Bytes of one pool: entries x elements x bits / 8, for every sequence of the batch."""
    entries = pool.entries(options.context_tokens)
    if options.policy == "reserve":
        whole = -(-options.context_tokens // PAGE_TOKENS) * PAGE_TOKENS
        entries = -(-whole // pool.every)
    return -(-entries * pool.elements * BITS[options.dtype] // 8) * options.batch


def state_bytes(state: State, dtype: str) -> int:
    """Bytes of one state of one sequence; ``dtype``: that of the cache, for states without a type of their own."""
    return -(-state.elements * BITS[state.dtype or dtype] // 8)


def layer_caches(mixers: Iterable[Mixer], options: CacheOptions) -> tuple[LayerCache, ...]:
    """One row per mixer, in layer order."""
    return tuple(_layer_cache(mixer, options) for mixer in mixers)


def _layer_cache(mixer: Mixer, options: CacheOptions) -> LayerCache:
    return LayerCache(
        layer=mixer.layer,
        kind=mixer.kind,
        bytes_per_token=sum(_bytes_per_token(pool, options) for pool in mixer.pools),
        window_tokens=next((pool.window for pool in mixer.pools if pool.window), None),
        cache_bytes=sum(cache_bytes(pool, options) for pool in mixer.pools),
        state_bytes=sum(state_bytes(state, options.dtype) for state in mixer.states),
        formula=_formula(mixer, options),
    )


def _bytes_per_token(pool: Pool, options: CacheOptions) -> int:
    return -(-pool.elements * BITS[options.dtype] // (8 * pool.every))


def _formula(mixer: Mixer, options: CacheOptions) -> str:
    """``2 x 8 x 128 x 2 B x min(context, 4096)``; the numbers are elements, then bytes of each."""
    parts = [f"{pool.terms} x {_width(options.dtype)} x {_entries(pool, options.policy)}" for pool in mixer.pools]
    parts += [f"{state.terms} x {_width(state.dtype or options.dtype)}" for state in mixer.states]
    return " + ".join(parts) or "0"


def _width(dtype: str) -> str:
    return f"{BITS[dtype] / 8:g} B"


def _entries(pool: Pool, policy: Policy) -> str:
    if policy == "reserve":
        pages = f"ceil(context / {PAGE_TOKENS}) x {PAGE_TOKENS}"
        return pages if pool.every == 1 else f"{pages} / {pool.every}"
    if pool.window:
        return f"min(context, {pool.window})"
    return "context" if pool.every == 1 else f"context / {pool.every}"


@dataclass(frozen=True, slots=True)
class CacheTotal:
    """Sums over a model, for the batch asked for."""

    cache_bytes: int
    bytes_per_token: int
    """Of one sequence: what its next token writes, in all layers."""
    growth_bytes: int
    """Of one sequence: by how much it grows with the next token at the context asked for."""
    state_bytes: int


def total_cache(mixers: Iterable[Mixer], options: CacheOptions) -> CacheTotal:
    """What all layers keep together."""
    mixers = tuple(mixers)
    rows = layer_caches(mixers, options)
    growing = [
        _bytes_per_token(pool, options)
        for mixer in mixers
        for pool in mixer.pools
        if options.policy == "reserve" or pool.window is None or pool.window > options.context_tokens
    ]
    return CacheTotal(
        sum(row.cache_bytes for row in rows),
        sum(row.bytes_per_token for row in rows),
        sum(growing),
        sum(row.state_bytes for row in rows) * options.batch,
    )
