"""``compare`` of two JSON reports of one command: their files enter, a Report of every difference leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moetool.commands.compare import Row, assemble, source_rows
from moetool.commands.compare_figures import draw_differences
from moetool.commands.compare_findings import report_findings
from moetool.errors import MoetoolError
from moetool.report.baseline import is_finite, read_report
from moetool.report.report import Report, Unit, Value
from moetool.report.values import number_of

KEY_COLUMNS = (
    "layer", "next_layer", "expert", "next_expert", "other", "domain", "token_class", "token_id", "task", "lag",
    "quantity",
)  # fmt: skip
"""What names the rows of tables; where that is not enough, or a table has none of it, its first columns do too."""
ROW = "(row)"
"""Stands for a column where one of the reports lacks the row."""
_UNITS: tuple[tuple[str, Unit], ...] = (
    ("_bytes", "bytes"), ("_share", "share"), ("_bits", "bits"), ("_nats", "nats"), ("parameters", "parameters"),
    ("flops", "flops"), ("flops_per_token", "flops"), ("bytes_per_token", "bytes"),
)  # fmt: skip
"""Units that the names of numbers end with."""


def build_report(first: Path, second: Path, options: Mapping[str, object]) -> Report:
    """Compare every number of two reports.

    Raises MoetoolError for a file that is no report, and for reports of different commands.
    """
    reports = [read_report(path) for path in (first, second)]
    commands = [report["schema"].split("/")[0].removeprefix("moetool.") for report in reports]
    if commands[0] != commands[1]:
        raise MoetoolError(
            f"{first} is a report of {commands[0]} and {second} of {commands[1]}", "compare reports of one command"
        )
    values = list(_value_rows(*reports))
    cells, counted = _cell_rows(*(report["tables"] for report in reports))
    apart = [row["apart"] for row in values if row["apart"] is not None]
    relative = [abs(size) for row in values if (size := number_of(row["relative_difference"])) is not None]
    different = sum(row["a"] != row["b"] for row in values) + len(cells)
    summary: dict[str, Value] = {
        "identical": not different,
        "compared_values": len(values) + counted,
        "different_values": different,
        "largest_relative_difference": max(relative, default=None),
        "intervals_apart": sum(map(bool, apart)) if apart else None,
    }
    values.sort(key=_size)
    models, settings = [report["model"] for report in reports], [report["options"] for report in reports]
    return assemble(
        "reports",
        models,
        {"command": commands[0], **options},
        summary,
        {"sources": source_rows(models, settings, options), "values": values, "cells": sorted(cells, key=_size)},
        tuple(report_findings(reports, summary, values, cells)),
        tuple(draw_differences(values)),
    )


def _value_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Row]:
    """Every key of either summary, with the intervals of both."""
    summaries = (first["summary"], second["summary"])
    spans = [{row.get("key"): row for row in report["tables"].get("intervals", ())} for report in (first, second)]
    for key in dict.fromkeys([*summaries[0], *summaries[1]]):
        ends = {
            f"{side}_{end}": span.get(key, {}).get(end)
            for side, span in zip("ab", spans, strict=True)
            for end in ("low", "high")
        }
        yield {
            "key": key,
            **_compared(key, *(summary.get(key) for summary in summaries)),
            **ends,
            "apart": _are_apart(ends),
        }


def _are_apart(ends: Mapping[str, Value]) -> bool | None:
    a_low, a_high, b_low, b_high = (number_of(ends[key]) for key in ("a_low", "a_high", "b_low", "b_high"))
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return None
    return a_high < b_low or b_high < a_low


def _cell_rows(first: Mapping[str, Sequence[Row]], second: Mapping[str, Sequence[Row]]) -> tuple[list[Row], int]:
    """The cells of tables that differ, and how many were compared."""
    cells: list[Row] = []
    counted = 0
    for table in dict.fromkeys([*first, *second]):
        keys = _key_columns(first.get(table, ()), second.get(table, ()))
        sides = [
            {tuple(row.get(key) for key in keys): row for row in tables.get(table, ())} for tables in (first, second)
        ]
        for place in dict.fromkeys([*sides[0], *sides[1]]):
            name = {"table": table, "row": ", ".join(f"{key} {value}" for key, value in zip(keys, place, strict=True))}
            rows = [side.get(place) for side in sides]
            if rows[0] is None or rows[1] is None:
                counted += 1
                cells.append({**name, "column": ROW, **_compared(ROW, *(row is not None for row in rows))})
                continue
            columns = [column for column in dict.fromkeys([*rows[0], *rows[1]]) if column not in keys]
            counted += len(columns)
            cells += [
                {**name, "column": column, **_compared(column, rows[0].get(column), rows[1].get(column))}
                for column in columns
                if rows[0].get(column) != rows[1].get(column)
            ]
    return cells, counted


def _key_columns(*tables: Sequence[Row]) -> list[str]:
    """The columns whose values no two rows of one table share; all of them if rows are given twice."""
    columns = list(dict.fromkeys(column for rows in tables for row in rows[:1] for column in row))
    keys = [column for column in columns if column in KEY_COLUMNS]
    for column in [None, *columns]:
        if column is not None and column not in keys:
            keys.append(column)
        if keys and all(len({tuple(row.get(key) for key in keys) for row in rows}) == len(rows) for rows in tables):
            break
    return keys


def _compared(name: str, a: Value, b: Value) -> dict[str, Value]:
    difference, relative = None, None
    if _is_number(a) and _is_number(b):
        difference = b - a  # type: ignore[operator]
        relative = difference / abs(a) if a else None  # type: ignore[arg-type, operator]
    unit = next((unit for end, unit in _UNITS if name.endswith(end)), "count" if isinstance(a, int) else "number")
    return {"unit": unit, "a": a, "b": b, "difference": _finite(difference), "relative_difference": _finite(relative)}


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float | None) -> float | None:
    return value if value is not None and is_finite(value) else None


def _size(row: Row) -> float:
    """The largest relative difference first; what has none comes last."""
    return -abs(number_of(row["relative_difference"]) or 0.0)
