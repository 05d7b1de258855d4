"""``specialize``: a RoutingTrace and the options enter, the Report of which expert prefers which domain leaves.

Imported when the command line starts, so numpy and the statistics are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from moetool import __version__
from moetool.errors import MoetoolError
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Column, Figure, Panel, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.statistics.specialization import Specialization

Row = dict[str, Value]

SUMMARY_COLUMNS: tuple[Column, ...] = (
    Column("domains", "Domains", "count", help="Kinds of text that are compared."),
    Column("documents", "Documents", "count", help="Input sequences."),
    Column("groups", "Groups", "count", help="Independent groups of documents: what is permuted and left out."),
    Column("tokens", "Tokens", "count", help="Tokens that count, all domains together."),
    Column("budget_tokens", "Tokens per domain", "count", help="The same for every domain: what the smallest one has."),
    Column("moe_layers", "MoE layers", "count", help="Layers with routed experts."),
    Column("information_bits", "Information", "bits", help="I(expert; domain), mean over layers; above 0 by chance."),
    Column(
        "excess_information_bits",
        "Information beyond chance",
        "bits",
        help="The same minus its mean under permuted domain labels: 0 where routing ignores the domain.",
    ),
    Column(
        "document_accuracy",
        "Documents named right",
        "share",
        help="Groups whose domain is named from their routing alone, each left out in turn; mean over domains.",
    ),
    Column("chance_accuracy", "Named right by chance", "share", help="1 / domains."),
    Column(
        "specialists",
        "Preferences found",
        "count",
        help="Pairs of expert and domain: q < 0.05 on half of the groups, and lift interval above 1 on the other half.",
    ),
    Column("specialist_experts", "Experts with a preference", "count", help="An expert can prefer several domains."),
    Column("tested_preferences", "Preferences tested", "count", help="Pairs of expert and domain with enough tokens."),
    Column("control_runs", "A/A runs", "count", help="Random splits of single domains, analysed in the same way."),
    Column("control_specialists", "A/A preferences", "count", help="Found in all these runs together: should be 0."),
    Column("control_information_bits", "A/A information", "bits", help="Beyond chance, mean over runs: should be 0."),
    Column("control_accuracy", "A/A named right", "share", help="Mean over runs: should be near 1/2."),
)
SUMMARY_KEYS: tuple[str, ...] = tuple(column.key for column in SUMMARY_COLUMNS)

SPECIALIST_COLUMNS: tuple[Column, ...] = (
    Column("layer", "Layer", help="Decoder layer number."),
    Column("expert", "Expert"),
    Column("domain", "Domain", "text"),
    Column(
        "lift", "Lift", "ratio", help="Token share over its mean over domains: 1 without taste, at most the domains."
    ),
    Column("lift_low", "Lift from", "ratio", help="95 % interval, bootstrap over groups."),
    Column("lift_high", "to", "ratio", help="95 % interval, bootstrap over groups."),
    Column("q_value", "q", help="p, corrected for all layers, experts and domains (Benjamini-Hochberg)."),
    Column("token_share", "Token share", "share", help="Of the domain's tokens; lift and interval are of this."),
    Column("baseline", "Uniform", "share", help="K/E: the share if all experts were chosen alike."),
    Column("p_value", "p", help="One-sided, domain labels permuted over groups, on the other half of the groups."),
    Column("kind", "Kind", "text", detail=True, help="What the preference is for; null: not told apart."),
)
LAYER_COLUMNS: tuple[Column, ...] = (
    Column("layer", "Layer", help="Decoder layer number."),
    Column("experts", "Experts", "count", detail=True),
    Column("experts_per_token", "Chosen per token", "count", detail=True),
    Column("information_bits", "Information", "bits", help="I(expert; domain); above 0 by chance."),
    Column("excess_information_bits", "Beyond chance", "bits", help="Minus the mean under permuted labels."),
    Column("excess_low", "from", "bits", help="95 % interval, bootstrap over groups, bias-corrected."),
    Column("excess_high", "to", "bits", help="95 % interval, bootstrap over groups, bias-corrected."),
    Column("p_value", "p", help="Share of permutations that reach the observed information."),
    Column("specialists", "Preferences", "count", help="Preferences found for a domain."),
)
DOMAIN_COLUMNS: tuple[Column, ...] = (
    Column("domain", "Domain", "text"),
    Column("documents", "Documents", "count"),
    Column("groups", "Groups", "count", help="Independent groups of documents."),
    Column("available_tokens", "Tokens", "count", help="Tokens outside special tokens and templates."),
    Column("tokens", "Tokens used", "count", help="After the equal budget."),
    Column("template_tokens", "Template", "count", help="Length of a start that its documents share; masked."),
    Column("accuracy", "Named right", "share", help="Its groups whose domain is named from their routing alone."),
    Column("specialists", "Preferences", "count", help="Experts that prefer it."),
    Column("neighbour_p_value", "Neighbours p", detail=True, help="Small: neighbouring groups are not independent."),
)
DESCRIPTIVE_ROWS = 20
TEXT_ROWS = 20
PANELS = 8
"""Layers drawn in the figure of specialists."""


def build_report(trace: RoutingTrace, options: Mapping[str, object], progress: Progress | None = None) -> Report:
    """Compare the domains of a trace.

    ``options`` may hold ``seed``, ``permutations`` and ``bootstraps``; all of them are passed on to the report.
    Raises MoetoolError for fewer than two domains, a domain without tokens, and options out of range.
    """
    from moetool.commands.specialize_findings import findings
    from moetool.statistics.specialization import analyse

    result = analyse(
        trace,
        _integer(options, "seed", 0),
        _integer(options, "permutations", 2000),
        _integer(options, "bootstraps", 1000),
        progress or SilentProgress(),
    )
    specialists = _specialist_rows(result)
    tables = (
        _specialist_table(specialists, result.specialists is not None),
        Table("layers", "Layers", LAYER_COLUMNS, tuple(_layer_rows(result, specialists))),
        Table("domains", "Domains", DOMAIN_COLUMNS, tuple(_domain_rows(trace, result, specialists))),
    )
    summary = _summary(trace, result)
    return Report(
        command="specialize",
        model={key: cast(Value, trace.model.get(key)) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], dict(options)),
        summary_columns=SUMMARY_COLUMNS,
        summary=summary,
        tables=tables,
        findings=tuple(findings(result, summary, {table.key: table.rows for table in tables})),
        figures=tuple(_figures(result, tables)),
        environment={"moetool": __version__},
    )


def _integer(options: Mapping[str, object], key: str, default: int) -> int:
    value = options.get(key, default)
    if value is None:
        return default
    if not isinstance(value, int) or value < 0:
        raise MoetoolError(f"{key} is {value!r}, not a whole number of 0 or more", f"leave {key} at {default}")
    return value


def _summary(trace: RoutingTrace, result: Specialization) -> Row:
    import numpy as np

    found, control, layers = result.specialists, result.control, result.layers
    return {
        "domains": len(result.counts.domains),
        "documents": len(trace.documents),
        "groups": len(result.counts.tokens),
        "tokens": int(result.counts.tokens.sum()),
        "budget_tokens": result.sample.budget_tokens,
        "moe_layers": len(result.counts.layers),
        "information_bits": float(result.observed_bits.mean()),
        "excess_information_bits": float(layers.information.excess_bits.mean()) if layers else None,
        "document_accuracy": result.classification.accuracy if result.classification else None,
        "chance_accuracy": 1 / len(result.counts.domains),
        "specialists": len(found.cell) if found else None,
        "specialist_experts": len(np.unique(found.cell)) if found else None,
        "tested_preferences": int((~np.isnan(found.tests.p_value)).sum()) if found else None,
        "control_runs": control.runs if control else 0,
        "control_specialists": control.specialists if control else None,
        "control_information_bits": control.excess_information_bits if control else None,
        "control_accuracy": control.accuracy if control else None,
    }


def _specialist_rows(result: Specialization) -> list[Row]:
    """Confirmed preferences, the surest first; where nothing can be tested the highest lifts, without p values."""
    found = result.specialists
    if found is None:
        return _highest_lifts(result)
    return [
        {
            **_place(result, int(cell)),
            "domain": result.counts.domains[domain],
            "lift": float(found.lift[i]),
            "lift_low": float(found.low[i]),
            "lift_high": float(found.high[i]),
            "token_share": float(found.token_share[i]),
            "p_value": float(found.tests.p_value[domain, cell]),
            "q_value": float(found.tests.q_value[domain, cell]),
            "kind": None,
        }
        for i, (domain, cell) in enumerate(zip(found.domain, found.cell, strict=True))
    ]


def _highest_lifts(result: Specialization) -> list[Row]:
    import numpy as np

    from moetool.statistics.significance import MINIMUM_HITS

    common = result.shares.mean(axis=0) * result.sample.budget_tokens >= MINIMUM_HITS
    lift = np.where(common, result.lifts, 0.0)
    order = np.argsort(-lift, axis=None, kind="stable")[:DESCRIPTIVE_ROWS]
    untested: Row = dict.fromkeys(("lift_low", "lift_high", "p_value", "q_value", "kind"))
    return [
        {
            **untested,
            **_place(result, int(cell)),
            "domain": result.counts.domains[domain],
            "lift": float(lift[domain, cell]),
            "token_share": float(result.shares[domain, cell]),
        }
        for domain, cell in zip(*np.unravel_index(order, lift.shape), strict=True)
        if lift[domain, cell] > 1
    ]


def _place(result: Specialization, cell: int) -> Row:
    layer = next(layer for layer in result.counts.layers if cell < layer.cells.stop)
    return {
        "layer": layer.layer,
        "expert": cell - layer.start,
        "baseline": layer.experts_per_token / layer.experts,
    }


def _specialist_table(rows: Sequence[Row], tested: bool) -> Table:
    title, note = "Highest lifts", "Descriptive only: too few documents to test whether these are more than chance."
    if tested:
        title, note = "Specialists", "Surest first; found on half of the documents, measured on the other half."
    return Table("specialists", title, SPECIALIST_COLUMNS, tuple(rows), note, TEXT_ROWS)


def _layer_rows(result: Specialization, specialists: Sequence[Row]) -> Iterator[Row]:
    found = result.layers
    for i, layer in enumerate(result.counts.layers):
        yield {
            "layer": layer.layer,
            "experts": layer.experts,
            "experts_per_token": layer.experts_per_token,
            "information_bits": float(result.observed_bits[i]),
            "excess_information_bits": float(found.information.excess_bits[i]) if found else None,
            "excess_low": float(found.low[i]) if found else None,
            "excess_high": float(found.high[i]) if found else None,
            "p_value": float(found.information.p_value[i]) if found else None,
            "specialists": sum(row["layer"] == layer.layer for row in specialists) if found else None,
        }


def _domain_rows(trace: RoutingTrace, result: Specialization, specialists: Sequence[Row]) -> Iterator[Row]:
    template = {item.domain: item.length for item in result.sample.templates}
    groups = result.counts.groups_of_domain()
    for i, domain in enumerate(result.counts.domains):
        p_value = float(result.neighbour_p_value[i])
        yield {
            "domain": domain,
            "documents": sum(document.domain == domain for document in trace.documents),
            "groups": int(groups[i]),
            "available_tokens": int(result.sample.available[i]),
            "tokens": int(result.counts.tokens[result.counts.domain == i].sum()),
            "template_tokens": template.get(domain, 0),
            "accuracy": float(result.classification.domain_accuracy[i]) if result.classification else None,
            "specialists": sum(row["domain"] == domain for row in specialists) if result.specialists else None,
            "neighbour_p_value": None if p_value != p_value else p_value,
        }


def _figures(result: Specialization, tables: Sequence[Table]) -> Iterator[Figure]:
    specialists, layers, _ = (table.rows for table in tables)
    if result.layers is None:
        return
    titles = (("beyond chance", "excess_information_bits"), ("95 % from", "excess_low"), ("95 % to", "excess_high"))
    series = tuple((title, tuple(cast(float, row[key]) for row in layers)) for title, key in titles)
    yield Figure(
        key="information",
        title="What a routing choice tells about the domain",
        kind="lines",
        alt="Information about the domain beyond chance, in bits per layer, with its 95 % interval.",
        panels=(Panel("", tuple(str(row["layer"]) for row in layers), series, reference=0.0),),
        x_title="layer",
        y_title="bits",
        in_text=True,
    )
    drawn = sorted((row for row in layers if row["specialists"]), key=lambda row: -cast(int, row["specialists"]))
    numbers = {row["layer"] for row in drawn[:PANELS]}
    if numbers:
        yield Figure(
            key="specialists",
            title="Lift of the preferences found (1 where there is none)",
            kind="heatmap",
            alt="Lift per domain and expert where a preference is confirmed, else 1; layers with most specialists.",
            panels=tuple(_panel(result, row, specialists) for row in layers if row["layer"] in numbers),
            x_title="expert",
            y_title="lift",
            in_text=True,
        )


def _panel(result: Specialization, layer: Mapping[str, Value], specialists: Sequence[Mapping[str, Value]]) -> Panel:
    lift = {(row["domain"], row["expert"]): row["lift"] for row in specialists if row["layer"] == layer["layer"]}
    experts = range(cast(int, layer["experts"]))
    series = tuple(
        (domain, tuple(cast(float, lift.get((domain, expert), 1.0)) for expert in experts))
        for domain in result.counts.domains
    )
    return Panel(f"layer {layer['layer']}", tuple(map(str, experts)), series, reference=1.0)
