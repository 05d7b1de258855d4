"""How one value is written for people: enters with its unit, leaves as text that no terminal or page can misread."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import cast

from moetool.report.report import Column, Report, Table, Unit, Value

MISSING = "—"
_AS_EMOJI = "\ufe0f"
"""Widens the symbol before it, which mostly is a narrow one: ``❤️`` takes two cells."""
_LEAST = {"share": 0.001}
"""In percent: smaller shares are not written out where they would need more digits than their column."""
_LEAST_NUMBER = 1e-6
_WHOLE: dict[Unit, float] = {"ratio": 1.0, "share": 100.0}
"""Nearly all is not written as all: 0.9997 agree, not 1.000."""
_MOST_DECIMALS = 6
_NAMED_UNITS: dict[Unit, str] = {"nats": "nats", "bits": "bits", "seconds": "s"}


def inert(text: str) -> str:
    """The text with everything that could steer a terminal (escapes, line breaks, bidi marks) spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cell_width(text: str) -> int:
    """Terminal cells that the text takes: two for wide characters, none for marks that join the character before."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.category(character).startswith("M"):
        return character == _AS_EMOJI
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(text: str, width: int) -> str:
    """Inert text in at most ``width`` cells; a long one loses its middle, since names often differ at the end."""
    text = inert(text)
    if width < 1:
        return ""
    if cell_width(text) <= width:
        return text
    half = min(len(text) // 2, width)
    head, tail = text[:half], text[-half:]
    head_width, tail_width = cell_width(head), cell_width(tail)
    while head_width + tail_width > width - 1:
        if head_width > tail_width:
            head_width, head = head_width - cell_width(head[-1]), head[:-1]
        else:
            tail_width, tail = tail_width - cell_width(tail[0]), tail[1:]
    return f"{head}…{tail}"


def number_of(value: Value) -> float | None:
    """The number that a cell holds, if it holds one."""
    return float(value) if isinstance(value, int | float) else None


def as_number(value: Value) -> float:
    """A number to sort or compute with: undefined counts as 0."""
    return number_of(value) or 0.0


def write_percent(value: Value) -> str:
    """``61 %``, with the digits that a small share needs, for sentences."""
    percent = 100 * as_number(value)
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def write_value(value: Value, unit: Unit, decimals: int | None = None, named: bool = True) -> str:
    """One value in human units: ``46.70 B``, ``86.99 GiB``, ``12.3 %``, ``2.01 nats``.

    ``decimals`` fixes the digits after the point, so that a column lines up; ``named=False`` leaves out the name of
    a unit that the column's heading gives.
    """
    if value is None:
        return MISSING
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "bytes":
        return _scaled(value, 1024, ("KiB", "MiB", "GiB", "TiB", "PiB"), " B")
    if unit == "parameters":
        return _scaled(value, 1000, ("k", "M", "B", "T"), "")
    if unit == "flops":
        return _scaled(value, 1000, ("kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"), " FLOP")
    if unit == "share" and math.isfinite(value * 100):
        return f"{_number(value * 100, unit, decimals)} %"
    text = f"{value:,}" if unit == "count" and isinstance(value, int) else _number(value, unit, decimals)
    return f"{text} {_NAMED_UNITS[unit]}" if named and unit in _NAMED_UNITS else text


def heading(column: Column) -> str:
    """A column's title with the unit that its cells leave out."""
    title = inert(column.title)
    return f"{title} ({_NAMED_UNITS[column.unit]})" if column.unit in _NAMED_UNITS else title


def write_column(table: Table, column: Column, rows: int | None = None) -> list[str]:
    """The cells of one column (of the first ``rows`` rows), with the same number of decimals in each."""
    values = [row[column.key] for row in table.rows[:rows]]
    if column.unit_from:
        units = [cast(Unit, row[column.unit_from]) for row in table.rows[:rows]]
        return [write_value(value, unit) for value, unit in zip(values, units, strict=True)]
    decimals = _shared_decimals(values, column.unit)
    return [write_value(value, column.unit, decimals, named=False) for value in values]


def is_numeric(table: Table, column: Column) -> bool:
    """Whether a column holds numbers, which are aligned on the right."""
    return column.unit != "text" and not any(isinstance(row[column.key], str) for row in table.rows)


def write_title(report: Report) -> tuple[str, str]:
    """What the report is about, and the details of its model."""
    details = ", ".join(f"{key} {report.model[key]}" for key in ("family", "revision") if report.model.get(key))
    return inert(f"moetool {report.command}: {report.model.get('name')}"), inert(details)


def write_footer(report: Report) -> list[str]:
    """The options that were set and the versions that ran: ``Options: seed 0, text a.txt b.txt``."""
    parts: tuple[tuple[str, Mapping[str, Value | Sequence[Value]]], ...] = (
        ("Options", report.options),
        ("Made with", report.environment),
    )
    lines = []
    for title, values in parts:
        words = [f"{inert(key)} {_write_plain(value)}" for key, value in values.items() if value not in (None, [], ())]
        lines += [f"{title}: {', '.join(words)}"] * bool(words)
    return lines


def _write_plain(value: Value | Sequence[Value]) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | int | None):
        return write_value(value, "number")
    return " ".join(_write_plain(item) for item in value)


def _scaled(value: float, base: int, names: Sequence[str], unscaled: str) -> str:
    if abs(value) < base:
        return _number(value, "number", None) + unscaled
    size = value / base
    for name in names:
        # The scale is chosen after rounding: 999,996,000 is 1.00 B and not 1000.00 M.
        if round(abs(size), 2) < base or name == names[-1]:
            break
        size /= base
    return f"{size:,.2f} {name}"


def _shared_decimals(values: Sequence[Value], unit: Unit) -> int | None:
    """Decimals that show enough digits of the largest value."""
    sizes = [abs(value) for value in values if isinstance(value, float) and value]
    if not sizes:
        return None
    return _decimals(max(sizes) * (100 if unit == "share" else 1), unit)


def _decimals(size: float, unit: Unit) -> int:
    digits = 3 if unit == "share" else 4
    return min(max(digits - 1 - math.floor(math.log10(size)), 0), _MOST_DECIMALS)


def _number(value: float, unit: Unit, decimals: int | None) -> str:
    if isinstance(value, int) or value == 0:
        return str(int(value))
    decimals = _decimals(abs(value), unit) if decimals is None else decimals
    if abs(value) >= 1e15:
        return f"{value:.1e}"
    whole = _WHOLE.get(unit)
    while whole is not None and value < whole == round(value, decimals) and decimals < _MOST_DECIMALS:
        decimals += 1
    return f"{value:,.{decimals}f}" if round(value, decimals) else _small(value, unit)


def _small(value: float, unit: Unit) -> str:
    """A value that its column's decimals would write as 0: one digit of it (``0.03``), or a bound (``<0.001``)."""
    least = _LEAST.get(unit, _LEAST_NUMBER)
    size = abs(value)
    if size < least:
        return f"{'<' if value > 0 else '>-'}{least:.{_places(least)}f}"
    text = f"{value:.{_places(size)}f}"
    # 0.0097 is written 0.01, not 0.010.
    return text.rstrip("0") if size < 1 else text


def _places(size: float) -> int:
    """Decimals that show the first digit of a size below 1."""
    return max(-math.floor(math.log10(size)), 0)
