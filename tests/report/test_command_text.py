"""The text of every command as people see it: golden files at the widths of terminals, in ``golden/commands``."""

import re
from functools import cache
from itertools import pairwise

import pytest
from rich.cells import cell_len

from moetool.report.formats import FORMATS, Page
from tests.report.checkers import whole
from tests.report.command_reports import PAGES, pages_of

COLOR = re.compile(r"\x1b\[[\d;]*m")


@cache
def render(page: str, width: int, color: bool = False) -> str:
    return str(FORMATS["text"].render(pages_of(PAGES[page])[page], Page(width, color)))


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("page", PAGES)
def test_golden(golden, page, width):
    golden(f"commands/{page}-{width}.txt", render(page, width))


def test_golden_in_colour(golden):
    golden("commands/route-stats-80-color.txt", render("route-stats", 80, color=True))


@pytest.mark.parametrize("page", PAGES)
def test_colour_changes_no_character(page):
    colored = render(page, 80, color=True)
    assert "\x1b[1m" in colored
    assert "".join(f"{COLOR.sub('', line).rstrip()}\n" for line in colored.splitlines()) == render(page, 80)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_wider_than_the_page(page, width):
    lines = render(page, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)
    assert not any(first == second == "" for first, second in pairwise(lines))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("page", PAGES)
def test_columns_that_are_left_out_are_named(page, width):
    """A page of any width has the heading of every column, in its table or in a sentence below."""
    text = " ".join(render(page, width).split())
    for table in pages_of(PAGES[page])[page].tables:
        if table.is_shown and table.rows and table.text_rows != 0:
            words = {word for column in filter(whole, table.columns) for word in column.title.split()}
            assert {word for word in words if len(word) <= 16 and word not in text} == set()
