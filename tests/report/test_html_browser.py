"""The page of a report in a browser: quiet, and all of it within reach of pointer, keys, phone and paper."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import moetool.report
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Column, Report, Table
from tests.report.browser import PHONE, open_tab, start, tab_stops
from tests.report.pages import read_page
from tests.report.sample_report import make_report

COLUMNS = (
    Column("name", "Name", "text"),
    Column("size", "Size", "number"),
    Column("more", "More", "share", detail=True),
)
POLICY = re.compile(r"<meta http-equiv[^>]*>")

browser = pytest.fixture(start, scope="module")
tab = pytest.fixture(open_tab)


def render(report: Report) -> str:
    return str(FORMATS["html"].render(report, Page()))


@cache
def make_page() -> str:
    """250 rows, of which every fifth has no size; 0.1 and 0.2 look alike in their column."""
    rows = tuple(
        {"name": f"name {number}", "size": None if number % 5 == 0 else 1e6 + (number * 7 % 250) / 1e3, "more": 0.5}
        for number in range(250)
    )
    report = make_report()
    return render(replace(report, tables=(*report.tables, Table("many", "Many rows", COLUMNS, rows))))


@pytest.fixture
def many(tab):
    """The section of the long table."""
    return tab.open(make_page()).locator("#table-many")


def first_names(many, count=3):
    return many.locator("tbody:not([hidden]) tr th").all_inner_texts()[:count]


def rows_of(many):
    """Rows that are shown, and that wait."""
    return [many.locator(f"tbody{kind} tr").count() for kind in (":not([hidden])", "[hidden]")]


def status_of(many):
    return many.get_by_role("status").inner_text()


def test_nothing_is_noticed_and_nothing_repaired(tab):
    page = make_page()
    content = tab.open(page).content()
    read = read_page(content.replace("<!DOCTYPE html>", "<!doctype html>\n", 1))
    assert read.find("caption")[-1].text == "Many rows: 250 rows"
    # The script adds paragraphs, labels and buttons; of the rest a browser must read what was written.
    tags = ("section", "h1", "h2", "table", "caption", "th", "td", "tr", "li", "dl", "dd", "figure", "svg", "path")
    assert [one.tag for one in read.find(*tags)] == [one.tag for one in read_page(page).find(*tags)]


def test_what_would_be_noticed(tab):
    picture = "http://example.invalid/x.png"
    page = make_page().replace("</body>", f'<script>throw 1</script><img src="{picture}"></body>')
    tab.open(page)
    script, image, request = sorted(tab.noticed)
    assert ("script-src" in script, "img-src" in image, request) == (True, True, f"request: {picture}")
    tab.noticed.clear()
    tab.open(POLICY.sub("", page))
    assert {f"request: {picture}", "error: 1"} <= set(tab.noticed)
    tab.page.goto("about:blank")
    tab.noticed.clear()


def test_a_heading_sorts(many):
    name, size = (many.locator("thead th", has_text=text) for text in ("Name", "Size"))
    assert rows_of(many) == [100, 150]
    assert first_names(many) == ["name 0", "name 1", "name 2"]
    sizes = {number: number * 7 % 250 for number in range(250) if number % 5}
    ascending = [f"name {number}" for number in sorted(sizes, key=sizes.__getitem__)]
    for names, order in ((ascending, "ascending"), (ascending[::-1], "descending")):
        size.get_by_role("button").click()
        assert first_names(many) == names[:3]
        assert [one.get_attribute("aria-sort") for one in (name, size)] == [None, order]
    name.get_by_role("button").focus()
    many.page.keyboard.press("Enter")
    assert first_names(many) == ["name 0", "name 1", "name 2"]
    assert [one.get_attribute("aria-sort") for one in (name, size)] == ["ascending", None]


def test_yes_and_no_are_sorted_too(tab):
    rows = tuple({"name": f"n{number}", "apart": value} for number, value in enumerate((None, True, False, True)))
    table = Table("many", "Many", (COLUMNS[0], Column("apart", "Apart")), rows)
    section = tab.open(render(replace(make_report(), tables=(table,)))).locator("#table-many")
    apart = section.get_by_role("button", name="Apart")
    for names in (["n2", "n1", "n3", "n0"], ["n1", "n3", "n2", "n0"]):
        apart.click()
        assert first_names(section, 4) == names


def test_a_filter_and_the_rows_that_wait(many):
    assert status_of(many) == "100 of 250 rows"
    many.get_by_label("Filter").press_sequentially("NAME 24")
    assert rows_of(many) == [11, 239]
    assert status_of(many) == "11 of 11 rows"
    assert first_names(many) == ["name 24", "name 240", "name 241"]
    many.get_by_label("Filter").press("Escape")
    assert rows_of(many) == [100, 150]
    many.get_by_role("button", name="Show all 250 rows").press("Enter")
    assert rows_of(many) == [250, 0]
    assert status_of(many) == ""


def test_more_columns_and_exact_values(many):
    cells = many.locator("tbody tr").nth(1).locator("td")
    assert not cells.nth(1).is_visible()
    many.get_by_label("1 more column").press("Space")
    assert cells.nth(1).is_visible()
    parameters = many.page.locator("#summary dd", has_text="46.70 B")
    for _ in range(2):
        assert cells.all_inner_texts() == ["1,000,000", "50.0 %"]
        assert parameters.count() == 1
        many.page.get_by_label("exact values").press("Space")
        assert cells.all_inner_texts() == ["1000000.007", "0.5"]
        assert parameters.count() == 0
        # The rounded values are alike: what sorts is the exact one.
        many.get_by_role("button", name="Size").click()
        assert first_names(many, 1) == ["name 143"]
        many.get_by_role("button", name="Name").click()
        many.page.get_by_label("exact values").press("Space")


def test_colours(tab):
    page = tab.open(make_page())
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 28)"
    assert page.evaluate(background) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == dark
    page.get_by_label("system").press("ArrowRight")
    assert page.evaluate(background) == light
    page.emulate_media(color_scheme="light")
    page.get_by_label("light").press("ArrowRight")
    assert page.evaluate(background) == dark


def test_the_tabulator_reaches_everything(tab):
    page = tab.open(make_page())
    stops = tab_stops(page)
    assert stops[:4] == ["a Skip to the report", "input system", "input exact values", "a Checks"]
    interactive = page.locator("a, button, summary, input:not([type=radio]), [tabindex='0']")
    # Of radio buttons the tabulator reaches one, and from there arrows the others.
    assert len(stops) == sum(one.is_visible() for one in interactive.all()) + 1
    assert "div Load of every expert" in stops
    assert stops[-7:] == [
        "input 1 more column", "input Filter", "button Show all 250 rows", "div Many rows",
        "button Name", "button Size", "summary What the columns mean",
    ]  # fmt: skip


def test_the_first_key_skips_to_the_report(tab):
    page = tab.open(make_page())
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_paper_has_everything_but_controls(many):
    page = many.page
    page.get_by_label("dark").check()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for kind in ("a.skip", "nav", "input", "button:not(th button)"):
        assert page.locator(f"{kind} >> visible=true").count() == 0
    assert many.locator("tr >> visible=true").count() == 251
    assert many.locator("dt >> visible=true").all_inner_texts() == ["Name name", "Size size", "More more"]
    assert page.get_by_text("balance_loss", exact=True).first.is_visible()
    page.emulate_media(media="screen")
    assert many.locator("dt >> visible=true").count() == 0
    many.get_by_label("Filter").fill("NAME 24")
    page.emulate_media(media="print")
    assert many.locator("tr >> visible=true").count() == 12


def test_a_phone_scrolls_wide_tables_in_their_own_box(tab):
    page = tab.open(make_page())
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = page.get_by_role("group", name="MoE layers")
    assert box.evaluate("one => one.scrollWidth > one.clientWidth")
    box.press("ArrowRight")
    box.evaluate("one => new Promise((done) => { if (one.scrollLeft) done(); one.onscroll = done; })")


@pytest.mark.parametrize("file", ["formats/html.css", "page/page.css"])
def test_the_browser_knows_every_style(tab, file):
    style = (Path(moetool.report.__file__).parent / file).read_text(encoding="utf-8")
    rules = re.findall(r"([^{};]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", style))
    selectors = [one.strip() for names, _ in rules for one in names.split(",") if one.strip() != "@page"]
    declarations = [one.strip() for _, body in rules for one in body.split(";") if one.strip()]
    assert min(len(selectors), len(declarations)) > 50
    page = tab.open(make_page())
    asked = [*(f"selector({one})" for one in selectors), *(f"({one})" for one in declarations), "(color: rgd(0))"]
    assert page.evaluate("all => all.filter((one) => !CSS.supports(one))", asked) == ["(color: rgd(0))"]
