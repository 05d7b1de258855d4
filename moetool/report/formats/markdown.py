"""The Markdown format: a Report enters, a page with GitHub tables leaves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from moetool.report.formats import Page
from moetool.report.report import Report, Table
from moetool.report.values import heading, inert, is_numeric, write_column, write_footer, write_title, write_value

_FOLDED_ROWS = 30
"""Longer tables are folded, so that a comment stays readable."""
_SPECIAL = re.compile(r"[\\`*|~\[\]$#]|(?<![^\W_])_|_(?![^\W_])")
"""An underscore between letters or digits is one, others may emphasise."""
_ADDRESS = re.compile(r"://|www\.|@", re.IGNORECASE)
"""GitHub makes a link of an address, up to where it thinks it ends, escapes and all."""
_LIST_OR_QUOTE = re.compile(r"^(\d*)([-+>.)])")


def render(report: Report, page: Page) -> str:
    """Checks, summary (its details folded), findings and every table in full; a figure is its sentence."""
    sections = [_title(report), _checks(report), _summary(report), _findings(report)]
    sections += [_table(table) for table in report.tables if table.is_shown]
    sections += [f"*{escape(figure.title)}:* {escape(figure.alt)}" for figure in report.figures]
    sections.append("  \n".join(escape(line) for line in write_footer(report)))
    return "\n\n".join(section for section in sections if section) + "\n"


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    text = _SPECIAL.sub(lambda match: f"\\{match[0]}", inert(text))
    text = _ADDRESS.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _paragraph(text: str) -> str:
    """Escaped text at the start of a line, where spaces begin code, and a few characters a list or a quote."""
    return _LIST_OR_QUOTE.sub(r"\1\\\2", escape(text).lstrip(" "))


def _title(report: Report) -> str:
    title, details = write_title(report)
    return f"## {escape(title)}" + (f"\n\n{escape(details)}" if details else "")


def _summary(report: Report) -> str:
    parts: tuple[list[tuple[str, str, str]], ...] = ([], [])
    for column in report.summary_columns:
        value = report.summary[column.key]
        if value is not None or not column.detail:
            parts[column.detail].append((column.title, write_value(value, column.unit), column.help))
    main, more = ("\n".join(_lines(("Quantity", "Value", "Meaning"), part, (False, True, False))) for part in parts)
    folded = f"<details><summary>{len(parts[1])} more numbers</summary>\n\n{more}\n\n</details>" if parts[1] else ""
    return "\n\n".join(part for part in (main if parts[0] else "", folded) if part)


def _findings(report: Report) -> str:
    return "\n".join(f"- **{finding.level}:** {escape(finding.message)}" for finding in report.findings)


def _checks(report: Report) -> str:
    return "\n".join(
        f"- **check {'failed' if check.failed else 'passed'}:** {escape(check.sentence)}" for check in report.checks
    )


def _table(table: Table) -> str:
    columns = [write_column(table, column) for column in table.columns]
    numeric = [is_numeric(table, column) for column in table.columns]
    lines = "\n".join(_lines([heading(column) for column in table.columns], zip(*columns, strict=True), numeric))
    if len(table.rows) > _FOLDED_ROWS:
        lines = f"<details><summary>{len(table.rows):,} rows</summary>\n\n{lines}\n\n</details>"
    note = f"{_paragraph(table.note)}\n\n" if table.note else ""
    return f"### {escape(table.title)}\n\n{note}{lines}"


def _lines(headings: Iterable[str], rows: Iterable[Iterable[str]], numeric: Iterable[bool]) -> Iterator[str]:
    yield f"| {' | '.join(escape(title) for title in headings)} |"
    yield f"| {' | '.join('---:' if right else '---' for right in numeric)} |"
    for row in rows:
        yield f"| {' | '.join(escape(cell) for cell in row)} |"
