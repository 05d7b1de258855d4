"""What a format promises about a report: one and a page of the format enter, AssertionError leaves where it is not so.

Pages are of WIDE cells and have no figures. Readers are those of other people; the only function of ours that is
trusted is the one that writes a number for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

from moetool.report.report import Check, Column, Finding, Report, Table, Value
from moetool.report.values import heading, inert, write_column, write_footer, write_title, write_value
from tests.report.pages import Element, read_page
from tests.report.readers import read_csv, read_github, read_junit, read_markdown

WIDE = 4_000
"""Cells at which the text format breaks no row of a table and leaves out no column."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMULA, _GUARDED = re.compile(r"[-=+@\t\r\n＝＋－＠]"), re.compile(r"'+[-=+@＝＋－＠]")

Rows = list[dict[str, Value]]


def summary_of(report: Report) -> Table:
    return Table("summary", "Summary", report.summary_columns, (report.summary,))


def rows_of(table: Table) -> Rows:
    return [{column.key: row[column.key] for column in table.columns} for row in table.rows]


def shown(report: Report) -> list[Table]:
    """Pages for people leave out tables for scripts, and those without rows that may be."""
    return [table for table in report.tables if not table.for_scripts and (table.rows or not table.optional)]


def whole(column: Column) -> bool:
    return not column.detail


def check_json(report: Report, text: str) -> None:
    """Every table, row and value, of the same type and in order, and nothing but characters."""
    found = json.loads(text)
    parts: list[tuple[Any, Rows]] = [
        ([found["summary"]], rows_of(summary_of(report))),
        ([found["model"]], [report.model]),
    ]
    parts += [(found[part], [asdict(one) for one in getattr(report, part)]) for part in ("findings", "checks")]
    assert list(found["tables"]) == [table.key for table in report.tables]
    parts += [(found["tables"][table.key], rows_of(table)) for table in report.tables]
    for rows, expected in parts:
        spelled = [{key: _spelled(value) for key, value in row.items()} for row in expected]
        # Its representation tells 1, 1.0 and True apart, and the order of keys.
        assert repr(rows) == repr(spelled)


def _spelled(value: Value) -> Value:
    """A surrogate that is alone is no character."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", value) if isinstance(value, str) else value


def check_csv(report: Report, text: str) -> None:
    """All but figures, options and versions: every value exactly, with its unit."""
    tables = [summary_of(report), *report.tables]
    parts = {"model": [report.model], **{table.key: rows_of(table) for table in tables}}
    parts |= {part: [asdict(one) for one in getattr(report, part)] for part in ("findings", "checks")}
    found = read_csv(text)
    assert list(found) == [part for part, rows in parts.items() if rows]
    for part, rows in found.items():
        assert [list(row) for row in rows] == [list(row) for row in parts[part]]
        for row, expected in zip(rows, parts[part], strict=True):
            for key, value in expected.items():
                _check_csv_value(row[key][0], value)
    for table in tables:
        for row, expected in zip(found.get(table.key, []), table.rows, strict=True):
            units = [expected[one.unit_from] if one.unit_from else one.unit for one in table.columns]
            assert [unit for _, unit in row.values()] == units


def _check_csv_value(text: str, value: Value) -> None:
    if isinstance(value, str):
        assert not _FORMULA.match(text), "a spreadsheet would run it"
        assert text[bool(_GUARDED.match(text)) :] == inert(value)
    elif isinstance(value, bool | None):
        assert text == {None: "", True: "true", False: "false"}[value]
    else:
        assert text
        assert type(value)(text) == value


def check_html(report: Report, text: str) -> None:
    """Tables that are shown, with all rows and columns; a number that is rounded has its exact value as title."""
    sections = {section["id"]: section for section in read_page(text).find("section")}
    for key, part in (("findings", report.findings), ("checks", report.checks)):
        found = [full(line) for line in sections[key].find("li")] if part else []
        assert sorted(line.replace("\xa0%", " %") for line in found) == sorted(as_line(one, " ") for one in part)
    if report.summary_columns:
        _check_html_summary(report, sections["summary"])
    assert [key for key in sections if key.startswith("table-")] == [f"table-{table.key}" for table in shown(report)]
    for table in shown(report):
        section = sections[f"table-{table.key}"]
        titles = [full(title) for title in section.find("thead")[0].find("th")]
        assert titles == [heading(column) or column.key for column in table.columns]
        rows = [row.find("th", "td") for body in section.find("tbody") for row in body.find("tr")]
        assert [len(row) for row in rows] == [len(table.columns)] * len(table.rows)
        for place, column in enumerate(table.columns):
            for row, expected, written in zip(rows, table.rows, write_column(table, column), strict=True):
                _check_html_value(row[place], expected[column.key], written)


def _check_html_summary(report: Report, section: Element) -> None:
    """Main numbers one by one, details as a table without exact values."""
    main = {item.find("code")[0].text: item.find("dd")[0] for item in section.find("div") if item.find("dt")}
    more = {row.find("td")[0].text: row.find("td")[1] for body in section.find("tbody") for row in body.find("tr")}
    columns = {column.key: column for column in report.summary_columns}
    assert list(main) == [key for key, column in columns.items() if whole(column)]
    assert list(more) == [key for key, column in columns.items() if column.detail]
    for key, column in columns.items():
        value, written = report.summary[key], write_value(report.summary[key], column.unit)
        if whole(column):
            _check_html_value(main[key], value, written)
        else:
            assert full(more[key]) == written


def _check_html_value(element: Element, value: Value, written: str) -> None:
    assert full(element) == written
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert type(value)(element.attributes.get("title") or element.text) == value


def full(element: Element) -> str:
    """The text of an element; what is shortened in it is there as title."""
    return "".join(
        part if isinstance(part, str) else (part.tag == "span" and part.attributes.get("title")) or full(part)
        for part in element.children
    )


def as_line(one: Finding | Check, gap: str) -> str:
    if isinstance(one, Finding):
        return f"{one.level}{gap}{inert(one.message)}"
    return f"{'failed' if one.failed else 'passed'}{gap}{inert(one.message)}; fails if {inert(one.expression)}"


def check_markdown(report: Report, text: str) -> None:
    """Tables that are shown, with all rows and columns; of the summary's details, those that are defined."""
    blocks = read_markdown(text)
    tables = [rows for kind, rows in blocks if kind == "table"]
    summary = [one for one in report.summary_columns if whole(one) or report.summary[one.key] is not None]
    for detail in (False, True):
        columns = [column for column in summary if column.detail is detail]
        written = [(one.title, write_value(report.summary[one.key], one.unit), one.help) for one in columns]
        assert not columns or tables.pop(0)[1:] == [_cells(row) for row in written]
    assert [title for kind, title in blocks if kind == "h3"] == _cells(table.title for table in shown(report))
    for table, rows in zip(shown(report), tables, strict=True):
        written = [write_column(table, column) for column in table.columns]
        assert rows == [_cells(row) for row in (map(heading, table.columns), *zip(*written, strict=True))]
    messages = [f"check {as_line(one, ': ')}" for one in report.checks]
    messages += [as_line(one, ": ") for one in report.findings]
    assert [message for kind, message in blocks if kind == "li"] == _cells(messages)


def _cells(texts: Any) -> list[str]:
    """As Markdown has them: without spaces around."""
    return [inert(text).strip(" ") for text in texts]


def check_text(report: Report, text: str) -> None:
    """Word by word: all but details and tables that are not shown; of long tables, so many rows as they say."""
    expected = [" ".join(write_title(report))]
    for column in filter(whole, report.summary_columns):
        value = write_value(report.summary[column.key], column.unit)
        expected.append(f"{column.title} {value} {column.help}")
    expected += [f"check {as_line(one, ': ')}" for one in report.checks]
    expected += [as_line(one, ": ") for one in report.findings]
    for table in shown(report):
        expected += [table.title, table.note, *_text_lines(table)]
    words = [word for line in text.splitlines() if not line.startswith("───") for word in line.split()]
    assert words == [word for line in (*expected, *write_footer(report)) for word in inert(line).split()]


def _text_lines(table: Table) -> Iterator[str]:
    """Heading and rows; those that look alike but for consecutive numbers share one."""
    others = [column for column in table.columns if whole(column) and column.key != table.range_key]
    written = list(zip(*(write_column(table, column) for column in others), strict=True))

    def look(place: int) -> object:
        number = table.rows[place][table.range_key] if table.range_key else None
        return (written[place], number - place) if isinstance(number, int) else place

    runs = [[table.rows[place] for place in run] for _, run in groupby(range(len(table.rows)), look)]
    kept = runs[: table.text_rows]
    drawn = replace(table, rows=tuple(run[0] for run in kept))
    columns = {column.key: write_column(drawn, column) for column in filter(whole, table.columns)}
    if table.range_key:
        ends = [(run[0][table.range_key], run[-1][table.range_key]) for run in kept]
        columns[table.range_key] = ["-".join(dict.fromkeys("—" if end is None else str(end) for end in pair))
                                    for pair in ends]  # fmt: skip
    if kept:
        yield " ".join(heading(column) for column in filter(whole, table.columns))
        yield from (" ".join(row) for row in zip(*columns.values(), strict=True))
    if not table.rows:
        yield "No rows."
    elif not kept:
        yield f"{len(table.rows):,} rows (--json has them)."
    elif len(kept) < len(runs):
        yield f"{len(kept):,} of {len(runs):,} rows (--json has them all)."
    if len(runs) < len(table.rows):
        yield f"{table.title} that are equal share a row, with the numbers of one of them."


def check_github(report: Report, text: str) -> None:
    """Every check that failed and every finding, the worst first; of more than ten of a kind, nine and their number."""
    wanted = [
        ("error", "check failed", f"{one.message}; fails if {one.expression}") for one in report.checks if one.failed
    ]
    wanted += [(one.level.replace("info", "notice"), one.code, one.message) for one in report.findings]
    for level in ("error", "warning", "notice"):
        expected = [(title, message) for kind, title, message in wanted if kind == level]
        found = [(title, message) for kind, title, message in read_github(text) if kind == level]
        if len(expected) > 10:
            assert found.pop()[1].startswith(f"{len(expected) - 9} more of this kind")
            del expected[9:]
        assert found == [
            (_github(f"moetool {report.command} {title}"), _github(message)) for title, message in expected
        ]


def _github(text: str) -> str:
    """Line breaks are the only control characters that GitHub gets."""
    return "".join(part if part in "\r\n" else inert(part) for part in re.split("([\r\n])", text))


def check_junit(report: Report, text: str) -> None:
    """A case for every check and every error, other findings as output."""
    suite = read_junit(text)
    errors = [one for one in report.findings if one.level == "error"]
    expected = [
        (f"fails if {one.expression}", [("failure" if one.failed else "system-out", one.message)])
        for one in report.checks
    ]
    expected += [(one.code, [("error", one.message)]) for one in errors]
    cases = suite.findall("testcase")
    assert [case.attrib["name"] for case in cases] == [inert(name) for name, _ in expected]
    for case, (_, messages) in zip(cases, expected, strict=True):
        told = [(child.tag, child.attrib.get("message", child.text) or "") for child in case]
        assert told == [(tag, inert(message)) for tag, message in messages]
    counts = {"tests": len(cases), "failures": sum(one.failed for one in report.checks), "errors": len(errors)}
    assert {name: int(suite.attrib[name]) for name in counts} == counts
    others = [as_line(one, ": ") for one in report.findings if one.level != "error"]
    assert (suite.findtext("system-out") or "") == "\n".join(others)


CHECKERS: dict[str, Callable[[Report, str], None]] = {
    "text": check_text,
    "json": check_json,
    "markdown": check_markdown,
    "csv": check_csv,
    "html": check_html,
    "github": check_github,
    "junit": check_junit,
}
