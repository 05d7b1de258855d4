"""Hostile text is text, wherever it stands in a report and however that is written."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import repeat
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from moetool.commands.options import OutputOptions
from moetool.commands.run import run_report
from moetool.progress import SilentProgress
from moetool.report.baseline import read_report
from moetool.report.formats import FORMATS, PRINTABLE, SUFFIXES, Page
from moetool.report.page import render_page
from moetool.report.report import Report
from moetool.report.values import cell_width, inert
from tests.report.checkers import CHECKERS, WIDE
from tests.report.command_reports import BUILDERS, PAGES, pages_of
from tests.report.generations import make_generation, make_weights
from tests.report.hostile import HOSTILE, cycle, hostile_names, with_texts
from tests.report.pages import Element, read_page
from tests.report.readers import markdown_tokens, read_github
from tests.report.sample_figures import make_figures
from tests.report.sample_report import make_report

XML = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
COLOR = re.compile(r"\x1b\[[\d;]*m")


def render(name: str, report: Report, width: int = 80, color: bool = False) -> str:
    return str(FORMATS[name].render(report, Page(width, color)))


def without_figures(report: Report) -> Report:
    return replace(report, figures=())


def harmless(text: str) -> str:
    """A word as long as the text; blank where it is blank."""
    return "x" * cell_width(inert(text)) if text.strip(" ") else text


def shape(name: str, page: str) -> object:
    """What a page is made of, without what is written on it."""
    if name == "html":
        return element_shape(read_page(page))
    if name == "markdown":
        return [(token.type, token.tag) for token in markdown_tokens(page) if token.type not in ("text", "inline")]
    if name == "junit":
        return [(one.tag, list(one.attrib), bool(one.text)) for one in ElementTree.fromstring(page.encode()).iter()]
    if name == "csv":
        return [(row[:3], row[4:]) for row in csv.reader(StringIO(page, newline=""), strict=True)]
    if name == "github":
        return [command for command, _, _ in read_github(page)]
    return None


def element_shape(element: Element) -> object:
    children = [element_shape(child) for child in element.children if isinstance(child, Element)]
    return element.tag, list(element.attributes), children


@pytest.fixture(scope="module")
def built() -> list[Report]:
    """As commands make them of hostile traces and models: the texts are in their findings, too."""
    named = [
        make(hostile_names(place)) for place, (command, make) in enumerate(BUILDERS.items()) if command != "models"
    ]
    return [report for pages in named for report in pages.values()]


@pytest.mark.parametrize("name", PRINTABLE)
def test_commands_with_hostile_models_traces_and_files(built, name):
    for report in built:
        page = render(name, without_figures(report), WIDE)
        look_at(name, page)
        if name != "text":
            CHECKERS[name](without_figures(report), page)


@pytest.mark.parametrize("name", PRINTABLE)
@pytest.mark.parametrize("page", PAGES)
def test_pages_full_of_hostile_texts_are_made_like_others(page, name):
    found = without_figures(pages_of(PAGES[page])[page])
    report = with_texts(found, cycle(list(PAGES).index(page) * 7))
    plain = with_texts(found, map(harmless, cycle(list(PAGES).index(page) * 7)))
    written = render(name, report)
    look_at(name, written)
    assert shape(name, written) == shape(name, render(name, plain))
    if name != "text":
        CHECKERS[name](report, written)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_report_in_which_everything_is_called_so(text):
    found = make_report()
    columns = found.summary_columns[4:7]
    summary = {column.key: found.summary[column.key] for column in columns}
    found = replace(found, figures=(), summary_columns=columns, summary=summary, tables=found.tables[1:])
    report, plain = (with_texts(found, repeat(each)) for each in (text, harmless(text)))
    for name in PRINTABLE:
        page = render(name, report)
        look_at(name, page)
        assert shape(name, page) == shape(name, render(name, plain))
        if name == "text":
            assert max(map(cell_len, page.splitlines())) <= 80
        else:
            CHECKERS[name](report, page)


def look_at(name: str, page: str) -> None:
    """What holds of every page of a format."""
    page.encode("utf-8")
    lines = page.split("\n")
    if name == "json":
        assert page.isascii()
        json.dumps(json.loads(page), ensure_ascii=False).encode("utf-8")
    elif name == "junit":
        assert XML.fullmatch(page)
    elif name == "html":
        root = read_page(page)
        assert (len(root.find("script")), len(root.find("img", "iframe", "object", "b"))) == (1, 0)
        assert all(line.replace("\xa0%", " %").isprintable() for line in lines)
    elif name == "markdown":
        tokens = markdown_tokens(page)
        ours = re.compile(r"<details><summary>[\d,]+ (rows|more numbers)</summary>\n?|</details>\n?")
        assert all(ours.fullmatch(token.content) for token in tokens if token.type.startswith("html"))
        assert not {token.type for token in tokens} & {"link_open", "image", "code_inline", "fence", "code_block"}
        assert all(line.isprintable() for line in lines)
    elif name in ("text", "csv", "github"):
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", [40, 100])
@pytest.mark.parametrize("page", PAGES)
def test_hostile_texts_keep_the_width_of_a_page(page, width):
    report = pages_of(PAGES[page])[page]
    report = with_texts(report, cycle(list(PAGES).index(page) * 7 + width))
    text = render("text", report, width)
    assert max(map(cell_len, text.splitlines())) <= width
    colored = render("text", report, width, color=True)
    assert [COLOR.sub("", line).rstrip() for line in colored.split("\n")] == text.split("\n")


def test_every_file_can_be_saved(tmp_path, capsys):
    report = with_texts(make_report(), cycle(3))
    report = replace(report, command="memory", figures=report.figures[:1])
    targets = [tmp_path / f"report{suffix}" for suffix in SUFFIXES]
    context = SimpleNamespace(info_name="memory", obj=lambda quiet: SilentProgress())
    run_report(context, OutputOptions(save=targets), report.summary_columns, lambda progress: report)
    assert capsys.readouterr().out == render("text", replace(report, checks=()))
    assert read_report(tmp_path / "report.json")["model"].keys() == report.model.keys()
    for target in targets:
        format = SUFFIXES[target.suffix]
        content = format.render(replace(report, checks=()), Page(160))
        if format.name in PRINTABLE:
            assert target.read_bytes().decode("utf-8") == content
        else:
            assert target.read_bytes() == content


def figures(shift: int) -> Iterator[Report]:
    report = make_report()
    points = replace(report.figures[2], kind="points", key="points")
    points = replace(points, panels=(replace(points.panels[0], x=("across", "up"), series=(("a", (1.0, 2.0)),) * 9),))
    for figure in (*report.figures, points, *make_figures(2, 12)[3:6:2]):
        yield with_texts(replace(report, figures=(figure,), tables=()), cycle(shift, 10_000))
        shift += 11


@pytest.mark.parametrize("shift", [0, 29])
def test_pictures(shift):
    """Warnings are errors: no name is taken for a formula, and no glyph is missing."""
    for report in figures(shift):
        drawn = FORMATS["svg"].render(report, Page())
        assert isinstance(drawn, bytes)
        root = ElementTree.fromstring(drawn)
        assert XML.fullmatch(drawn.decode("utf-8"))
        assert {one.tag.rpartition("}")[2] for one in root.iter()}.isdisjoint({"script", "a", "foreignObject"})


def test_the_page_of_a_generation():
    generation = make_generation(len(HOSTILE), 2, 4, 2, texts=HOSTILE, name=HOSTILE[0])
    model = {"name": HOSTILE[1], "revision": HOSTILE[2], "family": HOSTILE[3]}
    hostile = replace(generation, trace=replace(generation.trace, model={**generation.trace.model, **model}))
    page, plain = (
        render_page([one], make_weights(2), 0) for one in (hostile, replace(generation, texts=("x",) * len(HOSTILE)))
    )
    assert re.findall("<[a-z!/]+", page) == re.findall("<[a-z!/]+", plain)
    assert all(line.isprintable() for line in page.split("\n"))
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["runs"][0]["texts"] == ["\n".join(map(inert, text.split("\n"))) for text in HOSTILE]
