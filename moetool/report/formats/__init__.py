"""The formats of a report, one file each: a Report and a Page enter, the bytes of a file leave.

A new format is one module with ``render(report, page)`` and one line in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from moetool.report.report import Report


@dataclass(frozen=True, slots=True)
class Page:
    """What a report is written on; formats without lines or colours ignore it."""

    width: int = 80
    """Terminal cells per line."""
    color: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a report; its module is imported when it is first used."""

    name: str
    suffixes: tuple[str, ...]
    module: str
    function: str = "render"
    printable: bool = True
    """False for pictures: only ``--save`` writes them."""

    def render(self, report: Report, page: Page) -> str | bytes:
        """The report in this format."""
        function = getattr(import_module(self.module), self.function)
        return cast(Callable[[Report, Page], str | bytes], function)(report, page)


FORMATS = {
    format.name: format
    for format in (
        Format("text", (".txt",), "moetool.report.formats.text"),
        Format("json", (".json",), "moetool.report.formats.json"),
        Format("markdown", (".md", ".markdown"), "moetool.report.formats.markdown"),
        Format("csv", (".csv",), "moetool.report.formats.csv"),
        Format("html", (".html",), "moetool.report.formats.html"),
        Format("github", (), "moetool.report.formats.github"),
        Format("junit", (".xml",), "moetool.report.formats.junit"),
        Format("png", (".png",), "moetool.report.figures", "render_png", printable=False),
        Format("svg", (".svg",), "moetool.report.figures", "render_svg", printable=False),
    )
}
PRINTABLE = tuple(name for name, format in FORMATS.items() if format.printable)
"""Values of ``--format``."""
SUFFIXES = {suffix: format for format in FORMATS.values() for suffix in format.suffixes}
"""File name suffixes of ``--save``."""


def format_of_file(path: Path) -> Format | None:
    """The format that a file name asks for, by its suffix in any case."""
    return SUFFIXES.get(path.suffix.lower())
