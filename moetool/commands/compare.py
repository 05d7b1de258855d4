"""``compare``: two traces of the same tokens and the options enter, the Report of how alike they are leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from moetool import __version__
from moetool.commands.provenance import made_with
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Finding, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.commands.compare_columns import Kind

Row = Mapping[str, Value]

SETTINGS = ("dtype", "quantize", "engine", "device")
"""What is told of how each of the two was run."""
_AND = " and "
_CHANGES_FIRST: dict[str, Callable[[Row], bool]] = {
    "experts": lambda row: bool(row["difference"]),
    "values": lambda row: row["a"] != row["b"],
}
"""Tables whose rows tell of no difference from the first on for which this does not hold."""


def compare(first: RoutingTrace, second: RoutingTrace) -> Report:
    """How alike two traces of the same tokens are routed, as ``moetool compare`` has it.

    Raises MoetoolError where documents, tokens, layers, experts or experts per token differ.
    """
    return build_report(first, second, {})


def build_report(
    first: RoutingTrace, second: RoutingTrace, options: Mapping[str, object], progress: Progress | None = None
) -> Report:
    """Compare two traces, one layer of both at a time; ``options`` are passed on to the report.

    ``options["sources"]`` are the names of the two, if given. Raises MoetoolError as ``compare`` does.
    """
    from moetool.commands.compare_figures import draw_agreement
    from moetool.commands.compare_findings import trace_findings
    from moetool.commands.compare_tables import compare_traces, summary_of, table_rows
    from moetool.statistics.pairing import pair_traces, renamed_documents

    pair = pair_traces(first, second)
    found = compare_traces(*pair, progress or SilentProgress())
    experts = list(found.expert_rows())
    summary = summary_of(found, experts)
    rows = table_rows(found, experts, summary)
    rows["sources"] = source_rows([trace.model for trace in pair], [trace.settings for trace in pair], options)
    findings = tuple(trace_findings(pair, renamed_documents(first, second), summary, rows))
    report = assemble("traces", [trace.model for trace in pair], options, summary, rows, findings)
    made, other = map(made_with, pair)
    figures = tuple(draw_agreement(rows["layers"], rows["margins"]))
    # Where all agree, every picture is a line at 1.
    in_text = summary["agreement"] != 1
    return replace(
        report,
        figures=tuple(replace(figure, in_text=in_text) for figure in figures),
        environment={key: value for key, value in made.items() if other.get(key) == value},
    )


def assemble(
    kind: Kind,
    models: Sequence[Mapping[str, Any]],
    options: Mapping[str, object],
    summary: Row,
    rows: Mapping[str, Sequence[Row]],
    findings: tuple[Finding, ...],
) -> Report:
    """A report of one shape for both kinds: what ``summary`` and the tables' ``rows`` lack is null or empty."""
    from moetool.commands.compare_columns import TABLES, summary_columns

    columns = summary_columns(kind)
    return Report(
        command="compare",
        model={key: _both(models, key) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], dict(options)),
        summary_columns=columns,
        summary={column.key: summary.get(column.key) for column in columns},
        tables=tuple(_filled(table, rows.get(table.key, ()), summary) for table in TABLES),
        findings=findings,
        environment={"moetool": __version__},
    )


def source_rows(
    models: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]], options: Mapping[str, object]
) -> Sequence[Row]:
    """Which two are compared: rows of the table of sources."""
    sources = cast(Sequence[str | None], options.get("sources") or (None, None))
    return [
        {
            "side": side,
            "source": source,
            **{key: _text(model.get(key)) for key in ("name", "revision")},
            **{key: _text(setting.get(key)) for key in SETTINGS},
        }
        for side, source, model, setting in zip("AB", sources, models, settings, strict=True)
    ]


def _filled(table: Table, rows: Sequence[Row], summary: Row) -> Table:
    """A table with rows; pages for people leave out columns that none of them has, and what tells of no difference."""
    columns = tuple(
        replace(column, detail=column.detail or all(row[column.key] is None for row in rows))
        for column in table.columns
    )
    equal = bool(summary["identical"]) and table.key != "sources"
    equal |= table.key == "margins" and summary.get("agreement") == 1
    shown = table.text_rows
    if table.key in _CHANGES_FIRST:
        changed = sum(map(_CHANGES_FIRST[table.key], rows))
        equal, shown = not changed, min(changed, shown or 0)
    # The note on the experts is of intervals and p values, which few documents do not give.
    note = "" if table.key == "experts" and all(row["p_value"] is None for row in rows) else table.note
    return replace(
        table, columns=columns, rows=tuple(rows), note=note, text_rows=shown, for_scripts=bool(rows) and equal
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _both(models: Sequence[Mapping[str, Any]], key: str) -> str | None:
    """``base and tuned``, or the only one; a report that compares names two itself."""
    names = [name for model in models if model.get(key) for name in str(model[key]).split(_AND)]
    return _AND.join(dict.fromkeys(names)) or None
