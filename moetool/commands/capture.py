"""``capture`` and ``import``: a trace that was just written enters, a Report of what is in it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.commands.provenance import made_with
from moetool.report.report import Column, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace

SUMMARY_COLUMNS = (
    Column("tokens", "Tokens", "count", help="All that were read, special ones included."),
    Column("special_tokens", "Special tokens", "count", help="Among them; statistics leave these out."),
    Column("documents", "Documents", "count", help="Input sequences."),
    Column("domains", "Domains", "count"),
    Column("moe_layers", "MoE layers", "count"),
    Column("trace_bytes", "Trace", "bytes", help="Size of all files of the folder."),
)
DOMAIN_COLUMNS = (
    Column("domain", "Domain", "text"),
    Column("documents", "Documents", "count"),
    Column("groups", "Groups", "count"),
    Column("tokens", "Tokens", "count"),
    Column("special_tokens", "Special", "count"),
)
LAYER_COLUMNS = (
    Column("layer", "Layer", "count"),
    Column("experts", "Experts", "count"),
    Column("experts_per_token", "Per token", "count"),
    Column("scoring", "Scoring", "text", help="How the router's distribution comes from its logits."),
    Column("part", "Part", "text", detail=True, help="attention or decoder, where numbers go on after the last layer."),
)


def build_report(
    trace: RoutingTrace, folder: Path, options: Mapping[str, Value | Sequence[Value]], command: str = "capture"
) -> Report:
    """What a trace folder holds, as the report of the command that wrote it."""
    summary: dict[str, Value] = {
        "tokens": len(trace.tokens),
        "special_tokens": int(trace.special.sum()),
        "documents": len(trace.documents),
        "domains": len(trace.domains),
        "moe_layers": len(trace.layers),
        "trace_bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
    layers = tuple(
        {
            "layer": layer.layer,
            "experts": layer.experts,
            "experts_per_token": layer.experts_per_token,
            "scoring": layer.scoring,
            "part": layer.part or None,
        }
        for layer in trace.layers
    )
    return Report(
        command=command,
        model={key: trace.model.get(key) for key in ("name", "revision", "family")},
        options=dict(options),
        summary_columns=SUMMARY_COLUMNS,
        summary=summary,
        tables=(
            Table("domains", "Domains", DOMAIN_COLUMNS, _domain_rows(trace)),
            Table("layers", "MoE layers", LAYER_COLUMNS, layers, text_rows=4, range_key="layer"),
        ),
        environment=made_with(trace),
    )


def _domain_rows(trace: RoutingTrace) -> tuple[Mapping[str, Value], ...]:
    counted = trace.counted_tokens_of_domain()
    rows: list[Mapping[str, Value]] = []
    for index, domain in enumerate(trace.domains):
        documents = [document for document in trace.documents if document.domain == domain]
        tokens = sum(document.tokens for document in documents)
        rows.append(
            {
                "domain": domain,
                "documents": len(documents),
                "groups": len({document.group for document in documents}),
                "tokens": tokens,
                "special_tokens": tokens - int(counted[index]),
            }
        )
    return tuple(rows)
