"""The JUnit format: a Report enters, XML leaves that CI systems show as tests: one per check and per error found.

The elements are those that Jenkins, GitLab and others agree on; there is no official schema and no timestamp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from moetool.report.formats import Page
from moetool.report.report import Report, Value
from moetool.report.values import inert


def render(report: Report, page: Page) -> str:
    """One suite: a failed check is a failure, an error found is an error, other findings are the suite's output."""
    errors = [finding for finding in report.findings if finding.level == "error"]
    counts = {
        "tests": len(report.checks) + len(errors),
        "failures": sum(check.failed for check in report.checks),
        "errors": len(errors),
    }
    root = _add(None, "testsuites", name="moetool", **counts, time=0)
    suite = _add(root, "testsuite", name=f"moetool {report.command}", **counts, skipped=0, time=0)
    properties = _add(suite, "properties")
    for name, value in _properties(report):
        _add(properties, "property", name=name, value=value)
    for check in report.checks:
        name = f"fails if {check.expression}"
        case = _add(suite, "testcase", classname=f"moetool.{report.command}.checks", name=name, time=0)
        if check.failed:
            _add(case, "failure", check.sentence, message=check.message, type="check")
        else:
            _add(case, "system-out", check.message)
    for finding in errors:
        case = _add(suite, "testcase", classname=f"moetool.{report.command}.findings", name=finding.code, time=0)
        _add(case, "error", finding.message, message=finding.message, type=finding.code)
    others = [f"{finding.level}: {finding.message}" for finding in report.findings if finding not in errors]
    if others:
        _add(suite, "system-out", *others)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    """What was set, by name: ``model.family``, ``option.seed``; a list is written as JSON."""
    parts: tuple[tuple[str, Mapping[str, Value | Sequence[Value]]], ...] = (
        ("model", report.model),
        ("option", report.options),
        ("version", report.environment),
    )
    for part, values in parts:
        for key, value in values.items():
            if value is not None:
                yield f"{part}.{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _add(parent: Element | None, tag: str, *lines: str, **attributes: str | int) -> Element:
    """A new element; characters that XML forbids are among those that inert text spells out."""
    plain = {name: inert(str(value)) for name, value in attributes.items()}
    element = Element(tag, plain) if parent is None else SubElement(parent, tag, plain)
    element.text = "\n".join(map(inert, lines)) or None
    return element
