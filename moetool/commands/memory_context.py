"""The section of ``moetool memory`` on what the context keeps: cache and states, with their formulas."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.accounting.kv_cache import PAGE_TOKENS, CacheOptions, LayerCache, Policy, layer_caches, total_cache
from moetool.checkpoint.dtypes import BITS
from moetool.commands.memory_section import MemorySettings, Section, Subject
from moetool.errors import MoetoolError
from moetool.model.facts import ModelFacts
from moetool.report.report import Column, Finding, Table, Value

LONGEST_DEFAULT = 131_072
"""Tokens of the default context at the most: some configs allow ten million, which nobody means by default."""
KV_DTYPES = {
    "auto": "BF16",
    "bf16": "BF16",
    "fp16": "F16",
    "fp32": "F32",
    "fp8": "F8_E4M3",
    "int8": "I8",
    "fp4": "F4",
}
"""Types of the cache, as the command line names them."""
COLUMNS = (
    Column("context_tokens", "Context", "count", help="Tokens of each sequence (--context)."),
    Column("batch", "Batch", "count", detail=True, help="Sequences at once (--batch)."),
    Column("kv_cache_bytes", "KV cache", "bytes", help="Of the whole batch at that context, without states."),
    Column(
        "kv_bytes_per_token",
        "KV cache per token",
        "bytes",
        help="What one token writes in all layers, those with a window too.",
    ),
    Column(
        "kv_growth_bytes_per_token",
        "KV growth per token",
        "bytes",
        detail=True,
        help="What one more token adds at that context: less where windows are full.",
    ),
    Column("state_bytes", "Recurrent state", "bytes", help="Mamba, linear attention and convolutions, of the batch."),
    Column("cache_bytes", "Cache and state", "bytes", detail=True, help="kv_cache_bytes + state_bytes."),
)
_KIND = Column("kind", "Kind", "text", help="full, sliding, chunked, latent (MLA), linear, mamba, shared, ...")
_PER_TOKEN = Column("bytes_per_token", "Per token", "bytes", help="Of one sequence.")
_STATE = Column("state_bytes", "State", "bytes", help="Of one sequence.")
_CACHE = Column("cache_bytes", "Cache", "bytes", help="At the context and batch of the report.")
_FORMULA = Column("formula", "Formula of one layer", "text", help="Elements, then bytes of each, then entries.")
_LAYER_COLUMNS = (
    Column("layer", "Layer", "count"),
    _KIND,
    _PER_TOKEN,
    _STATE,
    _FORMULA,
    Column("window_tokens", "Window", "count", detail=True),
    _CACHE,
)
_KIND_COLUMNS = (
    _KIND,
    Column("layers", "Layers", "count"),
    _CACHE,
    Column("state_bytes", "State", "bytes", help="Of the batch."),
    _PER_TOKEN,
    _FORMULA,
)


def cache_options(facts: ModelFacts, settings: MemorySettings) -> CacheOptions:
    """What is to be kept, with defaults filled in; MoetoolError for a context, batch or type that cannot be."""
    if settings.kv_dtype not in KV_DTYPES:
        raise MoetoolError(f"--kv-dtype {settings.kv_dtype} is unknown", f"it is one of {', '.join(KV_DTYPES)}")
    if settings.kv_policy not in ("exact", "reserve"):
        raise MoetoolError(f"--kv-policy {settings.kv_policy} is unknown", "it is exact or reserve")
    longest = min(facts.max_context or LONGEST_DEFAULT, LONGEST_DEFAULT)
    context = longest if settings.context is None else settings.context
    if context < 1 or settings.batch < 1:
        raise MoetoolError(f"--context {context} and --batch {settings.batch}: both are at least 1")
    policy: Policy = "reserve" if settings.kv_policy == "reserve" else "exact"
    return CacheOptions(context, settings.batch, KV_DTYPES[settings.kv_dtype], policy)


def context_section(subject: Subject) -> Section:
    """Cache and states by layer and by kind of layer."""
    facts, cache = subject.facts, subject.cache
    rows, total = layer_caches(facts.mixers, cache), total_cache(facts.mixers, cache)
    known = bool(facts.mixers)
    summary: dict[str, Value] = {
        "context_tokens": cache.context_tokens,
        "batch": cache.batch,
        "kv_cache_bytes": total.cache_bytes if known else None,
        "kv_bytes_per_token": total.bytes_per_token if known else None,
        "kv_growth_bytes_per_token": total.growth_bytes if known else None,
        "state_bytes": total.state_bytes if known else None,
        "cache_bytes": total.cache_bytes + total.state_bytes if known else None,
    }
    by_layer = tuple({column.key: getattr(row, column.key) for column in _LAYER_COLUMNS} for row in rows)
    hidden = "layer" not in subject.settings.by
    return Section(
        summary,
        (
            Table("cache_kinds", "Memory of the context", _KIND_COLUMNS, _by_kind(rows, cache.batch), _note(cache)),
            Table("kv_cache", "Memory of the context by layer", _LAYER_COLUMNS, by_layer, for_scripts=hidden),
        ),
        findings=(*_findings(subject, rows),),
        assumptions=_assumptions(subject),
    )


def _by_kind(rows: tuple[LayerCache, ...], batch: int) -> tuple[Mapping[str, Value], ...]:
    groups: dict[tuple[str, str], list[LayerCache]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.formula), []).append(row)
    return tuple(
        {
            "kind": kind,
            "layers": len(members),
            "cache_bytes": sum(row.cache_bytes for row in members),
            "state_bytes": sum(row.state_bytes for row in members) * batch,
            "bytes_per_token": sum(row.bytes_per_token for row in members),
            "formula": formula,
        }
        for (kind, formula), members in groups.items()
    )


def _note(cache: CacheOptions) -> str:
    sequences = "one sequence" if cache.batch == 1 else f"{cache.batch:,} sequences"
    return f"{sequences} of {cache.context_tokens:,} tokens; per token: of one sequence, all layers of the kind."


def _findings(subject: Subject, rows: tuple[LayerCache, ...]) -> list[Finding]:
    facts, cache = subject.facts, subject.cache
    found = []
    with_mixer = {row.layer for row in rows}
    if not facts.mixers:
        message = "No layer's attention was recognised: cache, states and attention's FLOPs are unknown."
        found.append(Finding("warning", "mixers_unknown", message))
    elif facts.layers and len(with_mixer) < facts.layers and not _may_lack_mixers(facts):
        message = (
            f"{facts.layers - len(with_mixer)} of {facts.layers} layers show no token mixer: the cache may be larger."
        )
        found.append(Finding("warning", "mixers_missing", message))
    if facts.max_context and cache.context_tokens > facts.max_context:
        message = (
            f"The context of {cache.context_tokens:,} tokens is longer than the {facts.max_context:,} that the config "
            "allows (max_position_embeddings)."
        )
        found.append(Finding("warning", "context_too_long", message))
    return found


def _may_lack_mixers(facts: ModelFacts) -> bool:
    """Nemotron-H and its like have layers that only feed forward."""
    return any(mixer.kind in ("mamba", "linear", "cross") for mixer in facts.mixers)


def _assumptions(subject: Subject) -> tuple[tuple[str, str, str], ...]:
    facts, cache, settings = subject.facts, subject.cache, subject.settings
    chosen = "--context" if settings.context is not None else f"the config's longest, at most {LONGEST_DEFAULT:,}"
    policies = {
        "exact": "what the layers need: windows hold no more than their tokens",
        "reserve": f"every layer holds the whole context in pages of {PAGE_TOKENS} tokens (vLLM's block_size)",
    }
    found = [
        ("context", f"{cache.context_tokens:,} tokens", chosen),
        ("batch", f"{cache.batch:,} sequence{'s' * (cache.batch > 1)}", "--batch"),
        ("cache type", f"{cache.dtype}, {BITS[cache.dtype] / 8:g} B", "--kv-dtype; auto is bfloat16"),
        ("cache policy", cache.policy, policies[cache.policy]),
    ]
    states = {state.dtype for mixer in facts.mixers for state in mixer.states if state.dtype}
    if states:
        found.append(("state type", ", ".join(sorted(states)), "the config's mamba_ssm_dtype, else float32"))
    return tuple(found)
