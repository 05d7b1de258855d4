"""The pages of every command held against the rules of axe: WCAG 2.2 A and AA, and best practices."""

from dataclasses import replace
from itertools import chain

import pytest

from moetool.report.formats import FORMATS, Page
from moetool.report.page import render_page
from moetool.report.report import Report
from tests.report.browser import PHONE, open_tab, start
from tests.report.command_reports import REPORTS
from tests.report.generations import HOSTILE, make_generation, make_weights

RULES = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
CONTRAST = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
"""All that depends on colours."""
BLANK = '<!doctype html><html lang="en"><title>T</title><main><h1>T</h1>{}</main>'

browser = pytest.fixture(start, scope="module")
tab = pytest.fixture(open_tab)


def broken_rules(page, rules=RULES):
    """Rules that the page breaks, each with the markup of the places."""
    library = pytest.importorskip("axe_playwright_python.base", reason="no axe: pip install '.[test]'")
    if not page.evaluate("'axe' in window"):
        page.evaluate(library.AXE_SCRIPT)
    found = "found.violations.map((one) => [one.id, one.nodes.map((node) => node.html)])"
    options = {"resultTypes": ["violations"], "runOnly": rules}
    return dict(page.evaluate(f"(options) => axe.run(options).then((found) => {found})", options))


def assert_accessible(page):
    assert broken_rules(page) == {}
    page.emulate_media(color_scheme="dark")
    assert broken_rules(page, CONTRAST) == {}
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def render(report: Report) -> str:
    """The page with one figure, and in one table enough rows for a filter: all others are like them and cost time."""
    *tables, last = report.tables
    cut = (*(replace(table, rows=table.rows[:2]) for table in tables), replace(last, rows=last.rows[:12]))
    return str(FORMATS["html"].render(replace(report, tables=cut, figures=report.figures[:1]), Page()))


@pytest.mark.parametrize("command", REPORTS)
def test_reports(tab, command):
    for report in REPORTS[command]():
        page = tab.open(render(report))
        page.emulate_media(color_scheme="light")
        page.locator("summary").last.click()
        assert_accessible(page)


@pytest.mark.parametrize("names", [["prompt"], ["prompt", "against"]])
def test_generations(tab, names):
    runs = [make_generation(24, 3, 8, 2, texts=HOSTILE[:-1], name=name, seed=place) for place, name in enumerate(names)]
    page = tab.open(render_page(runs, make_weights(3), 1))
    page.keyboard.press("End")  # all tokens are in colour
    assert_accessible(page)


def test_what_would_be_noticed(tab):
    picture = '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">'
    assert list(broken_rules(tab.open(BLANK.format(picture)))) == ["image-alt"]
    style = "<style>@media (prefers-color-scheme: dark) { p { color: #999; } }</style><p>Too light for paper.</p>"
    page = tab.open(BLANK.format(style))
    assert broken_rules(page) == {}
    page.emulate_media(color_scheme="dark")
    assert list(chain(broken_rules(page), broken_rules(page, CONTRAST))) == ["color-contrast"] * 2
