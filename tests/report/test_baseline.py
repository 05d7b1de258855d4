import json
from dataclasses import replace

import pytest

from moetool.cli import main
from moetool.errors import MoetoolError
from moetool.report.baseline import find_differences, read_baseline, read_report
from moetool.report.checks import evaluate, parse, validate_keys
from moetool.report.formats import FORMATS, Page
from tests.report.sample_report import SUMMARY, make_report

BEFORE = {"tokens": 100_000, "total_bytes": 2**30, "sparsity": 0.25, "router_entropy": 2.0, "balance_loss": None}


def check(text, baseline=BEFORE):
    (outcome,) = evaluate(make_report(), [parse(text)], baseline)
    return outcome


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("tokens > baseline", True),
        ("tokens < baseline", False),
        ("tokens > baseline * 1.24", False),
        ("tokens > baseline * 1.23", True),
        ("tokens>baseline*1.23", True),
        ("tokens > baseline + 23 k", True),
        ("tokens > baseline + 24k", False),
        ("tokens >= baseline + 23456", True),
        ("tokens < baseline - 1", False),
        ("total_bytes > baseline + 85 GiB", True),
        ("total_bytes > baseline + 86 GiB", False),
        ("sparsity > baseline + 0.02", True),
        ("sparsity > baseline + 0.03", False),
        ("router_entropy < baseline * 0.95", False),
        ("router_entropy < baseline * 1.01", True),
        ("router_entropy != baseline", True),
    ],
)
def test_checks_by_hand(text, failed):
    assert check(text).failed is failed


def test_the_message_says_both_values():
    assert check("tokens > baseline").message == "tokens is 123456; the baseline has 100000"
    expected = "total_bytes is 93405585408 (86.99 GiB); the baseline has 1073741824 (1.00 GiB)"
    assert check("total_bytes > baseline * 2").message == expected


@pytest.mark.parametrize("text", ["dead_experts > baseline", "balance_loss > baseline * 9"])
def test_what_the_baseline_lacks_fails(text):
    outcome = check(text)
    assert outcome.failed
    assert "the baseline has no such number" in outcome.message
    assert check(text, {**BEFORE, "dead_experts": "few"}).failed


def test_an_undefined_value_fails():
    assert check("z_loss > baseline", {"z_loss": 0.0}).failed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens > baseline 5", "one of + - *, or the end at column 19"),
        ("tokens > baseline / 2", "one of + - *, or the end at column 19"),
        ("tokens > baseline *", "a number at column 20"),
        ("tokens > baseline + 5 %", "the end (5 % more is baseline * 1.05, 0.05 more baseline + 0.05) at column 23"),
        ("tokens > baseline * 105 %", "the end (5 %"),
        ("tokens > baseline * 2 GiB", "the end (5 %"),
        ("tokens > baseline + 5 furlongs", "one of the units"),
        ("tokens > baseline + 5 k 3", "the end at column 25"),
        ("tokens > baselines", "a number at column 10"),
    ],
)
def test_a_mistake_is_pointed_at(text, expected):
    with pytest.raises(MoetoolError) as caught:
        parse(text)
    assert f"expected {expected}" in caught.value.message.split("\n")[0]


def test_a_unit_that_does_not_belong():
    with pytest.raises(MoetoolError, match="is measured in nats"):
        validate_keys([parse("router_entropy > baseline + 5 GiB")], SUMMARY, BEFORE)


def test_a_baseline_and_a_check_of_it_need_each_other():
    with pytest.raises(MoetoolError, match="needs a baseline") as caught:
        validate_keys([parse("tokens > baseline")], SUMMARY)
    assert caught.value.hint == "add --baseline report.json"
    with pytest.raises(MoetoolError, match="no check compares with it"):
        validate_keys([parse("tokens > 5")], SUMMARY, BEFORE)
    with pytest.raises(MoetoolError, match="no check compares with it"):
        validate_keys([], SUMMARY, BEFORE)
    validate_keys([parse("tokens > 5"), parse("tokens > baseline")], SUMMARY, BEFORE)


def test_a_saved_report_is_read(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(str(FORMATS["json"].render(make_report(), Page())))
    assert read_baseline(path, "route-stats")["summary"] == make_report().summary
    path.write_text(str(FORMATS["json"].render(replace(make_report(), schema_version="1.3"), Page())))
    assert read_baseline(path, "route-stats")["summary"]["tokens"] == 123456


def difference_from(report, **parts):
    """The finding about a saved report whose parts were others, or None."""
    saved = json.loads(str(FORMATS["json"].render(report, Page())))
    found = list(find_differences({**saved, **parts}, report))
    assert len(found) <= 1
    return found[0] if found else None


def test_a_baseline_of_the_same_is_not_mentioned():
    assert difference_from(make_report()) is None
    elsewhere = replace(make_report(), options={"sources": ["a"], "text": ("x.txt",)})
    assert difference_from(elsewhere, options={"sources": ["b"], "text": ["x.txt"]}) is None


def test_what_is_not_the_same_about_a_baseline_is_said():
    report = replace(
        make_report(), model={"name": "step-2", "family": "mixtral"}, environment={"torch": "2", "corpus": "aa"},
        options={"seed": 0},
    )  # fmt: skip
    told = difference_from(report, model={"name": "step-1", "family": "mixtral"}, options={"seed": 1})
    assert told.level == "info"
    assert told.message == "The baseline differs in name (step-1 there, step-2 here), seed (1 there, 0 here)."
    for parts in ({"model": {"name": "step-2", "family": "olmoe"}}, {"environment": {"torch": "2", "corpus": "bb"}}):
        told = difference_from(report, **parts)
        assert told.level == "warning"
        assert (
            told.message.endswith("there, mixtral here): a check against it tells little.")
            or "bb there" in told.message
        )
    unknown = difference_from(report, environment={"moetool": "0.1.0"})  # of a version that did not tell the corpus
    assert unknown.level == "info"
    assert "corpus (none there, aa here)" in unknown.message


def test_a_report_never_replaces_its_baseline(tmp_path, monkeypatch, capsys):
    path = tmp_path / "base.json"
    saved = ["moetool", "memory", "mixtral-8x7b", "--save", str(path), "--quiet"]
    monkeypatch.setattr("sys.argv", saved)
    with pytest.raises(SystemExit, match="0"):
        main()
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    checked = ["--save", "base.json", "--baseline", str(path), "--fail-if", "total_bytes > baseline"]
    monkeypatch.setattr("sys.argv", [*saved[:3], *checked])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--save base.json would replace the --baseline" in capsys.readouterr().err
    assert path.read_bytes() == before


def report(**parts) -> str:
    whole = {"schema": "moetool.memory/1.0", "model": {}, "options": {}, "summary": {"x": 1}, "tables": {}}
    return json.dumps({**whole, **parts})


def test_a_whole_report_is_read(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(report(tables={"layers": [{"layer": 0, "kind": None}]}))
    assert read_report(path)["tables"] == {"layers": [{"layer": 0, "kind": None}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, " is no JSON report: "),
        ("", " is no JSON report: "),
        ("{", " is no JSON report: "),
        (b"\xff\xfe", " is no JSON report: "),
        ("[" * 100_000, " is no JSON report: "),
        ("[]", " is no report of moetool"),
        ("{}", " is no report of moetool"),
        (report(schema=1), " is no report of moetool"),
        (report(schema="moetool.memory/2.0"), " is no report of moetool"),
        (report(schema="moetool.trace/1.0"), " is no report of moetool"),
        (report(schema="moetool.route-stats/1.0"), " is a report of route-stats, not of memory"),
        (report(summary=[]), ": summary is no JSON object"),
        (report(summary={"x": []}), ": summary: x is neither text nor a number"),
        (report(summary={"x": float("nan")}), ": summary: x is nan, which is no finite number"),
        (report(summary={"x": 10**400}), ": summary: x is 10000000000000000000, which is no finite number"),
        (report().replace("1}", "1e999}"), ": summary: x is inf, which is no finite number"),
        (report(tables={"layers": {}}), ": tables.layers is no list of rows"),
        (report(tables={"layers": [{}, 5]}), ": tables.layers row 2 is no JSON object"),
    ],
)
def test_what_is_no_baseline(tmp_path, content, expected):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MoetoolError) as caught:
        read_baseline(path, "memory")
    assert caught.value.message.startswith(f"--baseline {path}{expected}")
