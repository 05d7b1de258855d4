"""Every number of a report is the same in all formats: exactly where a format promises it, else as it is written."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from moetool.report.formats import FORMATS, PRINTABLE, Page
from moetool.report.report import Report, Table, Value
from moetool.report.values import write_column
from tests.report.checkers import CHECKERS, WIDE, shown, summary_of
from tests.report.command_reports import PAGES, REPORTS, pages_of
from tests.report.sample_report import make_report

SCALES = {
    **{"": 1.0, "%": 0.01, "nats": 1.0, "bits": 1.0, "s": 1.0},
    **{"B": 1e9, "k": 1e3, "M": 1e6, "T": 1e12, "FLOP": 1.0},
    **{f"{letter}FLOP": 1e3 ** (power + 1) for power, letter in enumerate("kMGTPE")},
    **{f"{letter}iB": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTP")},
}


def render(name: str, report: Report) -> str:
    return str(FORMATS[name].render(replace(report, figures=()), Page(WIDE)))


def test_every_page_is_looked_at():
    assert {page for command in REPORTS for page in pages_of(command)} == set(PAGES)
    assert set(CHECKERS) == set(PRINTABLE)


@pytest.mark.parametrize("name", PRINTABLE)
@pytest.mark.parametrize("page", PAGES)
def test_the_same_numbers(page, name):
    report = pages_of(PAGES[page])[page]
    CHECKERS[name](report, render(name, report))


def changed(report: Report, number: int, table: Table) -> Report:
    tables = (*report.tables[:number], table, *report.tables[number + 1 :])
    return replace(report, tables=tables)


def with_value(report: Report, value: float) -> Report:
    first = report.tables[0]
    row = {**first.rows[1], "max_violation": value}
    return changed(report, 0, replace(first, rows=(first.rows[0], row, *first.rows[2:])))


def swapped(report: Report) -> Report:
    """Two columns have each other's values."""
    first = report.tables[0]
    rows = tuple({**row, "gini": row["entropy"], "entropy": row["gini"]} for row in first.rows)
    return changed(report, 0, replace(first, rows=rows))


def without(key: str, report: Report) -> Report:
    """A number of the summary less."""
    columns = tuple(column for column in report.summary_columns if column.key != key)
    return replace(report, summary_columns=columns, summary={one.key: report.summary[one.key] for one in columns})


def narrower(report: Report) -> Report:
    """The first table without its first column."""
    first = report.tables[0]
    columns = first.columns[1:]
    rows = tuple({column.key: row[column.key] for column in columns} for row in first.rows)
    return changed(report, 0, replace(first, columns=columns, rows=rows))


REPORT = make_report()
MESSAGES, TABLES = {"github", "junit"}, {"text", "json", "markdown", "csv", "html"}
WRONG = {
    "a table less": (replace(REPORT, tables=REPORT.tables[:1]), TABLES),
    "a row less": (changed(REPORT, 1, replace(REPORT.tables[1], rows=REPORT.tables[1].rows[:-2])), TABLES),
    "a column less": (narrower(REPORT), TABLES),
    "two columns swapped": (swapped(REPORT), TABLES),
    "other digits": (with_value(REPORT, 1.311), TABLES),
    "a bit": (with_value(REPORT, math.nextafter(1.31, 2)), {"json", "csv", "html"}),
    "undefined": (replace(REPORT, summary={**REPORT.summary, "tokens": None}), TABLES),
    "a number of the summary less": (without("tokens", REPORT), TABLES),
    "a finding less": (replace(REPORT, findings=REPORT.findings[1:]), TABLES | MESSAGES),
    "a check turned": (replace(REPORT, checks=tuple(replace(c, failed=not c.failed) for c in REPORT.checks)),
                       TABLES | MESSAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTABLE)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_format_that_tells_something_else_would_be_noticed(wrong, name):
    report, formats = WRONG[wrong]
    CHECKERS[name](REPORT, render(name, REPORT))
    if name in formats:
        with pytest.raises(AssertionError):
            CHECKERS[name](REPORT, render(name, report))


def amount(text: str) -> tuple[float, float]:
    """The number that a text says, and half of its last digit."""
    found = re.fullmatch(r"(-?[\d,]+)(\.\d+)?(e\+\d+)? ?([A-Za-z%]*)", text)
    assert found, text
    whole, fraction, power, unit = (part or "" for part in found.groups())
    scale = SCALES[unit] * float(f"1{power}")
    return float(f"{whole}{fraction}".replace(",", "")) * scale, 0.5 * 10.0 ** -max(len(fraction) - 1, 0) * scale


def said(text: str, value: Value, unit: str) -> bool:
    """Whether a text says a number, as well as its digits can."""
    if text.startswith(("<", ">")):
        bound, _ = amount(text[1:])
        return abs(float(value or 0)) < abs(bound) and (float(value or 0) > 0) == text.startswith("<")
    # Bytes are the only quantity whose B stands for nothing.
    number, half = amount(text.removesuffix(" B") if unit == "bytes" else text)
    return abs(number - float(value or 0)) <= half * 1.0000001


@pytest.mark.parametrize("page", PAGES)
def test_written_numbers_are_those_of_json_rounded(page):
    report = pages_of(PAGES[page])[page]
    numbers = 0
    for table in (summary_of(report), *shown(report)):
        for column in table.columns:
            for text, row in zip(write_column(table, column), table.rows, strict=True):
                value, unit = row[column.key], str(row[column.unit_from] if column.unit_from else column.unit)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert said(text, value, unit), (table.key, column.key, value, text)
                    numbers += 1
    assert numbers > 5


@pytest.mark.parametrize(
    ("text", "value", "unit", "right"),
    [
        ("46.70 B", 46_702_792_704, "parameters", True),
        ("46.71 B", 46_702_792_704, "parameters", False),
        ("12.3 %", 0.1234, "share", True),
        ("12.4 %", 0.1234, "share", False),
        ("<0.001 %", 1e-7, "share", True),
        ("<0.001 %", 1e-2, "share", False),
        ("512 B", 512, "bytes", True),
        ("1.00 GiB", 2**30, "bytes", True),
        ("1.00 GiB", 10**9, "bytes", False),
    ],
)
def test_what_a_text_says_by_hand(text, value, unit, right):
    assert said(text, value, unit) is right
