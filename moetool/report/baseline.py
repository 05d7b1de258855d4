"""Reports of earlier runs: a JSON file that ``--save`` wrote enters, its content or its summary leaves, checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from moetool.errors import MoetoolError
from moetool.report.report import Value

SCHEMA = re.compile(r"moetool\.([\w-]+)/1\.\d+")
"""Of the reports that can be read; the group is the command."""
_HINT = "moetool COMMAND ... --save FILE.json writes one"


def read_baseline(path: Path, command: str) -> Mapping[str, Value]:
    """The summary of an earlier report of ``command``, of any model; MoetoolError where the file is none."""
    try:
        report = read_report(path)
    except MoetoolError as error:
        raise MoetoolError(f"--baseline {error.message}", error.hint) from None
    found = report["schema"].split("/")[0].removeprefix("moetool.")
    if found != command:
        raise MoetoolError(f"--baseline {path} is a report of {found}, not of {command}", _HINT)
    return cast(Mapping[str, Value], report["summary"])


def read_report(path: Path) -> dict[str, Any]:
    """A JSON report with ``model``, ``options``, ``summary`` and ``tables`` of plain values.

    MoetoolError names the file and, where one is wrong, the part and the number of the row.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MoetoolError(f"{path} is no JSON report: {error}", _HINT) from None
    match = SCHEMA.fullmatch(str(report.get("schema"))) if isinstance(report, dict) else None
    if match is None or match[1] == "trace":
        hint = "name the folder of the trace" if match else _HINT
        raise MoetoolError(f"{path} is no report of moetool with schema moetool.COMMAND/1.x", hint)
    for part in ("model", "options", "summary", "tables"):
        if not isinstance(report.get(part), dict):
            raise MoetoolError(f"{path}: {part} is no JSON object")
    _check_row(f"{path}: summary", report["summary"])
    for key, rows in report["tables"].items():
        if not isinstance(rows, list):
            raise MoetoolError(f"{path}: tables.{key} is no list of rows")
        for number, row in enumerate(rows, 1):
            _check_row(f"{path}: tables.{key} row {number}", row)
    return cast(dict[str, Any], report)


def _check_row(where: str, row: object) -> None:
    if not isinstance(row, dict):
        raise MoetoolError(f"{where} is no JSON object")
    for key, value in row.items():
        if not isinstance(value, str | int | float | None):
            raise MoetoolError(f"{where}: {key} is neither text nor a number")
        if isinstance(value, int | float) and not is_finite(value):
            raise MoetoolError(f"{where}: {key} is {str(value)[:20]}, which is no finite number")


def is_finite(value: float) -> bool:
    """Whether a number is one: neither NaN nor infinite, nor too large for a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
