import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from moetool.report.formats import FORMATS, PRINTABLE, SUFFIXES, Page, format_of_file
from moetool.report.report import Column, Finding, Report, Table
from moetool.report.values import cell_width
from tests.report.sample_report import make_report


def render(name: str, report: Report | None = None, width: int = 80, color: bool = False) -> str:
    text = FORMATS[name].render(report or make_report(), Page(width, color))
    assert isinstance(text, str)
    return text


def one_table(columns: tuple[Column, ...], rows: list[dict], **settings) -> Report:
    tables = (Table("t", "Table", columns, tuple(rows), **settings),)
    return Report("memory", {"name": "m"}, {}, (), {}, tables=tables)


@pytest.mark.parametrize(
    ("name", "width", "file"),
    [
        ("text", 80, "report-80.txt"),
        ("text", 160, "report-160.txt"),
        ("json", 80, "report.json"),
        ("markdown", 80, "report.md"),
        ("csv", 80, "report.csv"),
        ("github", 80, "report-github.txt"),
        ("junit", 80, "report-junit.xml"),
    ],
)
def test_golden(golden, name, width, file):
    golden(file, render(name, width=width))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160, 250])
def test_text_stays_inside_its_width(width):
    assert max(map(cell_width, render("text", width=width).splitlines())) <= width


def test_json_has_the_same_shape_for_every_command():
    content = json.loads(render("json"))
    assert list(content) == [
        "schema", "model", "options", "summary", "tables", "findings", "checks", "environment",
    ]  # fmt: skip
    assert content["schema"] == "moetool.route-stats/1.0"
    assert list(content["tables"]) == ["layers", "specialists", "coactivation"]
    assert content["tables"]["layers"][0]["top1_probability"] == 0.123456
    assert content["tables"]["coactivation"] == []
    assert content["summary"]["z_loss"] is None
    assert list(json.loads(render("json", one_table((), [])))) == list(content)


def test_json_keeps_full_precision():
    report = replace(one_table((Column("x", "X"),), [{"x": 0.1 + 0.2}]))
    assert json.loads(render("json", report))["tables"]["t"][0]["x"] == 0.1 + 0.2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), [1]])
def test_a_value_that_json_cannot_hold_is_a_named_bug(value):
    with pytest.raises(ValueError, match="t row 0 x"):
        render("json", one_table((Column("x", "X"),), [{"x": value}]))


@pytest.mark.parametrize("row", [{}, {"x": 1, "y": 2}])
def test_rows_and_columns_must_agree(row):
    with pytest.raises(ValueError, match="differ"):
        one_table((Column("x", "X"),), [row]).verify()


def test_colors_only_where_wanted():
    assert "\x1b[" in render("text", color=True)
    assert "\x1b[" not in render("text")


def test_environment_does_not_change_the_text(monkeypatch):
    before = render("text")
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "33", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert render("text") == before


def test_numbers_are_never_cut():
    columns = tuple(Column(f"c{i}", f"Column {i}", "bytes") for i in range(30))
    text = render("text", one_table(columns, [{column.key: 2**40 + i for i, column in enumerate(columns)}]), width=50)
    assert "1.00 TiB" in text
    assert "…" not in text
    assert "too narrow for: Column" in text.replace("\n", " ")


def test_long_names_are_broken_behind_their_dots():
    columns = (Column("n", "Name", "text"), Column("c", "Count", "count"))
    name = "model.layers.11.block_sparse_moe.experts.0.w1.weight"
    text = render("text", one_table(columns, [{"n": name, "c": 10**9}]), width=40)
    lines = [line.split()[0] for line in text.splitlines()[5:8]]
    assert lines == ["model.layers.11.block_", "sparse_moe.experts.0.w1.", "weight"]


def test_sentences_are_no_longer_than_can_be_read():
    message = "word " * 100
    report = replace(one_table(NUMBERS, [{"n": 1}], note=message), findings=(Finding("info", "c", message),))
    lines = render("text", report, width=200).splitlines()
    assert 110 < max(map(len, lines)) <= 120


def test_numbers_are_on_the_right_where_all_that_are_shown_are_numbers():
    columns = (Column("k", "Key", "text"), Column("x", "Value"))
    rows = [{"k": "a", "x": 1}, {"k": "b", "x": 100}, {"k": "c", "x": "text"}]
    assert "a        1\nb      100\n" in render("text", one_table(columns, rows, text_rows=2))
    assert "a    1\nb    100\nc    text\n" in render("text", one_table(columns, rows))


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("abc", 3),
        ("e\u0301", 1),
        ("ก็", 1),
        ("नमस्ते", 4),
        ("中文", 4),
        ("\u2764\ufe0f", 2),
        ("1\ufe0f\u20e3", 2),
        ("", 0),
    ],
)
def test_widths_are_those_of_terminals(text, width):
    assert cell_width(text) == cell_len(text) == width


def test_a_lone_surrogate_is_no_character_of_json():
    report = Report("memory", {"name": "caf\udce9 \U0001f642 \\udce9"}, {}, (), {})
    text = render("json", report)
    assert json.loads(text)["model"]["name"] == "caf\\udce9 \U0001f642 \\udce9"
    assert text.isascii()


def test_long_text_is_wrapped_in_its_column():
    words = " ".join(f"word{i}" for i in range(40))
    text = render("text", one_table((Column("n", "N"), Column("t", "T", "text")), [{"n": 1, "t": words}]))
    assert all(f"word{i}" in text for i in range(40))


def test_rows_left_out_are_counted():
    report = one_table((Column("n", "N", "count"),), [{"n": i} for i in range(5000)], text_rows=2)
    assert "2 of 5,000 rows" in render("text", report)
    assert render("markdown", report).count("\n| ") >= 5000


def test_registry_knows_every_suffix():
    assert set(SUFFIXES) == {".txt", ".json", ".md", ".markdown", ".csv", ".html", ".xml", ".png", ".svg"}
    assert format_of_file(Path("A.JSON")) is FORMATS["json"]
    assert format_of_file(Path("a")) is None
    assert PRINTABLE == ("text", "json", "markdown", "csv", "html", "github", "junit")


def test_equal_layers_share_a_row_of_the_text():
    rows = [{"layer": i, "size": 1 + (i > 2)} for i in (0, 1, 2, 3, 4, 6)]
    columns = (Column("layer", "Layer"), Column("size", "Size", "count"))
    text = render("text", one_table(columns, rows, range_key="layer"))
    assert [line.split() for line in text.splitlines()[5:8]] == [["0-2", "1"], ["3-4", "2"], ["6", "2"]]
    assert "Table that are equal" in text
    assert render("markdown", one_table(columns, rows, range_key="layer")).count("\n| ") == 8


NUMBERS = (Column("n", "N", "count"),)


@pytest.mark.parametrize("name", ["text", "markdown"])
@pytest.mark.parametrize(
    ("rows", "settings", "shown"),
    [
        ([{"n": 1}], {}, True),
        ([], {}, True),
        ([{"n": 1}], {"for_scripts": True}, False),
        ([{"n": 1}], {"optional": True}, True),
        ([], {"optional": True}, False),
        ([{"n": 1}], {"optional": True, "for_scripts": True}, False),
    ],
)
def test_tables_for_scripts_and_tables_that_may_be_empty(name, rows, settings, shown):
    report = one_table(NUMBERS, rows, **settings)
    assert report.tables[0].is_shown is shown
    assert ("Table" in render(name, report)) is shown
    assert json.loads(render("json", report))["tables"] == {"t": rows}


@pytest.mark.parametrize("name", ["text", "markdown"])
def test_rows_of_unlike_quantities(name):
    columns = (
        Column("what", "What", "text"),
        Column("unit", "Unit", "text", detail=True),
        Column("x", "This", unit_from="unit"),
    )
    rows = [
        {"what": "size", "unit": "bytes", "x": 2**31},
        {"what": "work", "unit": "flops", "x": 25_759_850_496},
        {"what": "none", "unit": "share", "x": None},
    ]
    text = render(name, one_table(columns, rows))
    for what, value in (("size", "2.00 GiB"), ("work", "25.76 GFLOP"), ("none", "—")):
        (line,) = [line for line in text.splitlines() if what in line]
        assert value in line
    assert json.loads(render("json", one_table(columns, rows)))["tables"]["t"] == rows


def test_work_in_a_summary():
    columns = (Column("work", "Work", "flops", help="Of one token."),)
    report = Report("memory", {"name": "m"}, {}, columns, {"work": 25_759_850_496})
    assert "25.76 GFLOP" in render("text", report)
    assert "25.76 GFLOP" in render("markdown", report)
    assert json.loads(render("json", report))["summary"] == {"work": 25_759_850_496}


def test_a_percent_sign_stays_with_its_number():
    for words in range(60, 80):
        message = f"{'x' * words} 50 % and more"
        report = Report("memory", {"name": "m"}, {}, (), {}, findings=(Finding("info", "c", message),))
        assert "50 %" in render("text", report)


@pytest.mark.parametrize(("length", "gap"), [(40, "  "), (60, "\n")])
def test_details_that_do_not_fit_get_their_own_line(length, gap):
    name = "x" * length
    text = render("text", Report("memory", {"name": name, "family": "mixtral"}, {}, (), {}))
    assert text == f"moetool memory: {name}{gap}family mixtral\n"


@pytest.mark.parametrize("hostile", ["::add-mask::the", "  ::error::x", "##[error]x", "a ##[add-mask]b"])
def test_no_line_of_text_is_a_command_for_a_runner(hostile):
    rows = [{"name": hostile, "size": 1}, {"name": f"{'word ' * 20}{hostile}", "size": 2}]
    report = replace(one_table((Column("name", "Name", "text"), Column("size", "Size")), rows), model={"name": hostile})
    for width in (40, 80, 200):
        lines = render("text", report, width).splitlines()
        assert not [line for line in lines if line.lstrip().startswith("::") or "##[" in line]
        assert max(map(cell_width, lines)) <= width


def test_markdown_makes_no_links_of_addresses():
    """What GitHub takes for one would end behind the escapes, and show them."""
    report = one_table(
        (Column("name", "Name", "text"),), [{"name": "http://x.example)![i](x) www.x.example a@x.example"}]
    )
    assert r"| http:/\/x.example)!\[i\](x) www\.x.example a\@x.example |" in render("markdown", report)
