"""The GitHub format: a Report enters, workflow commands leave that annotate a run with its findings and failed checks.

The commands and what is escaped in them are those of GitHub's "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

from moetool.report.formats import Page
from moetool.report.report import Report
from moetool.report.values import inert

_COMMANDS = {"info": "notice", "warning": "warning", "error": "error"}
_MESSAGE = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_ESCAPED_IN_MESSAGE = str.maketrans(_MESSAGE)
_ESCAPED_IN_PROPERTY = str.maketrans({**_MESSAGE, ":": "%3A", ",": "%2C"})


def render(report: Report, page: Page) -> str:
    """A line per finding and per failed check; nothing for a report without."""
    lines = [
        _command(_COMMANDS[finding.level], f"moetool {report.command}: {finding.code}", finding.message)
        for finding in report.findings
    ]
    lines += [
        _command("error", f"moetool {report.command}: {check.expression}", check.message)
        for check in report.checks
        if check.failed
    ]
    return "".join(f"{line}\n" for line in lines)


def _command(name: str, title: str, message: str) -> str:
    title, message = title.translate(_ESCAPED_IN_PROPERTY), message.translate(_ESCAPED_IN_MESSAGE)
    return f"::{name} title={inert(title)}::{inert(message)}"
