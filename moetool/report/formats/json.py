"""The JSON format: a Report enters, one object of the same shape for every command leaves."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from moetool.report.formats import Page
from moetool.report.report import Report

_NOT_ASCII = re.compile(r"[^\n -~]")


def render(report: Report, page: Page) -> str:
    """Everything but the figures, in a fixed order; ASCII only, so that no token of a vocabulary can harm a terminal.

    A lone surrogate, of a file name that is no UTF-8, is spelled out: strict readers refuse even its escape.
    Raises ValueError where a value is not plain, or is NaN or infinite: undefined is None.
    """
    report.verify()
    content = {
        "schema": report.schema,
        "model": dict(report.model),
        "options": dict(report.options),
        "summary": {column.key: report.summary[column.key] for column in report.summary_columns},
        "tables": {
            table.key: [{column.key: row[column.key] for column in table.columns} for row in table.rows]
            for table in report.tables
        },
        "findings": [asdict(finding) for finding in report.findings],
        "checks": [asdict(check) for check in report.checks],
        "environment": dict(report.environment),
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return _NOT_ASCII.sub(lambda match: _escape(match[0]), text) + "\n"


def _escape(character: str) -> str:
    lone = "\ud800" <= character <= "\udfff"
    return f"\\\\u{ord(character):04x}" if lone else json.dumps(character)[1:-1]
