import csv
from dataclasses import replace
from io import StringIO

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.report.formats import FORMATS, Page
from moetool.report.report import Column, Report, Table
from tests.report.sample_report import make_report


def read(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(str(FORMATS["csv"].render(report, Page()))), strict=True))


def texts(*values: str) -> list[str]:
    rows = tuple({"x": value} for value in values)
    report = Report("memory", {}, {}, (), {}, tables=(Table("t", "T", (Column("x", "X", "text"),), rows),))
    return [line["value"] for line in read(report)]


def test_pandas_has_a_table_back(tmp_path):
    path = tmp_path / "report.csv"
    path.write_text(str(FORMATS["csv"].render(make_report(), Page())), encoding="utf-8")
    frame = pandas.read_csv(path, keep_default_na=False)
    assert list(frame.columns) == ["table", "row", "key", "value", "unit"]
    layers = frame[frame.table == "layers"].pivot(index="row", columns="key", values="value")
    assert layers["max_violation"].astype(float).tolist() == [0.31, 1.31, 2.31]
    assert layers["z_loss"].tolist() == ["13.5", "", "13.5"]


def test_rows_of_unlike_quantities_have_their_own_unit():
    columns = (Column("unit", "Unit", "text"), Column("x", "X", unit_from="unit"), Column("fits", "Fits", "text"))
    rows = ({"unit": "bytes", "x": 2**40, "fits": True}, {"unit": "nats", "x": 0.1 + 0.2, "fits": False})
    lines = read(Report("memory", {}, {}, (), {}, tables=(Table("t", "T", columns, rows),)))
    assert [(line["value"], line["unit"]) for line in lines] == [
        ("bytes", "text"), ("1099511627776", "bytes"), ("true", "text"),
        ("nats", "text"), ("0.30000000000000004", "nats"), ("false", "text"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+", "'+"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("'=1", "''=1"),
        ("' def'", "' def'"),
        ("plain", "plain"),
        ("1-1", "1-1"),
        ('say "x", y', 'say "x", y'),
        ("a\nb\x1b", "a\\nb\\x1b"),
        ("\t=1", "\\t=1"),
    ],
)
def test_text_that_a_spreadsheet_would_run(text, written):
    assert texts(text) == [written]


@given(st.text(alphabet="'=+-@ax"))
def test_the_apostrophe_can_be_taken_away_again(text):
    (written,) = texts(text)
    bare = written.lstrip("'")
    guarded = written.startswith("'") and bare[:1] in ("=", "+", "-", "@") and bool(bare)
    assert (written[1:] if guarded else written) == text


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_every_text_stays_on_its_line(values):
    report = replace(make_report(), model={"name": values[0]}, tables=())
    lines = str(FORMATS["csv"].render(report, Page())).split("\n")
    assert len(lines) == 1 + 1 + len(report.summary) + 3 * len(report.findings) + 5 * len(report.checks) + 1
