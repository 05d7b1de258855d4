"""The page as markup: whole, inert, accessible, and with the numbers of the other formats."""

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.report.formats import FORMATS, Page
from moetool.report.report import Check, Column, Finding, Report, Table
from moetool.report.values import inert, write_column
from tests.report.pages import Element, read_page
from tests.report.sample_report import make_report

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "&lt;b&gt; & <!-- -->",
    "\u202e desrever \u2066",
    "\x1b[31mred\x00\x07",
)


def render(report: Report) -> str:
    return str(FORMATS["html"].render(report, Page()))


@pytest.fixture(scope="module")
def page() -> str:
    return render(make_report())


@pytest.fixture(scope="module")
def root(page) -> Element:
    return read_page(page)


def plain(report: Report | None = None) -> Report:
    return replace(report or make_report(), figures=())


def named(text: str) -> Report:
    """A report in which everything is called so."""
    column = Column("x", text, "text", help=text)
    table = Table("t", text, (column, replace(column, key="y", detail=True)), ({"x": text, "y": text},), text)
    return Report(
        "memory", {"name": text, "family": text}, {"seed": text}, (replace(column, help=text),), {"x": text}, (table,),
        (Finding("error", "c", text),), (Check(text, "x", text, True, text),), (), {text: text},
    )  # fmt: skip


def test_golden(golden):
    golden("report.html", render(plain()))


def test_the_same_report_gives_the_same_bytes(page):
    assert render(make_report()) == page


def test_nothing_is_loaded_from_anywhere(root):
    for element in root.find("img", "iframe", "object", "embed", "base", "form", "audio", "video", "source"):
        raise AssertionError(f"a {element.tag}")
    (icon,) = root.find("link")
    assert icon.attributes == {"rel": "icon", "href": "data:,"}
    for element in [each for each in root.find(*{each.tag for each in every(root)}) if each is not icon]:
        for name in ("href", "xlink:href", "src"):
            target = element.attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in "".join(style.text for style in root.find("style"))


def every(element: Element) -> list[Element]:
    below = [child for child in element.children if isinstance(child, Element)]
    return below + [each for child in below for each in every(child)]


def test_the_policy_allows_this_script_and_no_other(root):
    (script,) = root.find("script")
    (policy,) = [meta["content"] for meta in root.find("meta") if "http-equiv" in meta.attributes]
    fingerprint = b64encode(sha256(script.text.encode("utf-8")).digest()).decode("ascii")
    assert policy.split("; ") == [
        "default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{fingerprint}'", "img-src data:",
        "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip


def test_every_link_leads_somewhere_and_identifiers_are_unique(root):
    identifiers = [element["id"] for element in every(root) if "id" in element.attributes]
    assert len(identifiers) == len(set(identifiers))
    for element in every(root):
        targets = [
            element.attributes.get(name) or "" for name in ("href", "xlink:href", "aria-labelledby", "clip-path")
        ]
        for target in (targets[0], targets[1], f"#{targets[2]}" * bool(targets[2]), targets[3]):
            match = re.fullmatch(r"(?:url\()?#([^)]+)\)?", target)
            assert match is None or match[1] in identifiers


def test_the_page_can_be_read_by_ear(root):
    (html,) = root.find("html")
    assert html["lang"] == "en"
    assert [len(root.find(tag)) for tag in ("main", "nav", "header", "h1")] == [1, 1, 1, 1]
    assert [element.tag for element in root.find("h1", "h2")] == ["h1", *["h2"] * len(root.find("section"))]
    (skip,) = [link for link in root.find("a") if link.attributes.get("class") == "skip"]
    assert skip["href"] == f"#{root.find('main')[0]['id']}"
    for section in root.find("section"):
        assert section["aria-labelledby"] == section.find("h2")[0]["id"]
    for table in root.find("table"):
        assert all(name.text for name in table.find("caption", "th"))
        assert {heading["scope"] for heading in table.find("thead")[0].find("th")} == {"col"}
        for row in (row for body in table.find("tbody") for row in body.find("tr")):
            assert [cell["scope"] for cell in row.find("th")] == ["row"]
    for field in root.find("input"):
        assert any(field in label.find("input") and label.text.strip() for label in root.find("label"))


def test_figures_are_pictures_with_a_sentence(root):
    report = make_report()
    figures = root.find("figure")
    assert len(figures) == len(report.figures)
    for element, figure in zip(figures, report.figures, strict=True):
        (picture,) = element.find("svg")
        assert picture["role"] == "img"
        assert picture["aria-label"] == f"{figure.title}. {figure.alt}"
        assert "width" not in picture.attributes
        assert picture["viewbox"].startswith("0 0 720 ")
        assert element.find("figcaption")[0].text == figure.alt
        assert not element.find("style", "metadata", "script")


def test_checks_come_first_and_the_worst_of_the_findings():
    report = plain(replace(make_report(), findings=(*make_report().findings, Finding("error", "e", "Bad."))))
    root = read_page(render(report))
    assert [section["id"] for section in root.find("section")][:3] == ["checks", "findings", "summary"]
    lines = root.find("section")[1].find("li")
    assert [line.find("strong")[0].text for line in lines] == ["error", "warning", "info"]
    failed, passed = report.checks
    told = [line.text.replace("\xa0%", " %") for line in root.find("section")[0].find("li")]
    assert told == [f"failed {failed.sentence}", f"passed {passed.sentence}"]


def test_tables_have_the_numbers_of_the_other_formats(root):
    for table in make_report().tables:
        (section,) = [section for section in root.find("section") if section["id"] == f"table-{table.key}"]
        rows = [row.find("th", "td") for body in section.find("tbody") for row in body.find("tr")]
        for place, column in enumerate(table.columns):
            cells = [row[place] for row in rows]
            assert [cell.text for cell in cells] == write_column(table, column)
            for cell, row in zip(cells, table.rows, strict=True):
                value = row[column.key]
                if isinstance(value, int | float):
                    assert type(value)(cell.attributes.get("title") or cell.text) == value
        terms = [term.find("code")[0].text for term in section.find("dl")[0].find("dt")]
        assert terms == [column.key for column in table.columns]


def test_the_summary_has_every_number_with_its_meaning(root):
    (section,) = [section for section in root.find("section") if section["id"] == "summary"]
    shown = {item.find("code")[0].text: item.find("dd") for item in section.find("div") if item.find("dt")}
    assert [value.text for value in shown["sparsity"]] == ["27.6 %", "Active over all parameters."]
    assert shown["total_bytes"][0]["title"] == "93405585408"
    assert shown["z_loss"][0].text == "—"
    details = [[cell.text for cell in row.find("th", "td")] for row in section.find("details")[0].find("tr")[1:]]
    assert details == [["Balance loss", "balance_loss", "1.020", ""]]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text):
    root = read_page(render(named(text)))
    assert len(root.find("script")) == 1
    assert not root.find("img", "b")
    allowed = {"onmouseover", "onerror"}
    assert not [element for element in every(root) if allowed & set(element.attributes)]
    shown = inert(text)
    assert root.find("h1")[0].text == f"moetool memory: {shown}"
    assert root.find("h2")[0].text == "Checks"
    assert root.find("tbody")[0].find("th")[0].text == shown
    assert root.find("thead")[0].find("th")[0]["title"] == shown
    failed, error = (line.text for line in root.find("li")[-2:])
    assert (failed, error) == (f"failed {inert(named(text).checks[0].sentence)}", f"error {shown}")


def test_a_very_long_name_is_shortened_and_kept_as_title():
    name = "x" * 5000 + "y" * 5000
    root = read_page(render(named(name)))
    assert len(root.find("title")[0].text) == 120
    cell = root.find("tbody")[0].find("th")[0]
    assert len(cell.text) == 120
    assert cell.find("span")[0]["title"] == name
    assert max(len(element.text) for element in root.find("h1", "h2", "li", "td", "th", "dd", "dt")) <= 1100


@given(st.text())
def test_any_text_makes_a_page(text):
    read_page(render(named(text)))


def test_rows_after_the_first_wait_for_the_script():
    rows = tuple({"n": number} for number in range(6144))
    table = Table("t", "T", (Column("n", "N", "count"),), rows)
    root = read_page(render(Report("memory", {"name": "m"}, {}, (), {}, tables=(table,))))
    first, waiting = root.find("tbody")
    assert (len(first.find("tr")), len(waiting.find("tr"))) == (100, 6044)
    assert "hidden" in waiting.attributes
    assert root.find("caption")[0].text == "T: 6,144 rows"
    assert "tbody[hidden]" in root.find("noscript")[0].text


def test_a_column_without_a_title_goes_by_its_key():
    table = Table("t", "T", (Column("side", "", "text", help="A or B."),), ({"side": "A"},))
    root = read_page(render(Report("memory", {"name": "m"}, {}, (), {}, tables=(table,))))
    assert root.find("thead")[0].find("th")[0].text == "side"
    assert root.find("dt")[0].text == "side side"


def test_tables_for_scripts_and_empty_ones_are_left_out():
    columns = (Column("n", "N"),)
    tables = (Table("a", "A", columns, (), optional=True), Table("b", "B", columns, ({"n": 1},), for_scripts=True))
    root = read_page(render(Report("memory", {"name": "m"}, {}, (), {}, tables=tables)))
    assert [section["id"] for section in root.find("section")] == []
