"""The JSON of every command: sample reports enter, a JSON Schema (2020-12) leaves; those in this folder are read.

Beside the keywords of JSON Schema a quantity has ``x-unit``, as in ``Column.unit``, or ``x-unit-from``, the column of
its row that names the unit. A schema asks for every key of its version and allows others: minor versions add keys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from moetool.errors import MoetoolError
from moetool.report.report import Column, Report, Table, Value

Schema = dict[str, Any]
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_TYPE_OF_UNIT = {"text": "string", "count": "integer", "parameters": "integer", "bytes": "integer", "flops": "integer"}
"""Of columns without a value in the samples; the other units are of numbers."""
_PLAIN = ["string", "number", "boolean", "null"]
_TEXT = {"type": "string"}


def read_schema(command: str) -> Schema:
    """The schema of a command's JSON; MoetoolError where the package has none."""
    path = Path(__file__).with_name(f"{command}.json")
    if not path.is_file():
        raise MoetoolError(f"the JSON of {command} is not described")
    return cast(Schema, json.loads(path.read_text(encoding="utf-8")))


def columns_of(schema: Schema) -> dict[str, dict[str, Schema]]:
    """Every column of a command's JSON, by key: those of the ``summary``, and of each table."""
    parts = schema["properties"]
    tables = {name: table["items"] for name, table in parts["tables"]["properties"].items()}
    return {name: part["properties"] for name, part in {"summary": parts["summary"], **tables}.items()}


def make_schema(samples: Sequence[Report]) -> Schema:
    """The schema of one command, from reports that together have all its tables, and numbers wherever there can be any.

    A type is that of the samples' values, or of the unit where they have none. Null is allowed everywhere but in the
    first column of a table, which says what the row is about: any number may be undefined.
    """
    major, _, _ = samples[0].schema.rpartition(".")
    summaries = [Table("summary", "", sample.summary_columns, (sample.summary,)) for sample in samples]
    tables: dict[str, list[Table]] = {}
    for table in (table for sample in samples for table in sample.tables):
        tables.setdefault(table.key, []).append(table)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Report of moetool {samples[0].command}",
        **_object(
            schema={"type": "string", "pattern": f"^{major}.".replace(".", r"\.")},
            model=_object(**{key: {"type": ["string", "null"]} for key in ("name", "revision", "family")}),
            options=_map({"anyOf": [{"type": _PLAIN}, {"type": "array", "items": {"type": _PLAIN}}]}),
            summary=_object(**_properties(summaries)),
            tables=_object(**{key: _rows(same) for key, same in tables.items()}),
            findings=_array(_object(level={"enum": ["info", "warning", "error"]}, code=_TEXT, message=_TEXT)),
            checks=_array(
                _object(expression=_TEXT, key=_TEXT, value={"type": _PLAIN}, failed={"type": "boolean"}, message=_TEXT)
            ),
            environment=_map({"type": _PLAIN}),
        ),
    }


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _rows(tables: Sequence[Table]) -> Schema:
    properties = _properties(tables)
    for first in list(properties.values())[:1]:
        first["type"].remove("null")
    return _array(_object(**properties))


def _properties(tables: Sequence[Table]) -> dict[str, Schema]:
    """What each column of the tables is; all are the same table."""
    columns = {column.key: column for table in tables for column in table.columns}
    rows = [row for table in tables for row in table.rows]
    return {key: _property(column, [row[key] for row in rows]) for key, column in columns.items()}


def _property(column: Column, values: Sequence[Value]) -> Schema:
    found = {_TYPES[type(value)] for value in values if value is not None} or {_TYPE_OF_UNIT.get(column.unit, "number")}
    types = sorted(found - {"integer"} if "number" in found else found)
    unit = {"x-unit-from": column.unit_from} if column.unit_from else {"x-unit": column.unit}
    return {"title": column.title, "description": column.help or column.title, "type": [*types, "null"], **unit}
