"""``route-stats``: a RoutingTrace and the options enter, the Report of load, router, locality and co-activation leaves.

Imported when the command line starts, so numpy and the statistics are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from moetool import __version__
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Column, Figure, Panel, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.statistics.registry import Quantity
    from moetool.statistics.sample import CountedTokens

Row = Mapping[str, Value]

SUMMARY_COLUMNS: tuple[Column, ...] = (
    Column("tokens", "Tokens", "count", help="Counted tokens: special tokens and masked templates are left out."),
    Column("documents", "Documents", "count", help="Input sequences."),
    Column("groups", "Groups", "count", help="Independent groups of documents with counted tokens."),
    Column("domains", "Domains", "count", help="Domains of the documents."),
    Column("moe_layers", "MoE layers", "count", help="Layers with routed experts."),
    Column("dead_experts", "Dead experts", "count", help="Never chosen, and surely below 5 % of the mean load."),
    Column(
        "unobserved_experts", "Unobserved experts", "count", help="Never chosen, by too few tokens to call them dead."
    ),
    Column("cold_experts", "Cold experts", "count", help="Surely below a quarter of the mean load in every domain."),
    Column("max_violation", "Max violation", "ratio", help="Of the worst layer: busiest load over mean load, minus 1."),
    Column("worst_layer", "Worst layer", "number", help="The layer of that max violation."),
    Column("mean_max_violation", "Max violation, mean", "ratio", help="Mean over layers: 0 at balance."),
    Column("load_entropy", "Load entropy", "ratio", help="Mean over layers, over ln E: 1 at balance."),
    Column("gini", "Gini", "ratio", help="Mean over layers: 0 at balance."),
    Column("router_entropy", "Router entropy", "ratio", help="Mean over layers, over ln E: 1 where it prefers nobody."),
    Column("balance_loss", "Balance loss", "ratio", help="Mean over layers of E sum f P: 1 at balance."),
    Column(
        "balance_loss_hf",
        "Balance loss, transformers",
        "ratio",
        detail=True,
        help="As transformers computes it, layers pooled: K at balance; it hides imbalance.",
    ),
    Column(
        "z_loss", "Z loss", "number", detail=True, help="Mean over layers, softmax routers: (ln E)^2 at zero logits."
    ),
    Column(
        "dropped_share",
        "Dropped",
        "share",
        detail=True,
        help="Mean over layers with a capacity: choices that did not run, their expert being full.",
    ),
    Column(
        "zero_compute_share",
        "Zero compute",
        "share",
        detail=True,
        help="Mean over layers that have them: choices of experts that compute nothing.",
    ),
    Column(
        "repeat_rate", "Repeat rate", "share", help="Neighbouring tokens with the same first choice, mean over layers."
    ),
    Column("repeat_rate_matched", "Repeat rate, matched", "share", help="The same for independent tokens, same loads."),
    Column("coactivation_max", "Co-activation max", "share", help="The largest N_ij / N_i of all layers."),
    Column("design_effect", "Design effect", "ratio", help="Tokens worth one independent token, in the worst layer."),
)
SUMMARY_KEYS: tuple[str, ...] = tuple(column.key for column in SUMMARY_COLUMNS)

OCCASIONAL = ("dropped_share", "zero_compute_share")
TEXT_ROWS = 10
SMALL_TABLE = 64
"""Rows of the experts table up to which the terminal shows them."""


def build_report(trace: RoutingTrace, options: Mapping[str, object], progress: Progress | None = None) -> Report:
    """Compute every routing statistic of a trace, one layer at a time; ``options`` are passed on to the report."""
    from moetool.commands.route_stats_findings import findings_of
    from moetool.statistics import load, registry
    from moetool.statistics.sample import count_tokens, sample_layers

    tokens = count_tokens(trace)
    layers: list[Row] = []
    experts: list[Row] = []
    pairs: list[Row] = []
    loads = []
    with (progress or SilentProgress()).step("Routing statistics", len(trace.layers)) as advance:
        for sample in sample_layers(trace, tokens):
            layers.append(registry.layer_row(sample))
            experts += registry.expert_rows(sample)
            pairs += registry.pair_rows(sample)
            loads.append((sample.counts, sample.probability))
            advance(1)
    summary = _summary(trace, tokens, layers, load.balance_loss_hf(loads, tokens.total))
    tables = _tables(layers, experts, pairs)
    return Report(
        command="route-stats",
        model={key: cast(Value, trace.model.get(key)) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], dict(options)),
        summary_columns=SUMMARY_COLUMNS,
        summary=summary,
        tables=tables,
        findings=findings_of(trace, summary, {table.key: table.rows for table in tables}),
        figures=(_expert_usage(layers, experts),),
        environment={"moetool": __version__},
    )


def _summary(
    trace: RoutingTrace, tokens: CountedTokens, layers: Sequence[Row], pooled_loss: float | None
) -> dict[str, Value]:
    """Layers are summarised by mean or worst, over those that have the value: expert ids of layers are unrelated."""

    def known(key: str) -> list[float]:
        return [value for row in layers if isinstance(value := row[key], float)]

    def mean(key: str) -> float | None:
        values = known(key)
        return sum(values) / len(values) if values else None

    def total(key: str) -> int:
        return sum(value for row in layers if isinstance(value := row[key], int))

    worst = max(layers, key=lambda row: _number(row["max_violation"]))
    return {
        "tokens": tokens.total,
        "documents": len(trace.documents),
        "groups": len(tokens.group_tokens),
        "domains": len(trace.domains),
        "moe_layers": len(layers),
        "dead_experts": total("dead"),
        "unobserved_experts": total("unobserved"),
        "cold_experts": total("cold"),
        "max_violation": worst["max_violation"],
        "worst_layer": worst["layer"] if worst["max_violation"] is not None else None,
        "mean_max_violation": mean("max_violation"),
        "load_entropy": mean("entropy"),
        "gini": mean("gini"),
        "router_entropy": mean("router_entropy"),
        "balance_loss": mean("balance_loss"),
        "balance_loss_hf": pooled_loss,
        "z_loss": mean("z_loss"),
        "dropped_share": mean("dropped_share"),
        "zero_compute_share": mean("zero_compute_share"),
        "repeat_rate": mean("first_repeat"),
        "repeat_rate_matched": mean("first_repeat_matched"),
        "coactivation_max": max(known("coactivation_max"), default=None),
        "design_effect": max(known("design_effect"), default=None),
    }


def _tables(layers: Sequence[Row], experts: Sequence[Row], pairs: Sequence[Row]) -> tuple[Table, ...]:
    from moetool.statistics.registry import EXPERT_STATISTICS, LAYER_STATISTICS, PAIR_QUANTITIES

    ranked = sorted(pairs, key=lambda row: -_number(row["deviate"]))
    return (
        Table("layers", "Layers", _occasional(_columns(LAYER_STATISTICS), layers), tuple(layers)),
        Table(
            "coactivation",
            "Experts that are chosen together",
            _columns(PAIR_QUANTITIES),
            tuple(ranked),
            note="Pairs that co-occur more than their loads explain, the most surprising first.",
            text_rows=TEXT_ROWS,
        ),
        Table(
            "experts",
            "Experts",
            _columns(EXPERT_STATISTICS),
            tuple(experts),
            note="" if len(experts) <= SMALL_TABLE else "Drawn in the figure of expert usage.",
            text_rows=None if len(experts) <= SMALL_TABLE else 0,
        ),
    )


def _columns(quantities: Sequence[Quantity]) -> tuple[Column, ...]:
    return tuple(Column(item.key, item.title, item.unit, item.detail, item.help) for item in quantities)


def _occasional(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """Columns that few families have a value for are shown where they have one."""
    return tuple(
        replace(column, detail=False)
        if column.key in OCCASIONAL and any(row[column.key] is not None for row in rows)
        else column
        for column in columns
    )


def _expert_usage(layers: Sequence[Row], experts: Sequence[Row]) -> Figure:
    panels = []
    for row in layers:
        members = [expert for expert in experts if expert["layer"] == row["layer"]]
        usage = tuple(_number(expert["utilization"]) for expert in members)
        labels = tuple(str(expert["expert"]) for expert in members)
        panels.append(Panel(f"layer {row['layer']}", labels, (("utilization", usage),), reference=1.0))
    return Figure(
        key="expert_usage",
        title="Expert usage per layer: load over the mean load, 1 is uniform",
        kind="bars",
        alt="Load of every expert over the mean load of its layer, one panel per MoE layer; 1 is perfect balance.",
        panels=tuple(panels),
        x_title="expert",
        y_title="utilization",
    )


def _number(value: Value) -> float:
    """A number to sort or compute with: undefined counts as 0."""
    return float(value) if isinstance(value, int | float) else 0.0
