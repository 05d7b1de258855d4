"""The sections of the HTML page: parts of a Report enter, markup leaves in which every name is inert."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import cast

from moetool.report.formats import FORMATS, Page
from moetool.report.report import Check, Column, Figure, Finding, Report, Table, Value
from moetool.report.values import heading, inert, is_numeric, shorten, write_column, write_footer, write_value

_FIRST_ROWS = 100
"""Rows of a table that are there at once; the script shows the others when it is asked to."""
_LONGEST_CELL, _LONGEST_LINE = 120, 1000
"""Cells of a terminal that a text may take; a longer one loses its middle, and has all of it as title."""
_NOT_FOR_PAGES = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<title>.*?</title>|<style.*?</style>", re.DOTALL)
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')
_IDENTIFIER = re.compile(r'( id="|href="#|url\(#)')


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page that the contents lead to; ``body`` is markup, ``title`` is not."""

    key: str
    title: str
    body: str

    def html(self) -> str:
        """Its markup."""
        return (
            f'<section id="{self.key}" aria-labelledby="{self.key}-title">\n'
            f'<h2 id="{self.key}-title">{show(self.title, _LONGEST_CELL)}</h2>\n{self.body}\n</section>'
        )


def show(text: str, width: int) -> str:
    """Markup of a text as it is, in at most ``width`` cells."""
    full = inert(text)
    short = shorten(full, width)
    return escape(short) if short == full else f'<span title="{escape(full)}">{escape(short)}</span>'


def findings_section(report: Report) -> Section | None:
    """What a reader should not miss, the worst first."""
    order = ("error", "warning", "info")
    lines = [_finding(finding) for finding in sorted(report.findings, key=lambda one: order.index(one.level))]
    return Section("findings", "Findings", _list(lines)) if lines else None


def _finding(finding: Finding) -> str:
    return _message(finding.level, finding.level, finding.message)


def checks_section(report: Report) -> Section | None:
    """The outcomes of ``--fail-if``."""
    lines = [_check(check) for check in report.checks]
    return Section("checks", "Checks", _list(lines)) if lines else None


def _check(check: Check) -> str:
    outcome, kind = ("failed", "error") if check.failed else ("passed", "passed")
    return _message(outcome, kind, check.sentence)


def _message(label: str, kind: str, text: str) -> str:
    shown = show(text, _LONGEST_LINE).replace(" %", "\N{NO-BREAK SPACE}%")
    return f'<li class="{kind}"><strong>{label}</strong> {shown}</li>'


def _list(lines: Iterable[str]) -> str:
    return "<ul class=messages>\n{}\n</ul>".format("\n".join(lines))


def summary_section(report: Report) -> Section | None:
    """The main numbers, each with its meaning, and the details as a table."""
    numbers = "\n".join(_number(column, report.summary[column.key]) for column in _main(report.summary_columns))
    details = [column for column in report.summary_columns if column.detail]
    parts = [f"<dl class=numbers>\n{numbers}\n</dl>"] if numbers else []
    if details:
        columns = (Column("title", "Number", "text"), Column("key", "Key", "text"), Column("value", "Value", "text"))
        rows = tuple(
            {"title": one.title, "key": one.key, "value": write_value(report.summary[one.key], one.unit),
             "help": one.help} for one in details
        )  # fmt: skip
        table = Table("details", "More numbers", (*columns, Column("help", "Meaning", "text")), rows)
        parts.append(f"<details>\n<summary>{_count(len(details), 'more number')}</summary>\n{_grid(table)}\n</details>")
    return Section("summary", "Summary", "\n".join(parts)) if parts else None


def _main(columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if not column.detail]


def _number(column: Column, value: Value) -> str:
    exact = f' title="{_exact(value)}"' if isinstance(value, int | float) else ""
    return (
        f"<div><dt>{show(column.title, _LONGEST_CELL)} <code>{escape(column.key)}</code></dt>"
        f"<dd{exact}>{show(write_value(value, column.unit), _LONGEST_CELL)}</dd>"
        f"<dd class=meaning>{show(column.help, _LONGEST_LINE)}</dd></div>"
    )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _exact(value: Value) -> str:
    return escape(repr(value))


def table_section(table: Table) -> Section:
    """A table, how to read it, and what its columns mean."""
    more = len(table.columns) - len(_main(table.columns))
    parts = [f"<p>{show(table.note, _LONGEST_LINE)}</p>"] if table.note else []
    if more:
        parts.append(f'<p><label><input type="checkbox" class="more"> {_count(more, "more column")}</label></p>')
    parts += [_grid(table), _glossary(table.columns)]
    return Section(f"table-{table.key}", table.title, "\n".join(parts))


def _grid(table: Table) -> str:
    """The table itself: the first rows, and those that wait for the script in a second body."""
    numeric = [is_numeric(table, column) for column in table.columns]
    cells = [_cells(table, column, is_number) for column, is_number in zip(table.columns, numeric, strict=True)]
    rows = [f"<tr>{''.join(row)}</tr>" for row in zip(*cells, strict=True)]
    titles = "".join(_heading(column, right) for column, right in zip(table.columns, numeric, strict=True))
    first, others = "\n".join(rows[:_FIRST_ROWS]), "\n".join(rows[_FIRST_ROWS:])
    title = show(table.title, _LONGEST_CELL)
    return (
        f'<div class="scroll" role="group" aria-label="{escape(inert(table.title))}" tabindex="0">\n'
        f"<table>\n<caption>{title}: {_count(len(rows), 'row')}</caption>\n<thead>\n<tr>{titles}</tr>\n</thead>\n"
        f"<tbody>\n{first}\n</tbody>\n<tbody hidden>\n{others}\n</tbody>\n</table>\n</div>"
    )


def _classes(column: Column, numeric: bool) -> str:
    names = " ".join(["number"] * numeric + ["detail"] * column.detail)
    return f' class="{names}"' if names else ""


def _heading(column: Column, numeric: bool) -> str:
    meaning = f' title="{escape(inert(column.help))}"' if column.help else ""
    return f'<th scope="col"{_classes(column, numeric)}{meaning}>{_named(column)}</th>'


def _named(column: Column) -> str:
    """The heading of a column, which is never empty: a reader by ear needs one."""
    return show(heading(column) or column.key, _LONGEST_CELL)


def _cells(table: Table, column: Column, numeric: bool) -> list[str]:
    """Markup of a column's cells; the title of a number is its exact value, by which the script sorts."""
    first = column is table.columns[0]
    start, end = ('<th scope="row"', "</th>") if first else ("<td", "</td>")
    start += _classes(column, numeric)
    cells = []
    for text, row in zip(write_column(table, column), table.rows, strict=True):
        value = row[column.key]
        rounded = isinstance(value, int | float) and not isinstance(value, bool) and repr(value) != text
        title = f' title="{_exact(value)}"' if rounded else ""
        cells.append(f"{start}{title}>{show(text, _LONGEST_CELL)}{end}")
    return cells


def _glossary(columns: Sequence[Column]) -> str:
    meanings = "\n".join(
        f"<dt>{_named(column)} <code>{escape(column.key)}</code></dt>"
        f"<dd>{show(column.help or column.title, _LONGEST_LINE)}</dd>"
        for column in columns
    )
    return f"<details>\n<summary>What the columns mean</summary>\n<dl>\n{meanings}\n</dl>\n</details>"


def figures_section(report: Report) -> Section | None:
    """Every figure as it is drawn for files, with its sentence."""
    drawn = [_figure(report, figure) for figure in report.figures]
    return Section("figures", "Figures", "\n".join(drawn)) if drawn else None


def _figure(report: Report, figure: Figure) -> str:
    drawn = cast(bytes, FORMATS["svg"].render(replace(report, figures=(figure,)), Page())).decode("utf-8")
    picture = _SIZE.sub("", _NOT_FOR_PAGES.sub("", drawn[drawn.index("<svg") :]), count=2)
    # Identifiers are those of one file each, and share the page.
    picture = _IDENTIFIER.sub(rf"\g<1>{figure.key}-", picture)
    alternative = escape(inert(f"{figure.title}. {figure.alt}"))
    picture = picture.replace("<svg", f'<svg role="img" aria-label="{alternative}"', 1)
    return (
        f'<figure>\n<div class="scroll" role="group" aria-label="{escape(inert(figure.title))}" tabindex="0">\n'
        f"{picture.strip()}\n</div>\n<figcaption>{show(figure.alt, _LONGEST_LINE)}</figcaption>\n</figure>"
    )


def options_section(report: Report) -> Section | None:
    """What was set and what it was made with."""
    lines = "\n".join(f"<p>{show(line, _LONGEST_LINE)}</p>" for line in write_footer(report))
    return Section("options", "Options and versions", lines) if lines else None
