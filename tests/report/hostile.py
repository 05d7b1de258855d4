"""Names and texts that do harm wherever they are taken for something else, and reports in which everything has them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count

from moetool.report.report import Check, Column, Figure, Panel, Report, Table, Value

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "<!-- x",
    "]]> --> <![CDATA[ <?x ?>",
    '" onmouseover="alert(1)" x=\'',
    "&lt;b&gt; &#60;b&#62; &amp",
    "\x1b[31mred\x1b[2J",
    "\x1b]8;;file:///x\x07link\x1b]8;;\x07",
    "\x9b31m\x85\x90",
    "nul\x00 del\x7f bell\x07 back\x08",
    "\ud800 lone \udfff",
    "file\udce9.txt",
    "a\u2028b\u2029c",
    "\u202eabc\u202c \u2066a\u2067b\u2069",
    "\ufeffmark \ufffe\uffff",
    "zero\u200bwidth\u2060\u00ad\u00a0",
    "\U0001f469\U0001f3fd\u200d\U0001f4bb \u2764\ufe0f 1\ufe0f\u20e3",
    "e" + "\u0301" * 40,
    "\u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947 \u0e01\u0e47 中文",
    "n" * 10_000,
    "w " * 1_000 + "w",
    "中" * 1_000,
    "=cmd|' /C calc'!A0",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "＝1＋1",
    "\t=1+1",
    "\r=1+1",
    "'=1+1",
    'a,"b"";c',
    "::error::x",
    "%0A::error title=x::y%25",
    "##[error]x",
    "a|b||c\\|d",
    "`code` ```",
    "[x](javascript:alert(1)) ![x](x.png) [^1]",
    "<javascript:alert(1)>",
    "**b** __b__ _i_ *i* ~~s~~ <b>",
    "# heading",
    "> quote",
    "- item",
    "1. item",
    "1) item",
    "+ item",
    "--- \n---\n===",
    "```\ncode",
    "    code",
    "<details><summary>x</summary>",
    "$(rm -rf x) $x_{$ $$ \\frac{",
    "{{x}} {x} ${x} %s %(x)s {0.__class__}",
    "a\nb\r\nc\rd\x0be\x0cf",
    "[red]x[/red] [/] [bold",
    "\\x1b \\n \\",
    "C:\\x\\ ..\\../",
    "\ue000 \U000e0001 \U0010ffff",
    " ",
    "",
)


def hostile_names(shift: int) -> Callable[[str], str]:
    """A hostile name for every harmless one, always the same and never that of another."""
    known: dict[str, str] = {}

    def name(harmless: str) -> str:
        place = shift + len(known)
        number = "" if len(known) < len(HOSTILE) else str(len(known))
        return known.setdefault(harmless, HOSTILE[place % len(HOSTILE)] + number)

    return name


def cycle(shift: int, longest: int = 500) -> Iterator[str]:
    """Hostile texts again and again, from one of them on; very long ones take their time."""
    texts = [text for text in HOSTILE if len(text) <= longest]
    return (texts[place % len(texts)] for place in count(shift))


def with_texts(report: Report, texts: Iterator[str]) -> Report:
    """The report with every text that is not for scripts replaced by the next one; its numbers stay as they are."""
    findings = [replace(finding, message=next(texts)) for finding in report.findings]
    errors = [replace(finding, level="error", message=next(texts)) for finding in findings]
    checks = [Check(next(texts), key, value, value != 1, next(texts)) for key, value in (("x", next(texts)), ("y", 1))]
    return replace(
        report,
        model={key: next(texts) for key in report.model},
        options={**{key: next(texts) for key in report.options}, "list": [next(texts), next(texts), 1, None]},
        summary_columns=_columns(report.summary_columns, texts),
        summary=_row(report.summary, "", texts),
        tables=tuple(_table(table, texts) for table in report.tables),
        findings=(*findings, *errors),
        checks=tuple(checks),
        figures=tuple(_figure(figure, texts) for figure in report.figures),
        environment={key: next(texts) for key in report.environment},
    )


def _columns(columns: tuple[Column, ...], texts: Iterator[str]) -> tuple[Column, ...]:
    return tuple(replace(column, title=next(texts), help=next(texts)) for column in columns)


def _row(row: Mapping[str, Value], kept: str, texts: Iterator[str]) -> dict[str, Value]:
    return {key: next(texts) if isinstance(value, str) and key != kept else value for key, value in row.items()}


def _table(table: Table, texts: Iterator[str]) -> Table:
    unit = next((column.unit_from for column in table.columns if column.unit_from), "")
    rows = tuple(_row(row, unit, texts) for row in table.rows)
    return replace(table, title=next(texts), note=next(texts), columns=_columns(table.columns, texts), rows=rows)


def _figure(figure: Figure, texts: Iterator[str]) -> Figure:
    panels = tuple(_panel(panel, texts) for panel in figure.panels)
    x_title, y_title = next(texts), next(texts)
    return replace(figure, title=next(texts), alt=next(texts), panels=panels, x_title=x_title, y_title=y_title)


def _panel(panel: Panel, texts: Iterator[str]) -> Panel:
    series = tuple((next(texts), values) for _, values in panel.series)
    return replace(panel, title=next(texts), x=tuple(next(texts) for _ in panel.x), series=series)
