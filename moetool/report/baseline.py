"""Reports of earlier runs: a JSON file that ``--save`` wrote enters, its content leaves, checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from moetool.errors import MoetoolError
from moetool.report.report import Finding, Report
from moetool.report.values import inert

SCHEMA = re.compile(r"moetool\.([\w-]+)/1\.\d+")
"""Of the reports that can be read; the group is the command."""
_SAME_THING = {"model": ("family",), "environment": ("corpus",)}
"""Where these differ, so does what the numbers are of; a name differs between any two steps of a training."""
PLACES = ("sources", "out")
"""Options that say where something lies, not what it is."""
_HINT = "moetool COMMAND ... --save FILE.json writes one"


def read_baseline(path: Path, command: str) -> dict[str, Any]:
    """An earlier report of ``command``, of any model; MoetoolError where the file is none."""
    try:
        report = read_report(path)
    except MoetoolError as error:
        raise MoetoolError(f"--baseline {error.message}", error.hint) from None
    found = command_of(report)
    if found != command:
        raise MoetoolError(f"--baseline {path} is a report of {found}, not of {command}", _HINT)
    return report


def command_of(report: Mapping[str, Any]) -> str:
    """Which command wrote a report that ``read_report`` let pass."""
    return str(report["schema"]).split("/")[0].removeprefix("moetool.")


def find_differences(baseline: Mapping[str, Any], report: Report) -> Iterator[Finding]:
    """What is not the same about an earlier report and this one: models, text, options and versions."""
    parts = [
        (part, there, getattr(report, part))
        for part in ("model", "options", "environment")
        if isinstance(there := baseline.get(part), dict)
    ]
    told = [
        f"{inert(key)} ({_said(there.get(key))} there, {_said(here.get(key))} here)"
        for part, there, here in parts
        for key in dict.fromkeys([*there, *here])
        if _plain(there.get(key)) != _plain(here.get(key)) and (part == "model" or key not in PLACES)
    ]
    if told:
        apart = any(
            there.get(key) and here.get(key) and there[key] != here[key]
            for part, there, here in parts
            for key in _SAME_THING.get(part, ())
        )
        message = f"The baseline differs in {', '.join(told)}{': a check against it tells little' if apart else ''}."
        yield Finding("warning" if apart else "info", "baseline_differs", message)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_said, value)) or "none"
    return "none" if value is None else inert(str(value))


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
    for part in ("model", "options"):
        row = {key: item for key, item in report[part].items() if not isinstance(item, list)}
        lists = {f"{key} {number}": item for key, items in report[part].items() if isinstance(items, list)
                 for number, item in enumerate(items, 1)}  # fmt: skip
        _check_row(f"{path}: {part}", {**row, **lists})
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
