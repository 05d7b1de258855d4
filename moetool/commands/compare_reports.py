"""``compare`` of two JSON reports of one command: their files enter, a Report of every difference leaves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from moetool.commands.compare import Row, assemble, source_rows
from moetool.commands.compare_figures import draw_differences
from moetool.commands.compare_findings import report_findings
from moetool.errors import MoetoolError
from moetool.report.baseline import command_of, is_finite, read_report
from moetool.report.report import Report, Unit, Value
from moetool.report.schemas import Schema, columns_of, read_schema
from moetool.report.values import number_of

KEY_COLUMNS = (
    "layer", "next_layer", "expert", "next_expert", "other", "domain", "token_class", "token_id", "task", "lag",
    "quantity",
)  # fmt: skip
"""What names the rows of tables; where that is not enough, or a table has none of it, its first columns do too."""
TOKEN_COLUMNS = ("prompt", "index", "layer")
"""What names the rows of tables of tokens: which expert has one is what may differ."""
ROW = "(row)"
"""Stands for a column where one of the reports lacks the row."""
_IDS = ("layer", "expert", "id", "seed")
"""Names that end so are of one thing among several, whose number is no quantity."""
_UNITS: tuple[Unit, ...] = ("share", "bytes", "parameters", "flops", "bits", "nats")
"""Words by which a name tells its unit, where the command does not."""
FROM_ZERO, UNDEFINED, CHANGED, OTHER, ONE_ONLY, SAME = range(6)
"""How two values differ, in the order of rows: two of these are larger than any relative difference; OTHER are ids and
text, and ONE_ONLY what one of the reports does not have."""
_NAMED_KINDS = {"from_zero": FROM_ZERO, "undefined_in_one": UNDEFINED, "keys_of_one": ONE_ONLY}


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of a table, and how its two values differ."""

    row: Row
    kind: int

    @property
    def order(self) -> tuple[int, float]:
        """What differs most comes first."""
        return self.kind, -abs(number_of(self.row["relative_difference"]) or 0.0)


def build_report(first: Path, second: Path, options: Mapping[str, object]) -> Report:
    """Compare every number of two reports.

    Raises MoetoolError for a file that is no report, and for reports of different commands.
    """
    reports = read_report(first), read_report(second)
    commands = [command_of(report) for report in reports]
    if commands[0] != commands[1]:
        raise MoetoolError(
            f"{first} is a report of {commands[0]} and {second} of {commands[1]}", "compare reports of one command"
        )
    described = _described(commands[0])
    values = sorted(_value_rows(*reports, described=described["summary"]), key=lambda one: one.order)
    cells, counted = _cell_rows(reports[0]["tables"], reports[1]["tables"], described)
    cells.sort(key=lambda one: one.order)
    rows = {"values": [one.row for one in values], "cells": [one.row for one in cells]}
    summary = _summary(values, cells, counted)
    kinds = {code: [one.row for one in values if one.kind == kind] for code, kind in _NAMED_KINDS.items()}
    models, settings = [report["model"] for report in reports], [_settings(report) for report in reports]
    report = assemble(
        "reports",
        models,
        {"command": commands[0], **options},
        summary,
        {"sources": source_rows(models, settings, options), **rows},
        tuple(report_findings(reports, summary, rows["values"], kinds, rows["cells"])),
    )
    return replace(report, figures=tuple(draw_differences(rows["values"])))


def _described(command: str) -> Mapping[str, Mapping[str, Schema]]:
    """By table, or ``summary``, the columns that the command describes; of one unknown to this version none."""
    try:
        return defaultdict(dict, columns_of(read_schema(command)))
    except MoetoolError:
        return defaultdict(dict)


def _settings(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, as far as known with what ``auto`` became."""
    made = report.get("environment")
    return {**report["options"], **made} if isinstance(made, dict) else report["options"]


def _summary(values: Sequence[Difference], cells: Sequence[Difference], counted: int) -> dict[str, Value]:
    apart = [one.row["apart"] for one in values if one.row["apart"] is not None]
    relative = [abs(size) for one in values if (size := number_of(one.row["relative_difference"])) is not None]
    different = sum(one.kind != SAME for one in values) + len(cells)
    return {
        "identical": not different,
        "compared_values": len(values) + counted,
        "different_values": different,
        "largest_relative_difference": max(relative, default=None),
        "from_zero": sum(one.kind == FROM_ZERO for one in values),
        "undefined_in_one": sum(one.kind == UNDEFINED for one in values),
        "intervals_apart": sum(map(bool, apart)) if apart else None,
    }


def _value_rows(
    first: Mapping[str, Any], second: Mapping[str, Any], *, described: Mapping[str, Schema]
) -> Iterator[Difference]:
    """Every key of either summary, with the intervals of both."""
    summaries = (first["summary"], second["summary"])
    spans = [{row.get("key"): row for row in report["tables"].get("intervals", ())} for report in (first, second)]
    for key in dict.fromkeys([*summaries[0], *summaries[1]]):
        ends = {
            f"{side}_{end}": span.get(key, {}).get(end)
            for side, span in zip("ab", spans, strict=True)
            for end in ("low", "high")
        }
        found = _compare(key, *summaries, column=described.get(key, {}))
        yield Difference({"key": key, **found.row, **ends, "apart": _are_apart(ends)}, found.kind)


def _are_apart(ends: Mapping[str, Value]) -> bool | None:
    a_low, a_high, b_low, b_high = (number_of(ends[key]) for key in ("a_low", "a_high", "b_low", "b_high"))
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return None
    return a_high < b_low or b_high < a_low


def _cell_rows(
    first: Mapping[str, Sequence[Row]],
    second: Mapping[str, Sequence[Row]],
    described: Mapping[str, Mapping[str, Schema]],
) -> tuple[list[Difference], int]:
    """The cells of tables that differ, and how many were compared."""
    cells: list[Difference] = []
    counted = 0
    for table in dict.fromkeys([*first, *second]):
        measured = {column for column, schema in described[table].items() if "x-unit-from" in schema}
        keys = _key_columns(measured, first.get(table, ()), second.get(table, ()))
        sides = [_by_key(keys, tables.get(table, ())) for tables in (first, second)]
        for place in dict.fromkeys([*sides[0], *sides[1]]):
            own, other = (side.get(place) for side in sides)
            if own is None or other is None:
                own, other = {ROW: own is not None}, {ROW: other is not None}
            columns = [column for column in dict.fromkeys([*own, *other]) if column not in keys]
            counted += len(columns)
            name = ", ".join(f"{key} {value}" for key, value in zip(keys, place[1:], strict=True))
            for column in columns:
                found = _compare(column, own, other, column=described[table].get(column, {}))
                if found.kind != SAME:
                    where = {"table": table, "row": name, "column": column, "name": f"{table}.{column}, {name}"}
                    cells.append(Difference({**where, **found.row}, found.kind))
    return cells, counted


def _by_key(keys: Sequence[str], rows: Sequence[Row]) -> dict[tuple[Value, ...], Row]:
    """Rows by how often the same key was there before, and by their key."""
    found: dict[tuple[Value, ...], Row] = {}
    seen = Counter[tuple[Value, ...]]()
    for row in rows:
        key = tuple(row.get(name) for name in keys)
        found[(seen[key], *key)] = row
        seen[key] += 1
    return found


def _key_columns(measured: Collection[str], *tables: Sequence[Row]) -> list[str]:
    """The columns whose values no two rows of one table share; all of them if rows are given twice.

    What is ``measured`` is a key only where no other column is left.
    """
    columns = list(dict.fromkeys(column for rows in tables for row in rows[:1] for column in row))
    columns.sort(key=lambda column: column in measured)
    names = TOKEN_COLUMNS if "index" in columns else KEY_COLUMNS
    keys = [column for column in columns if column in names and column not in measured]
    for column in [None, *columns]:
        if column is not None and column not in keys:
            keys.append(column)
        if keys and all(len({tuple(row.get(key) for key in keys) for row in rows}) == len(rows) for rows in tables):
            break
    return keys


def _compare(name: str, first: Row, second: Row, *, column: Schema) -> Difference:
    """What both rows have under one name; ``column`` is its description, if there is any."""
    a, b = first.get(name), second.get(name)
    difference, relative = None, None
    is_id = _is_id(name, a, b, column)
    if _is_number(a) and _is_number(b) and not is_id:
        difference = b - a  # type: ignore[operator]
        relative = difference / abs(a) if a else None  # type: ignore[arg-type, operator]
    row = {"a": a, "b": b, "difference": _finite(difference), "relative_difference": _finite(relative)}
    return Difference({"unit": _unit(name, first, column, a), **row}, _kind(name, first, second, difference, is_id))


def _kind(name: str, first: Row, second: Row, difference: float | None, is_id: bool) -> int:
    if name == ROW or name not in first or name not in second:
        return ONE_ONLY
    a, b = first[name], second[name]
    if a == b:
        return SAME
    if difference is not None:
        return CHANGED if a else FROM_ZERO
    return UNDEFINED if not is_id and None in (a, b) and (_is_number(a) or _is_number(b)) else OTHER


def _is_id(name: str, a: Value, b: Value, column: Schema) -> bool:
    """Whether a number only names something: whole numbers that their command gives no unit and does not count."""
    whole = isinstance(a, int | None) and isinstance(b, int | None) and "integer" in column.get("type", ())
    return name.split("_")[-1] in _IDS or (whole and column.get("x-unit") == "number")


def _unit(name: str, row: Row, column: Schema, value: Value) -> str:
    """What the command says, for this row if need be, or else the name."""
    unit = row.get(column["x-unit-from"]) if "x-unit-from" in column else column.get("x-unit")
    if unit in get_args(Unit):
        return str(unit)
    words = name.split("_")
    return next((unit for unit in _UNITS if unit in words), "count" if isinstance(value, int) else "number")


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float | None) -> float | None:
    return value if value is not None and is_finite(value) else None
