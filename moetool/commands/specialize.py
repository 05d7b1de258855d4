"""``specialize``: a RoutingTrace and the options enter, the Report of which expert prefers which domain leaves.

Imported when the command line starts, so numpy and the statistics are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from moetool.commands.provenance import made_with
from moetool.errors import MoetoolError
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Column, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.commands.specialize_ablation import Ablation
    from moetool.statistics.specialization import Specialization

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
    Column("domain_specialists", "For the domain", "count", True, "Preferences that survive equal classes and tokens."),
    Column(
        "language_specialists", "For the language", "count", True, "Preferences that the script or language explains."
    ),
    Column("pattern_specialists", "For a pattern", "count", True, "Preferences that the mixture of classes explains."),
    Column("mixed_specialists", "Mixed", "count", True, "Preferences that classes or words explain in part."),
    Column(
        "pattern_preferences",
        "Pattern preferences",
        "count",
        help="Pairs of expert and class, found and seen again.",
    ),
    Column("token_explained", "Explained by tokens", "share", True, "Of the information, mean over layers."),
    Column("task_specialists", "For a task", "count", True, "Preferences for a task, within domains."),
    Column("confirmed_specialists", "Confirmed as needed", "count", True, "Of those that --ablate masked."),
    Column("refuted_specialists", "Refuted as needed", "count", True, "Of those that --ablate masked."),
    Column("tested_preferences", "Preferences tested", "count", help="Pairs of expert and domain with enough tokens."),
    Column("control_runs", "A/A runs", "count", help="Random splits of single domains, analysed in the same way."),
    Column("control_specialists", "A/A preferences", "count", help="Found in all these runs together: should be 0."),
    Column("control_information_bits", "A/A information", "bits", help="Beyond chance, mean over runs: should be 0."),
    Column("control_accuracy", "A/A named right", "share", help="Mean over runs: should be near 1/2."),
)
SUMMARY_KEYS: tuple[str, ...] = tuple(column.key for column in SUMMARY_COLUMNS)


def build_report(trace: RoutingTrace, options: Mapping[str, object], progress: Progress | None = None) -> Report:
    """Compare the domains of a trace.

    ``options`` may hold ``seed``, ``permutations`` and ``bootstraps``; all of them are passed on to the report.
    Raises MoetoolError for fewer than two domains, a domain without tokens, and options out of range.
    """
    return make_report(trace, study(trace, options, progress), options)


def study(trace: RoutingTrace, options: Mapping[str, object], progress: Progress | None = None) -> Specialization:
    """The analysis behind ``build_report``, with the same options and errors."""
    from moetool.statistics.specialization import analyse

    return analyse(
        trace,
        _integer(options, "seed", 0),
        _integer(options, "permutations", 2000),
        _integer(options, "bootstraps", 1000),
        progress or SilentProgress(),
    )


def make_report(
    trace: RoutingTrace, result: Specialization, options: Mapping[str, object], ablation: Ablation | None = None
) -> Report:
    """Tables, sentences and figures of an analysis, and of the ablation of its specialists."""
    from moetool.commands import specialize_tables as parts
    from moetool.commands.specialize_ablation import ablation_tables
    from moetool.commands.specialize_figures import draw
    from moetool.commands.specialize_findings import findings
    from moetool.commands.specialize_text import text_tables

    rows = parts.specialist_rows(result, ablation.verdicts if ablation else {})
    patterns, tokens, classes = text_tables(trace, result)
    tables = (
        parts.specialist_table(rows, result.specialists is not None),
        *(ablation.tables if ablation else ablation_tables([], [])),
        patterns,
        tokens,
        Table("tasks", "Tasks", parts.TASK_COLUMNS, tuple(parts.task_rows(result)), text_rows=10, optional=True),
        Table("layers", "Layers", parts.LAYER_COLUMNS, tuple(parts.layer_rows(result, rows))),
        Table("domains", "Domains", parts.DOMAIN_COLUMNS, tuple(parts.domain_rows(trace, result, rows))),
        Table(
            "divergence",
            "Between domains",
            parts.DIVERGENCE_COLUMNS,
            tuple(parts.divergence_rows(result)),
            parts.DIVERGENCE_NOTE,
            text_rows=8,
        ),
        classes,
    )
    summary = parts.summary(trace, result, ablation.verdicts if ablation else None)
    by_key = {table.key: table.rows for table in tables}
    return Report(
        command="specialize",
        model={key: cast(Value, trace.model.get(key)) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], dict(options)),
        summary_columns=SUMMARY_COLUMNS,
        summary=summary,
        tables=tables,
        findings=tuple(findings(result, summary, by_key, ablation is not None)),
        figures=tuple(draw(result, by_key)),
        environment=made_with(trace),
    )


def _integer(options: Mapping[str, object], key: str, default: int) -> int:
    value = options.get(key, default)
    if value is None:
        return default
    if not isinstance(value, int) or value < 0:
        raise MoetoolError(f"{key} is {value!r}, not a whole number of 0 or more", f"leave {key} at {default}")
    return value
