"""The compare report: two traces, two runs of a model and two JSON reports; what is refused and what decides exits."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetool import cli
from moetool.capture.trace import RoutingTrace
from moetool.commands import compare_cli, compare_reports
from moetool.commands.compare import build_report, compare
from moetool.commands.options import RunOptions
from moetool.commands.route_stats import route_stats
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Report
from tests.statistics.test_agreement import noisy_pair, pair, slowly
from tests.statistics.traces import save_trace

SUMMARY = [
    "identical", "agreement", "agreement_baseline", "corrected_agreement", "top1_agreement", "exact_agreement",
    "weight_distance", "worst_agreement", "worst_layer", "same_tokens", "tokens", "compared_values", "different_values",
]  # fmt: skip


@pytest.fixture(scope="module")
def traces() -> tuple[RoutingTrace, RoutingTrace]:
    return noisy_pair(0, layers=3)


@pytest.fixture(scope="module")
def report(traces: tuple[RoutingTrace, RoutingTrace]) -> Report:
    return build_report(*traces, {"sources": ["a", "b"], "seed": 0})


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; exit code, standard output, standard error."""

    def run_main(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moetool", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return run_main


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.message for finding in report.findings}


def text(report: Report) -> str:
    content = FORMATS["text"].render(report, Page(width=100))
    assert isinstance(content, str)
    return content


def test_summary_is_mean_and_least_over_layers(report: Report, traces) -> None:
    assert set(SUMMARY) <= report.summary.keys()
    rows: list[dict[str, Any]] = [dict(row) for row in report.table("layers").rows]
    counted = np.flatnonzero(traces[0].counted)
    for number, row in enumerate(rows):
        for key, value in slowly(*traces, number, counted).items():
            assert row[key] == pytest.approx(value, abs=1e-6)
    for key in ("agreement", "agreement_baseline", "top1_agreement", "weight_distance"):
        assert report.summary[key] == pytest.approx(np.mean([row[key] for row in rows]))
    worst = min(rows, key=lambda row: row["agreement"])
    assert (report.summary["worst_agreement"], report.summary["worst_layer"]) == (worst["agreement"], worst["layer"])
    same = np.ones(len(counted), bool)
    for mine, other in zip(*(trace.layers for trace in traces), strict=True):
        same &= (np.sort(mine.chosen[counted], axis=1) == np.sort(other.chosen[counted], axis=1)).all(axis=1)
    assert report.summary["same_tokens"] == same.mean()


def test_domains_are_means_over_layers(report: Report, traces) -> None:
    trace = traces[0]
    domain = trace.domain_of_document()[trace.document_of_token()]
    for index, row in enumerate(report.table("domains").rows):
        positions = np.flatnonzero(trace.counted & (domain == index))
        wanted = [slowly(*traces, layer, positions) for layer in range(3)]
        assert row["tokens"] == len(positions)
        for key in wanted[0]:
            assert row[key] == pytest.approx(np.mean([one[key] for one in wanted]), abs=1e-6)
        assert row["agreement_low"] is None  # five groups


def test_experts_are_sorted_by_how_far_their_load_moved(report: Report, traces) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in report.table("experts").rows]
    assert len(rows) == 3 * 9
    sizes = [abs(row["difference"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in rows:
        shares = [
            (trace.layers[row["layer"]].chosen[traces[0].counted] == row["expert"]).any(axis=1).mean()
            for trace in traces
        ]
        assert (row["share_a"], row["share_b"]) == pytest.approx(shares)
        assert row["difference"] == pytest.approx(shares[1] - shares[0])
        assert row["low"] < row["difference"] < row["high"]


def test_the_interval_of_an_expert_is_over_groups(report: Report, traces) -> None:
    """A linearised t interval, group by group: ten groups, five in each of two domains."""
    row: dict[str, Any] = dict(report.table("experts").rows[0])
    moved, tokens = np.zeros(10), np.zeros(10)
    for group, document in enumerate(traces[0].documents):
        own = slice(document.start, document.start + document.tokens)
        counted = traces[0].counted[own]
        chose = [(trace.layers[row["layer"]].chosen[own] == row["expert"]).any(axis=1)[counted] for trace in traces]
        moved[group], tokens[group] = chose[1].sum() - chose[0].sum(), counted.sum()
    parts = (moved - row["difference"] * tokens) / tokens.sum()
    variance = sum(5 * parts[domain::2].var(ddof=1) for domain in (0, 1))
    half = 2.306 * variance**0.5  # Student's t with 10 - 2 degrees of freedom
    assert (row["low"], row["high"]) == pytest.approx((row["difference"] - half, row["difference"] + half), rel=1e-3)


def test_the_interval_of_the_only_domain_is_that_of_the_corpus(traces) -> None:
    first, second = (
        replace(
            trace,
            documents=tuple(replace(document, domain="all") for document in trace.documents),
            layers=tuple(replace(layer, probability=None) for layer in trace.layers),
        )
        for trace in traces
    )
    report = compare(first, second)
    domain, whole = report.table("domains").rows[0], report.table("intervals").rows[0]
    assert (domain["agreement_low"], domain["agreement_high"]) == pytest.approx((whole["low"], whole["high"]))


def test_intervals_hold_their_values_and_need_documents(report: Report) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in report.table("intervals").rows]
    assert [row["key"] for row in rows] == ["agreement", "top1_agreement", "exact_agreement", "weight_distance"]
    for row in rows:
        assert row["value"] == report.summary[row["key"]]
        assert row["low"] < row["value"] < row["high"]
    # The mean of layers that move together is no surer than one of them.
    layers = report.table("layers").rows
    widths: list[Any] = [row["agreement_high"] - row["agreement_low"] for row in layers]  # type: ignore[operator]
    assert rows[0]["high"] - rows[0]["low"] < max(widths)
    few = compare(*pair())
    assert not few.table("intervals").rows
    assert few.table("layers").rows[0]["agreement_low"] is None
    assert few.table("experts").rows[0]["low"] is None
    assert "few_documents" in codes(few)


def test_the_same_trace_agrees_exactly(traces) -> None:
    report = compare(traces[0], traces[0])
    assert report.summary["identical"] is True
    ones = {"agreement", "corrected_agreement", "top1_agreement", "exact_agreement", "agreement_limit"}
    for row in (report.summary, *report.table("layers").rows, *report.table("domains").rows):
        assert {row[key] for key in ones} == {1.0}
        assert row["weight_distance"] == 0
    assert (report.summary["same_tokens"], report.summary["worst_agreement"]) == (1, 1)
    assert report.summary["worst_layer"] is None
    assert {row["difference"] for row in report.table("experts").rows} == {0}
    assert {row["agreement"] for row in report.table("margins").rows} == {1}
    assert {(row["low"], row["high"]) for row in report.table("intervals").rows} == {(1, 1), (0, 0)}
    assert list(codes(report)) == ["identical", "same_settings"]


def test_other_weights_alone_are_not_identical(traces) -> None:
    heavier = [replace(layer, weight=layer.weight * [1, 1, 2]) for layer in traces[0].layers]
    report = compare(traces[0], replace(traces[0], layers=tuple(heavier)))
    assert (report.summary["identical"], report.summary["agreement"]) == (False, 1)
    assert "margins" not in codes(report)


def test_what_traces_lack_is_null(traces) -> None:
    bare = [replace(layer, weight=None, scores=None) for layer in traces[0].layers]
    report = compare(replace(traces[0], layers=tuple(bare)), traces[1])
    report.verify()
    assert report.summary["agreement"] is not None
    for key in ("top1_agreement", "top1_baseline", "weight_distance", "margin_ratio"):
        assert report.summary[key] is None
    assert not report.table("margins").rows
    assert [figure.key for figure in report.figures] == ["agreement"]
    assert {"no_weight", "no_scores"} <= codes(report).keys()


def test_nothing_counted_is_an_error_and_no_number(traces) -> None:
    report = compare(replace(traces[0], special=np.ones_like(traces[0].special)), traces[1])
    report.verify()
    assert report.summary["tokens"] == 0
    assert report.summary["agreement"] is None
    assert report.summary["identical"] is None
    assert list(codes(report)) == ["no_tokens"]
    assert "None counts" in text(report)


def test_unrelated_models_are_told_of(traces) -> None:
    other = noisy_pair(0, layers=3)[1]
    rolled = [replace(layer, chosen=np.roll(layer.chosen, 7, axis=0)) for layer in other.layers]
    assert "unrelated" in codes(compare(traces[0], replace(other, layers=tuple(rolled))))
    assert "unrelated" not in codes(compare(*traces))


def test_every_value_is_plain_and_described(report: Report) -> None:
    report.verify()
    assert report.schema == "moetool.compare/1.0"
    for column in (*report.summary_columns, *(column for table in report.tables for column in table.columns)):
        assert column.help.endswith("."), column.key
    assert [figure.key for figure in report.figures] == ["agreement", "margins"]
    assert "Agreement by boundary margin" in text(report)


def test_different_runs_are_named(traces) -> None:
    tuned = replace(traces[1], model={"name": "tuned", "revision": "step2"}, settings={"dtype": "float16"})
    report = compare(traces[0], tuned)
    assert report.model == {"name": "synthetic and tuned", "revision": "step2", "family": "test"}
    assert "dtype (none and float16)" in codes(report)["settings"]
    assert report.table("sources").rows[1]["dtype"] == "float16"
    faster = replace(traces[1], settings={"engine": "resident"})
    assert "last bits alone" in codes(compare(traces[0], faster))["settings"]


def test_traces_on_the_command_line(run, traces, tmp_path) -> None:
    a, b = (save_trace(trace, tmp_path / name) for trace, name in zip(traces, "ab", strict=True))
    code, out, err = run(a, b, "--json", "--fail-if", "agreement < 0.95", "--fail-if", "identical == 1")
    found = json.loads(out)
    assert (code, found["options"]["sources"]) == (1, [str(a), str(b)])
    assert [check["failed"] for check in found["checks"]] == [True, False]
    assert f"agreement is {found['summary']['agreement']!r}" in err
    assert run(a, a, "--fail-if", "identical < 1", "--quiet")[::2] == (0, "")
    other = save_trace(replace(traces[1], tokens=traces[1].tokens + 1), tmp_path / "c")
    code, out, err = run(a, other)
    assert (code, out) == (2, "")
    assert "token 0 of document 'document 0' is 0 '' in A and 1 '' in B" in err


def test_types_differ_where_the_router_was_undecided(run) -> None:
    """bfloat16 rounds scores by half a percent: close calls flip, sure ones do not."""
    code, out, _ = run("demo", "--other-dtype", "float32", "--device", "cpu", "--max-tokens", 400, "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["dtype"] for row in found["tables"]["sources"]] == ["bfloat16", "float32"]
    assert found["options"]["other_dtype"] == "float32"
    assert 0.98 < found["summary"]["agreement"] < 1
    assert found["summary"]["margin_ratio"] < 0.25
    tenths = {}
    for row in found["tables"]["margins"]:
        tenths.setdefault(row["decile"], []).append(row["agreement"])
    means = [np.mean(tenths[decile]) for decile in range(1, 11)]
    assert means[0] < means[1] <= 1
    assert np.mean(means[5:]) > 0.999 > means[0]
    assert "as rounding does" in {finding["code"]: finding["message"] for finding in found["findings"]}["margins"]


def test_a_model_is_held_against_a_trace_of_it(run, tmp_path, monkeypatch, capsys) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("One line of plain text for a small model.", encoding="utf-8")
    given = ("--text", corpus, "--device", "cpu")
    trace = tmp_path / "trace"
    monkeypatch.setattr(sys, "argv", ["moetool", "capture", "demo", "--out", str(trace), *map(str, given)])
    with pytest.raises(SystemExit):
        cli.main()
    capsys.readouterr()
    code, out, _ = run(trace, "demo", *given, "--json")
    assert (code, json.loads(out)["summary"]["identical"]) == (0, True)


def test_what_is_different_about_the_other_model(run, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(compare_cli, "read_input", lambda name, revision, options, progress: (name, revision, options))
    monkeypatch.setattr(
        compare_cli, "capture_input", lambda *wanted: asked.append(wanted[:3]) or pair()[len(asked) % 2]
    )
    given = ("--dtype", "float16", "--revision", "step1")
    for arguments in (
        ("a/b", "--other-quantize", "4bit"),
        ("a/b", "--other-revision", "step2"),
        ("a/b", "c/d", "--other-dtype", "float32"),
    ):
        assert run(*arguments, *given, "--quiet")[0] == 0
    first, other = asked[::2], asked[1::2]
    assert first == [("a/b", "step1", RunOptions(dtype="float16"))] * 3
    assert other == [
        ("a/b", "step1", RunOptions(dtype="float16", quantize="4bit")),
        ("a/b", "step2", RunOptions(dtype="float16")),
        ("c/d", None, RunOptions(dtype="float32")),
    ]


def small_report(**changes: Any) -> dict[str, Any]:
    found = {
        "schema": "moetool.route-stats/1.0",
        "model": {"name": "base"},
        "options": {"dtype": "float32", "sources": ["x"]},
        "summary": {"gini": 0.25, "dead": 0, "z_loss": None, "note": "a", "bytes": 1000},
        "tables": {
            "experts": [{"layer": 0, "expert": 0, "load": 4}, {"layer": 0, "expert": 1, "load": 2}],
            "intervals": [{"key": "gini", "unit": "ratio", "value": 0.25, "low": 0.2, "high": 0.3}],
        },
    }
    return {**found, **changes}


def compared(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> Report:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, content in zip(paths, (first, second), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    report = compare_reports.build_report(*paths, {"sources": list(map(str, paths))})
    report.verify()
    return report


def test_reports_are_joined_number_by_number(tmp_path) -> None:
    second = small_report(
        model={"name": "tuned"},
        options={"dtype": "bfloat16", "sources": ["y"]},
        summary={"gini": 0.5, "dead": 2, "z_loss": 1.5, "note": "b", "bytes": 1000},
        tables={
            "experts": [{"layer": 0, "expert": 1, "load": 3}, {"layer": 1, "expert": 0, "load": 1}],
            "intervals": [{"key": "gini", "unit": "ratio", "value": 0.5, "low": 0.4, "high": 0.6}],
        },
    )
    report = compared(tmp_path, small_report(), second)
    values = {row["key"]: row for row in report.table("values").rows}
    assert next(iter(values)) == "gini"
    assert {key: values["gini"][key] for key in ("a", "b", "difference", "relative_difference", "apart")} == {
        "a": 0.25, "b": 0.5, "difference": 0.25, "relative_difference": 1.0, "apart": True,
    }  # fmt: skip
    assert (values["dead"]["difference"], values["dead"]["relative_difference"]) == (2, None)
    assert (values["z_loss"]["a"], values["z_loss"]["difference"]) == (None, None)
    assert (values["note"]["b"], values["note"]["apart"]) == ("b", None)
    cells = {(row["table"], row["row"], row["column"]): row for row in report.table("cells").rows}
    assert {key: (row["a"], row["b"], row["relative_difference"]) for key, row in cells.items()} == {
        ("experts", "layer 0, expert 0", "(row)"): (True, False, None),
        ("experts", "layer 0, expert 1", "load"): (2, 3, 0.5),
        ("experts", "layer 1, expert 0", "(row)"): (False, True, None),
        ("intervals", "key gini", "value"): (0.25, 0.5, 1.0),
        ("intervals", "key gini", "low"): (0.2, 0.4, 1.0),
        ("intervals", "key gini", "high"): (0.3, 0.6, 1.0),
    }
    # Five keys; rows of experts: one with a number, two of one report; one interval with a unit and three numbers.
    assert (report.summary["compared_values"], report.summary["different_values"]) == (5 + 3 + 4, 4 + 6)
    assert report.summary["largest_relative_difference"] == 1
    assert report.summary["intervals_apart"] == 1
    assert report.summary["identical"] is False
    assert "model (base and tuned), dtype (float32 and bfloat16)" in codes(report)["options"]
    assert "sources" not in codes(report)["options"]
    assert [figure.key for figure in report.figures] == ["differences"]


def test_equal_reports_are_identical(tmp_path) -> None:
    report = compared(tmp_path, small_report(), small_report())
    assert report.summary["identical"] is True
    assert (report.summary["different_values"], report.summary["intervals_apart"]) == (0, 0)
    assert not report.table("cells").rows
    assert not report.figures
    without = small_report(tables={})
    assert compared(tmp_path, without, without).summary["intervals_apart"] is None


def test_rows_are_told_apart_by_names_and_then_by_first_columns(tmp_path) -> None:
    rows = [{"layer": 0, "kind": "full", "size": 1}, {"layer": 0, "kind": "window", "size": 2}]
    other = [rows[1] | {"size": 3}, rows[0]]
    tables = {"kv_cache": rows, "twice": [{"x": 1}, {"x": 1}], "empty": []}
    report = compared(tmp_path, small_report(tables=tables), small_report(tables={**tables, "kv_cache": other}))
    assert [(row["row"], row["column"]) for row in report.table("cells").rows] == [("layer 0, kind window", "size")]


def test_real_reports_and_their_comparisons_can_be_compared(traces, run, tmp_path) -> None:
    paths = []
    for trace, name in zip(traces, ("a", "b"), strict=True):
        content = FORMATS["json"].render(route_stats(trace), Page())
        assert isinstance(content, str)
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(content, encoding="utf-8")
    saved = tmp_path / "ab.json"
    code, out, _ = run(*paths, "--save", saved, "--fail-if", "largest_relative_difference > 0", "--quiet")
    assert code == 1
    assert "Summaries, what differs most first" in out
    assert "Agreement" not in out
    found = json.loads(saved.read_text(encoding="utf-8"))
    assert found["summary"]["agreement"] is None
    assert len(found["tables"]["values"]) == len(json.loads(paths[0].read_text(encoding="utf-8"))["summary"])
    assert json.loads(run(saved, saved, "--json")[1])["summary"]["identical"] is True


BROKEN = {
    "is no JSON report": "{",
    "is no report of moetool": "[]",
    "name the folder of the trace": json.dumps({"schema": "moetool.trace/1.0"}),
    "with schema moetool.COMMAND/1.x": json.dumps(small_report(schema="moetool.route-stats/2.0")),
    "options is no JSON object": json.dumps(small_report(options=[])),
    "summary: gini is neither text nor a number": json.dumps(small_report(summary={"gini": []})),
    "summary: gini is inf, which is no finite number": '{"schema": "moetool.x/1.0", "model": {}, "options": {}, '
    '"summary": {"gini": 1e999}, "tables": {}}',
    "tables.layers is no list of rows": json.dumps(small_report(tables={"layers": {}})),
    "tables.layers row 2 is no JSON object": json.dumps(small_report(tables={"layers": [{}, 3]})),
    "tables.layers row 1: x is neither": json.dumps(small_report(tables={"layers": [{"x": {}}]})),
    "is a report of route-stats and": json.dumps(small_report(schema="moetool.memory/1.0")),
}


@pytest.mark.parametrize("message", BROKEN)
def test_damaged_reports_are_refused_by_name(run, tmp_path, message) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(small_report()), encoding="utf-8")
    bad.write_text(BROKEN[message], encoding="utf-8")
    code, out, err = run(good, bad)
    assert (code, out) == (2, "")
    assert message in err
    assert "bad.json" in err


def test_what_does_not_go_together_is_refused(run, traces, tmp_path) -> None:
    trace, report = save_trace(traces[0], tmp_path / "trace"), tmp_path / "report.json"
    report.write_text(json.dumps(small_report()), encoding="utf-8")
    refused = {
        (trace,): "compared with nothing",
        (report,): "compared with nothing",
        ("demo",): "compared with nothing",
        (report, trace): "is a file, and",
        ("demo", report): "is a file, and",
        (report, report, "--max-tokens", 5): "--max-tokens goes with a model to run",
        (trace, trace, "--dtype", "float32"): "--dtype goes with a model to run",
        (trace, trace, "--revision", "x"): "--revision goes with a model to run",
        ("demo", trace, "--other-dtype", "float32"): "--other-dtype goes with a model to run",
        ("demo", "nowhere", "--device", "cpu"): "there is no model 'nowhere'",
        (trace, trace, "--fail-if", "agrement < 1"): "did you mean agreement?",
    }
    for arguments, message in refused.items():
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
