import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.report.report import Column, Table
from moetool.report.values import cell_width, heading, inert, is_numeric, shorten, write_column, write_value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (46_702_792_704, "parameters", "46.70 B"),
        (999_996_000, "parameters", "1.00 B"),
        (995_000_000, "parameters", "995.00 M"),
        (512, "parameters", "512"),
        (93_405_585_408, "bytes", "86.99 GiB"),
        (2**20 - 1, "bytes", "1.00 MiB"),
        (0, "bytes", "0 B"),
        (-(2**31), "bytes", "-2.00 GiB"),
        (0, "flops", "0 FLOP"),
        (999, "flops", "999 FLOP"),
        (1000, "flops", "1.00 kFLOP"),
        (999_996, "flops", "1.00 MFLOP"),
        (25_759_850_496, "flops", "25.76 GFLOP"),
        (3.3e24, "flops", "3,300,000.00 EFLOP"),
        (-2_000_000_000_000, "flops", "-2.00 TFLOP"),
        (None, "flops", "—"),
        (0.1234, "share", "12.3 %"),
        (1.0, "share", "100 %"),
        (0.0, "share", "0 %"),
        (0.9996, "share", "99.96 %"),
        (1.0004, "share", "100 %"),
        (1 - 1e-9, "ratio", "1.000000"),
        (0.99997, "ratio", "0.99997"),
        (1e308, "share", "1.0e+308"),
        (0.000012, "share", "0.00120 %"),
        (1e-12, "share", "<0.001 %"),
        (-1e-12, "share", ">-0.001 %"),
        (123456, "count", "123,456"),
        (2.0143, "nats", "2.014 nats"),
        (1e-9, "number", "<0.000001"),
        (0.05, "number", "0.05000"),
        (None, "bytes", "—"),
        (True, "number", "yes"),
        ("a\x1b[0m", "text", "a\\x1b[0m"),
    ],
)
def test_values_by_hand(value, unit, text):
    assert write_value(value, unit) == text


def test_a_column_has_one_number_of_decimals():
    column = Column("x", "X", "share")
    table = Table("t", "T", (column,), ({"x": 0.5}, {"x": 0.0123}, {"x": None}, {"x": 0.0}))
    assert write_column(table, column) == ["50.0 %", "1.2 %", "—", "0 %"]


def test_nearly_all_is_not_written_as_all():
    column = Column("x", "X", "ratio")
    table = Table("t", "T", (column,), tuple({"x": x} for x in (1.0, 0.9997, 0.9712, 0.99998)))
    assert write_column(table, column) == ["1.000", "0.9997", "0.971", "0.99998"]


@pytest.mark.parametrize("width", [-1, 0, 1])
def test_where_there_is_no_room_there_is_no_text(width):
    assert shorten("a name", width) == ("…" if width == 1 else "")


def test_small_values_of_a_column_are_readable():
    """One digit where the column's decimals would show none, and a bound where one digit would be too small."""
    column = Column("x", "X", "share")
    table = Table("t", "T", (column,), tuple({"x": x} for x in (0.9, 3.14e-4, 9.7e-5, 9.99e-4, 1.3e-6)))
    assert write_column(table, column) == ["90.0 %", "0.03 %", "0.01 %", "0.1 %", "<0.001 %"]
    counts = Table("t", "T", (Column("x", "X"),), ({"x": 12345.0}, {"x": 0.3}))
    assert write_column(counts, counts.columns[0]) == ["12,345", "0.3"]


UNLIKE = (Column("unit", "Unit", "text"), Column("x", "X", unit_from="unit"))


def test_a_column_of_unlike_quantities_takes_the_unit_of_each_row():
    rows = [("bytes", 2**30), ("flops", 2.5e9), ("parameters", 12_879_925_248), ("share", 0.25), ("count", 4096)]
    table = Table("t", "T", UNLIKE, tuple({"unit": unit, "x": x} for unit, x in [*rows, ("bytes", None)]))
    expected = ["1.00 GiB", "2.50 GFLOP", "12.88 B", "25.0 %", "4,096", "—"]
    assert write_column(table, UNLIKE[1]) == expected
    assert write_column(table, UNLIKE[1], 2) == expected[:2]
    assert is_numeric(table, UNLIKE[1])
    assert heading(UNLIKE[1]) == "X"


def test_units_of_rows_are_written_where_the_heading_names_none():
    table = Table("t", "T", UNLIKE, ({"unit": "nats", "x": 2.0143}, {"unit": "seconds", "x": 3}))
    assert write_column(table, UNLIKE[1]) == ["2.014 nats", "3 s"]


@given(st.one_of(st.integers(-(10**20), 10**20), st.floats(-1e300, 1e300)))
def test_every_number_can_be_written(value):
    for unit in ("count", "parameters", "bytes", "flops", "share", "nats", "number"):
        assert write_value(value, unit).isprintable()


@given(st.text())
def test_inert_text_is_printable_and_inert(text):
    assert inert(text).isprintable()
    assert inert(inert(text)) == inert(text)


@given(st.text(), st.integers(3, 30))
def test_shortened_text_fits(text, width):
    assert cell_width(shorten(text, width)) <= width
