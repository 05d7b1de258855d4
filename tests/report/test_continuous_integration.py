"""The formats that services read: workflow commands of GitHub, XML of JUnit."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.report.formats import FORMATS, Page
from moetool.report.report import Check, Finding, Report
from tests.report.sample_report import make_report

EMPTY = Report("memory", {"name": "m"}, {}, (), {})
COMMAND = re.compile(r"::(notice|warning|error) title=([^:,\n]*)::(.*)")
SENTENCE = "a is 0; fails if a > 1"


def render(name: str, report: Report) -> str:
    return str(FORMATS[name].render(report, Page()))


def unescape(text: str) -> str:
    for escaped, character in (("%0A", "\n"), ("%0D", "\r"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(escaped, character)
    return text


def test_a_report_without_findings_says_nothing_to_github():
    assert render("github", EMPTY) == ""


def test_only_failed_checks_are_annotated():
    passed = Check("a > 1", "a", 0, False, "a is 0")
    assert render("github", replace(EMPTY, checks=(passed,))) == ""
    line = render("github", replace(EMPTY, checks=(passed, replace(passed, failed=True))))
    assert line == f"::error title=moetool memory check failed::{SENTENCE}\n"


@given(st.sampled_from(["info", "warning", "error"]), st.text(alphabet=":,%\n\rab 025AD"))
def test_any_message_is_one_command_that_github_reads_back(level, message):
    (line,) = render("github", replace(EMPTY, findings=(Finding(level, "code", message),))).splitlines()
    name, title, escaped = COMMAND.fullmatch(line).groups()
    assert name == {"info": "notice"}.get(level, level)
    assert title == "moetool memory code"
    assert unescape(escaped) == message


def test_a_title_cannot_add_a_property():
    finding = Finding("error", "a,file=x::b\n::error::c", "no")
    line = render("github", replace(EMPTY, findings=(finding,)))
    assert line == "::error title=moetool memory a%2Cfile=x%3A%3Ab%0A%3A%3Aerror%3A%3Ac::no\n"


def test_checks_come_first_and_what_github_would_drop_is_counted():
    checks = tuple(Check(f"a > {limit}", "a", 99, True, "a is 99") for limit in range(11))
    findings = tuple(Finding("info", f"code_{number}", "So.") for number in range(10))
    lines = render("github", replace(EMPTY, findings=(*findings, Finding("error", "bad", "No.")), checks=checks))
    kinds = [COMMAND.fullmatch(line).group(1) for line in lines.splitlines()]
    assert kinds == ["error"] * 10 + ["notice"] * 10
    assert "fails if a > 8" in lines
    assert "fails if a > 9" not in lines
    assert "::error title=moetool memory more::3 more of this kind are in the report" in lines


def suite_of(report: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(render("junit", report).encode("utf-8"))
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors")}
    assert counts == {"tests": len(suite.findall("testcase")), "failures": len(suite.findall("testcase/failure")),
                      "errors": len(suite.findall("testcase/error"))}  # fmt: skip
    assert {name: int(root.attrib[name]) for name in counts} == counts
    assert "timestamp" not in suite.attrib
    return suite


def test_one_test_per_check_and_per_error():
    report = make_report()
    suite = suite_of(replace(report, findings=(*report.findings, Finding("error", "no_tokens", "None counts."))))
    outcomes = {case.attrib["name"]: [child.tag for child in case] for case in suite.findall("testcase")}
    assert outcomes == {
        "fails if dead_experts > 0": ["failure"],
        "fails if sparsity > 50 %": ["system-out"],
        "no_tokens": ["error"],
    }
    assert suite.find("testcase/failure").attrib["message"] == "dead_experts is 3"
    assert suite.findtext("system-out").startswith("warning: Only 3 documents")
    properties = {one.attrib["name"]: one.attrib["value"] for one in suite.findall("properties/property")}
    assert properties["model.family"] == "olmoe"
    assert properties["option.text"] == '["a.txt", "code=b.jsonl"]'


def test_a_report_without_checks_is_an_empty_suite():
    suite = suite_of(EMPTY)
    assert [child.tag for child in suite] == ["properties"]


@given(st.text())
@pytest.mark.parametrize("level", ["warning", "error"])
def test_any_text_is_xml(level, text):
    check = Check(text, "a", 1, True, text)
    report = replace(EMPTY, model={"name": text}, findings=(Finding(level, text, text),), checks=(check,))
    assert suite_of(report).find("properties/property").attrib["name"] == "model.name"
