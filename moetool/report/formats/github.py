"""The GitHub format: a Report enters, workflow commands leave that annotate a run with its findings and failed checks.

The commands and what is escaped in them are those of GitHub's "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

from moetool.report.formats import Page
from moetool.report.report import Report
from moetool.report.values import inert

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}
"""By how much they matter."""
_MOST = 10
"""Annotations of one kind that GitHub keeps of a step."""
_MESSAGE = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_ESCAPED_IN_MESSAGE = str.maketrans(_MESSAGE)
_ESCAPED_IN_PROPERTY = str.maketrans({**_MESSAGE, ":": "%3A", ",": "%2C"})


def render(report: Report, page: Page) -> str:
    """A line per failed check and per finding, as many as GitHub shows; nothing for a report without."""
    messages = [("error", "check failed", check.sentence) for check in report.checks if check.failed]
    messages += [(_COMMANDS[finding.level], finding.code, finding.message) for finding in report.findings]
    lines = []
    for kind in _COMMANDS.values():
        own = [(title, message) for name, title, message in messages if name == kind]
        if len(own) > _MOST:
            left = len(own) - _MOST + 1
            own[_MOST - 1 :] = [("more", f"{left} more of this kind are in the report: GitHub keeps {_MOST} of a step")]
        lines += [_command(kind, f"moetool {report.command} {title}", message) for title, message in own]
    return "".join(f"{line}\n" for line in lines)


def _command(name: str, title: str, message: str) -> str:
    title, message = title.translate(_ESCAPED_IN_PROPERTY), message.translate(_ESCAPED_IN_MESSAGE)
    return f"::{name} title={inert(title)}::{inert(message)}"
