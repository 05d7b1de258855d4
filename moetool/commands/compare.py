"""``compare``: two traces of the same tokens and the options enter, the Report of how alike they are leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from moetool import __version__
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Figure, Finding, Report, Table, Value

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.commands.compare_columns import Kind

Row = Mapping[str, Value]

SETTINGS = ("dtype", "quantize", "engine", "device")
"""What is told of how each of the two was run."""


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
    from moetool.statistics.pairing import pair_traces

    pair = pair_traces(first, second)
    found = compare_traces(*pair, progress or SilentProgress())
    summary = summary_of(found)
    rows = table_rows(found, summary)
    rows["sources"] = source_rows([trace.model for trace in pair], [trace.settings for trace in pair], options)
    findings = tuple(trace_findings(pair, summary, rows))
    figures = tuple(draw_agreement(rows["layers"], rows["margins"]))
    return assemble("traces", [trace.model for trace in pair], options, summary, rows, findings, figures)


def assemble(
    kind: Kind,
    models: Sequence[Mapping[str, Any]],
    options: Mapping[str, object],
    summary: Row,
    rows: Mapping[str, Sequence[Row]],
    findings: tuple[Finding, ...],
    figures: tuple[Figure, ...],
) -> Report:
    """A report of one shape for both kinds: what ``summary`` and the tables' ``rows`` lack is null or empty.

    Where nothing differs, the terminal is spared the long tables and the figures.
    """
    from moetool.commands.compare_columns import TABLES, summary_columns

    columns, differ = summary_columns(kind), not summary["identical"]
    return Report(
        command="compare",
        model={key: _both(models, key) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], dict(options)),
        summary_columns=columns,
        summary={column.key: summary.get(column.key) for column in columns},
        tables=tuple(_filled(table, rows.get(table.key, ()), differ) for table in TABLES),
        findings=findings,
        figures=tuple(replace(figure, in_text=differ) for figure in figures),
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


def _filled(table: Table, rows: Sequence[Row], differ: bool) -> Table:
    """A table with rows; pages for people leave out what none of them has."""
    columns = tuple(
        replace(column, detail=column.detail or all(row[column.key] is None for row in rows))
        for column in table.columns
    )
    shown = 0 if table.text_rows and not differ else table.text_rows
    return replace(table, columns=columns, rows=tuple(rows), text_rows=shown)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _both(models: Sequence[Mapping[str, Any]], key: str) -> str | None:
    """``base and tuned``, or the only one."""
    return " and ".join(dict.fromkeys(str(model[key]) for model in models if model.get(key))) or None
