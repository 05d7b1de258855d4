"""The JSON format: a Report enters, one object of the same shape for every command leaves."""

from __future__ import annotations

import json
from dataclasses import asdict

from moetool.report.formats import Page
from moetool.report.report import Report


def render(report: Report, page: Page) -> str:
    """Everything but the figures, in a fixed order; ASCII only, so that no token of a vocabulary can harm a terminal.

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
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
