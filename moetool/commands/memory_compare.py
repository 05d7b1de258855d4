"""Side by side: the summaries of two models enter, a table of every number of both and their differences leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moetool.report.report import Column, Finding, Table, Value
from moetool.report.values import write_value

_COLUMNS = (
    Column("quantity", "Quantity", "text"),
    Column("unit", "Unit", "text", detail=True),
    Column("this", "This", unit_from="unit"),
    Column("other", "Other", unit_from="unit"),
    Column("difference", "Difference", unit_from="unit"),
    Column("ratio", "Ratio", "ratio", help="This / other."),
    Column("key", "Key", "text", detail=True),
)


def compare_table(
    columns: Sequence[Column], this: Mapping[str, Value], other: Mapping[str, Value] | None, name: str
) -> Table:
    """Every number of two summaries that is defined in one of them; no rows where there is no other."""
    rows = () if other is None else tuple(_rows(columns, this, other))
    return Table("compare", f"Beside {name}", _COLUMNS, rows, optional=True)


def _rows(
    columns: Sequence[Column], this: Mapping[str, Value], other: Mapping[str, Value]
) -> Iterator[Mapping[str, Value]]:
    for column in columns:
        mine, theirs = this[column.key], other[column.key]
        if column.unit == "text" or (mine is None and theirs is None):
            continue
        both = isinstance(mine, int | float) and isinstance(theirs, int | float)
        yield {
            "quantity": column.title,
            "unit": column.unit,
            "this": mine,
            "other": theirs,
            "difference": mine - theirs if both else None,  # type: ignore[operator]
            "ratio": mine / theirs if both and min(mine, theirs) >= 0 and theirs else None,  # type: ignore[operator, type-var]
            "key": column.key,
        }


def compare_finding(this: Mapping[str, Value], other: Mapping[str, Value] | None, name: str) -> tuple[Finding, ...]:
    """The comparison in one sentence."""
    if other is None:
        return ()
    changes = []
    for key, what in (
        ("total_parameters", "parameters"),
        ("active_parameters", "active"),
        ("flops_per_token", "FLOPs"),
    ):
        mine, theirs = this[key], other[key]
        if isinstance(mine, int) and isinstance(theirs, int) and theirs:
            unit = "flops" if what == "FLOPs" else "parameters"
            changes.append(f"{what} {write_value(mine, unit)} ({mine / theirs:.2f} times)")  # type: ignore[arg-type]
    return (Finding("info", "compared", f"Beside {name}: {', '.join(changes)}."),)
