"""The CSV format: a Report enters, one file in long form leaves, every value on a line of its own.

The columns are ``table,row,key,value,unit``. After the tables ``model`` and ``summary``, of one row each, come those of
the report, then its ``findings`` and ``checks``; ``row`` counts from 0. Units are those of the report's columns, or of
the row where a table has unlike quantities. pandas has a table back with::

    frame = pandas.read_csv("report.csv", keep_default_na=False)
    layers = frame[frame.table == "layers"].pivot(index="row", columns="key", values="value")

Numbers are exact, yes and no are ``true`` and ``false``, undefined is empty. Quoting is that of RFC 4180; lines end in
a line feed. Text has its control characters spelled out, as on every page, so that a value never spans lines; and since
spreadsheets run a cell that starts like a formula, such a text gets an apostrophe in front (``'=1+1``), as has one that
would read like that (``''=1+1``): taking one away restores it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import StringIO

from moetool.report.formats import Page
from moetool.report.report import Check, Finding, Report, Table, Value
from moetool.report.values import inert

_FORMULA = re.compile(r"'*[-=+@＝＋－＠]")

Line = tuple[str, int, str, str, str]


def render(report: Report, page: Page) -> str:
    """Everything but figures, options and versions."""
    output = StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(("table", "row", "key", "value", "unit"))
    writer.writerows(_named("model", 0, report.model))
    for table in (Table("summary", "", report.summary_columns, (report.summary,)), *report.tables):
        writer.writerows(_lines(table))
    parts: dict[str, Sequence[Finding | Check]] = {"findings": report.findings, "checks": report.checks}
    for name, rows in parts.items():
        for number, row in enumerate(rows):
            writer.writerows(_named(name, number, asdict(row)))
    return output.getvalue()


def _lines(table: Table) -> Iterator[Line]:
    for number, row in enumerate(table.rows):
        for column in table.columns:
            unit = row[column.unit_from] if column.unit_from else column.unit
            yield table.key, number, column.key, _exact(row[column.key]), str(unit)


def _named(table: str, number: int, row: Mapping[str, Value]) -> Iterator[Line]:
    for key, value in row.items():
        yield table, number, key, _exact(value), ""


def _exact(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = inert(value)
        return f"'{text}" if _FORMULA.match(text) else text
    return repr(value)
