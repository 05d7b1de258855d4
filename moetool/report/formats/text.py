"""The text format: a Report enters, a page for people leaves, as wide as their terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Literal

from rich.align import Align
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from moetool.report.formats import Page
from moetool.report.formats.text_figures import draw
from moetool.report.report import Column, Figure, Report, Table, Value
from moetool.report.values import heading, inert, is_numeric, write_column, write_footer, write_title, write_value

_NARROWEST_PAGE = 40
_WIDEST_LINE = 120
"""Sentences and figures leave the rest of a wider page empty: longer lines are hard to read."""
_HELP_FROM_WIDTH = 120
"""From this width on, the summary says what each number means."""
_GAP = 2
_NARROWEST_TEXT = 16
"""Text columns are wrapped, but not below this width."""
_JOINT = "\ue000"
"""A space at which no line is broken (``95 %``), until the page is done; inert text cannot hold it."""
_BLOCKS = r"[▁-▏░▒▓]+"
"""What bars, sparklines and heatmaps are made of."""
_NAME_PARTS = re.compile(r"[^./\\_-]*[./\\_-]*")
"""Where names of tensors and files may be broken."""
_COMMAND = re.compile(r"^(\s|\x1b\[[\d;]*m)*::|##\[")
"""What a runner of GitHub takes for a command, in a log as anywhere: names must not give any."""
_LEVEL_STYLES = {"info": "cyan", "warning": "yellow", "error": "bold red"}


def render(report: Report, page: Page) -> str:
    """Summary first, then checks, findings, tables and figures; names cannot carry markup or escapes."""
    width = max(page.width, _NARROWEST_PAGE)
    output = StringIO()
    # An empty environment: what colours and width are is for the caller to decide, not for COLUMNS or FORCE_COLOR.
    console = Console(
        file=output,
        width=width,
        force_terminal=page.color,
        color_system="standard" if page.color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )
    _print_title(console, report)
    _print_summary(console, report)
    _print_messages(console, report)
    for table in report.tables:
        if table.is_shown:
            _print_table(console, table)
    for figure in report.figures:
        if figure.in_text:
            _print_figure(console, figure)
    _print_footer(console, report)
    lines = output.getvalue().replace(_JOINT, " ").splitlines()
    return "".join(f"{_COMMAND.sub(_without_colons, line.rstrip())}\n" for line in lines)


def _without_colons(match: re.Match[str]) -> str:
    return match[0].replace(":", "\ua789").replace("#", "\u266f")


def _print_title(console: Console, report: Report) -> None:
    """One line, or one for the name and one for the details where a long path leaves no room."""
    title, details = write_title(report)
    gap = " " * _GAP if cell_len(title) + _GAP + cell_len(details) <= console.width else "\n"
    console.print(Text.assemble((title, "bold"), gap if details else "", (details, "dim")))


def _print_summary(console: Console, report: Report) -> None:
    columns = [column for column in report.summary_columns if not column.detail]
    if not columns:
        return
    grid = Grid.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    explain = console.width >= _HELP_FROM_WIDTH
    for column in columns:
        value = write_value(report.summary[column.key], column.unit)
        meaning = [Text(inert(column.help), style="dim")] if explain else []
        grid.add_row(Text(inert(column.title)), Text(value, style="bold"), *meaning)
    console.print()
    console.print(Padding(grid, (0, 0, 0, 2)))


def _print_messages(console: Console, report: Report) -> None:
    messages: list[tuple[str, str, str]] = []
    for check in report.checks:
        level, style = ("check failed", "bold red") if check.failed else ("check passed", "green")
        messages.append((level, style, check.sentence))
    messages += [(finding.level, _LEVEL_STYLES[finding.level], finding.message) for finding in report.findings]
    if not messages:
        return
    grid = Grid.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for level, style, message in messages:
        grid.add_row(Text(f"{level}:", style=style), Text(inert(message).replace(" %", f"{_JOINT}%")))
    console.print()
    console.print(grid, width=min(console.width, _WIDEST_LINE))


@dataclass(slots=True)
class _Strip:
    """A column as the page sees it."""

    column: Column
    heading: str
    cells: list[str]
    numeric: bool
    width: int = 0

    @property
    def narrowest(self) -> int:
        """Numbers and the words of a heading are never broken; other text may be wrapped."""
        content = max(map(cell_len, self.cells), default=0)
        word = max(map(cell_len, self.heading.split()), default=0)
        return max(content if self.numeric else min(content, _NARROWEST_TEXT), min(word, _NARROWEST_TEXT), 1)

    @property
    def widest(self) -> int:
        """Enough for every cell and the heading on one line."""
        return max(*map(cell_len, [self.heading, *self.cells]), 1)


def _print_table(console: Console, table: Table) -> None:
    runs = _runs(table)
    shown = len(runs) if table.text_rows is None else min(table.text_rows, len(runs))
    firsts = replace(table, rows=tuple(run[0] for run in runs[:shown]))
    strips = [
        _Strip(column, heading(column), write_column(firsts, column), is_numeric(firsts, column))
        for column in table.columns
        if not column.detail
    ]
    for strip in strips:
        if strip.column.key == table.range_key:
            strip.cells = [_range([row[table.range_key] for row in run]) for run in runs[:shown]]
    kept = _fit(strips, console.width)
    console.print()
    console.print(Text(inert(table.title), style="bold"))
    if table.note:
        console.print(Text(inert(table.note), style="dim"), width=min(console.width, _WIDEST_LINE))
    if shown:
        console.print(_grid(kept))
    for line in _left_out(table, len(runs), shown, strips[len(kept) :]):
        console.print(Text(line, style="dim"))


def _runs(table: Table) -> list[list[Mapping[str, Value]]]:
    """The rows; those that look alike but for consecutive numbers of ``range_key`` are together."""
    runs: list[list[Mapping[str, Value]]] = []
    others = [column for column in table.columns if not column.detail and column.key != table.range_key]
    printed = list(zip(*(write_column(table, column) for column in others), strict=True)) if table.range_key else []
    for index, row in enumerate(table.rows):
        alike = index > 0 and bool(table.range_key) and printed[index] == printed[index - 1]
        if alike and _follows(table.rows[index - 1][table.range_key], row[table.range_key]):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _follows(last: Value, number: Value) -> bool:
    return isinstance(last, int) and isinstance(number, int) and number == last + 1


def _range(numbers: Sequence[Value]) -> str:
    """``3-60``."""
    ends = [write_value(number, "number") for number in (numbers[0], numbers[-1])]
    return ends[0] if len(numbers) == 1 else "-".join(ends)


def _fit(strips: Sequence[_Strip], width: int) -> list[_Strip]:
    """The first columns that fit, each given its width: what is left goes to text first, then to whole headings."""
    kept = list(strips)
    while len(kept) > 1 and sum(strip.narrowest + _GAP for strip in kept) - _GAP > width:
        kept.pop()
    spare = width - sum(strip.narrowest + _GAP for strip in kept) + _GAP
    for strip in sorted(kept, key=lambda strip: strip.numeric):
        more = strip.widest - strip.narrowest
        if more > spare:
            more = 0 if strip.numeric else max(spare, 0)
        strip.width = strip.narrowest + more
        spare -= more
    return kept


def _grid(strips: Sequence[_Strip]) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold")
    for strip in strips:
        side: Literal["left", "right"] = "right" if strip.numeric else "left"
        title = Align(Text(strip.heading), side, vertical="bottom")
        grid.add_column(title, justify=side, width=strip.width, overflow="fold")
    for row in zip(*(strip.cells for strip in strips), strict=True):
        grid.add_row(*(Text(_breakable(cell, strip.width)) for cell, strip in zip(row, strips, strict=True)))
    return grid


def _breakable(text: str, width: int) -> str:
    """The text with line breaks in words that are too long: behind dots and the like, where that is enough."""
    return " ".join(_broken(word, width) if cell_len(word) > width else word for word in text.split(" "))


def _broken(word: str, width: int) -> str:
    lines = [""]
    for part in _NAME_PARTS.findall(word):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _left_out(table: Table, lines: int, shown: int, dropped: Sequence[_Strip]) -> Iterator[str]:
    if dropped:
        names = ", ".join(strip.heading for strip in dropped)
        yield f"This page is too narrow for: {names} (--json has every column)."
    if not table.rows:
        yield "No rows."
    elif shown == 0:
        yield f"{len(table.rows):,} rows (--json has them)."
    elif shown < lines:
        yield f"{shown:,} of {lines:,} rows (--json has them all)."
    if lines < len(table.rows):
        yield f"{table.title} that are equal share a row, with the numbers of one of them."


def _print_figure(console: Console, figure: Figure) -> None:
    console.print()
    console.print(Text(inert(figure.title), style="bold"))
    for line in draw(figure, min(console.width, _WIDEST_LINE)):
        text = Text(line)
        text.highlight_regex(_BLOCKS, "blue")
        console.print(text)


def _print_footer(console: Console, report: Report) -> None:
    lines = write_footer(report)
    if lines:
        console.print()
        console.print(Text("\n".join(lines), style="dim"))
