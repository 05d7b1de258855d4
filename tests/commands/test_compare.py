"""The compare report of two traces and of two runs of a model; what is refused and what decides exits."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moetool import cli
from moetool.capture.trace import RoutingTrace
from moetool.checkpoint.locate import DEMO
from moetool.commands import compare_cli
from moetool.commands.compare import build_report, compare
from moetool.commands.options import RunOptions
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Report
from moetool.report.values import write_percent
from tests.statistics.test_agreement import noisy_pair, pair, slowly
from tests.statistics.traces import random_trace, save_trace

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
    assert (report.summary["excess_load_shift"], report.summary["shifted_experts"]) == (None, 0)
    assert [table.key for table in report.tables if table.is_shown] == ["sources"]
    assert not any(figure.in_text for figure in report.figures)
    assert "rows" not in text(report)


def test_other_weights_alone_are_not_identical(traces) -> None:
    heavier = [replace(layer, weight=layer.weight * [1, 1, 2]) for layer in traces[0].layers]
    report = compare(traces[0], replace(traces[0], layers=tuple(heavier)))
    assert (report.summary["identical"], report.summary["agreement"]) == (False, 1)
    assert "margins" not in codes(report)
    assert [table.key for table in report.tables if table.is_shown] == ["sources", "layers", "domains", "intervals"]
    assert "└" not in text(report)  # no axis from 1 to 1


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
    assert codes(report)["settings"].startswith("A and B differ in model (synthetic and tuned), revision (none and")
    assert "dtype (none and float16)" in codes(report)["settings"]
    assert "last bits" not in codes(report)["settings"]
    assert report.table("sources").rows[1]["dtype"] == "float16"
    faster = replace(traces[1], settings={"engine": "resident"})
    assert "last bits alone" in codes(compare(traces[0], faster))["settings"]
    newer = replace(traces[1], versions={"transformers": "6", "torch": "3"})
    assert codes(compare(traces[0], newer))["settings"].endswith("transformers (none and 6), torch (none and 3).")
    assert report.environment.keys() == {"moetool", "corpus"}


def test_loads_are_said_to_have_moved_only_where_they_did() -> None:
    first, second = pair_of_loads(planted=False)
    still = compare(first, second)
    assert "load_shift" not in codes(still)
    assert still.summary["shifted_experts"] == 0
    report = compare(*pair_of_loads(planted=True))
    rows: list[dict[str, Any]] = [dict(row) for row in report.table("experts").rows]
    sure = [(row["layer"], row["expert"]) for row in rows if row["p_value"] < 0.05]
    assert (0, 11) in sure
    assert {layer for layer, _ in sure} == {0}
    assert report.summary["shifted_experts"] == len(sure)
    excess = report.summary["excess_load_shift"]
    by_layer: list[Any] = [row["excess_load_shift"] for row in report.table("layers").rows]
    assert isinstance(excess, float)
    assert by_layer[0] > excess > by_layer[1]
    row = next(row for row in rows if row["p_value"] < 0.05)
    assert f"The load of {len(sure)} of 24 experts moved by more than chance" in codes(report)["load_shift"]
    assert f"that of expert {row['expert']} of layer {row['layer']}: " in codes(report)["load_shift"]
    assert f"make about {write_percent(excess)} of the disagreement" in codes(report)["load_shift"]


def pair_of_loads(planted: bool) -> tuple[RoutingTrace, RoutingTrace]:
    """Sixteen documents in which a tenth of the tokens choose anew; ``planted`` turns some of layer 0 to expert 11."""
    first = random_trace(0, 12, 2, [60] * 16, 2)
    other = random_trace(0, 12, 2, [60] * 16, 2)
    random = np.random.default_rng(3)
    layers = []
    for layer in other.layers:
        chosen = layer.chosen.copy()
        again = np.flatnonzero(random.random(len(chosen)) < 0.1)
        chosen[again] = chosen[random.permutation(again)]
        if planted and layer.layer == 0:
            some = np.flatnonzero((random.random(len(chosen)) < 0.05) & (chosen != 11).all(axis=1))
            chosen[some, 0] = 11
        layers.append(replace(layer, chosen=chosen))
    return first, replace(other, layers=tuple(layers))


def test_the_same_tokens_under_other_names(traces) -> None:
    documents = tuple(replace(one, id=f"eval#{n}", domain="eval") for n, one in enumerate(traces[1].documents))
    report = compare(traces[0], replace(traces[1], documents=documents))
    plain = compare(*traces)
    assert report.summary == plain.summary
    assert [table.rows for table in report.tables] == [table.rows for table in plain.tables]
    assert "id 'document 0' in A is 'eval#0' in B, domain 'domain 0' in A is 'eval' in B" in codes(report)["renamed"]
    assert "renamed" not in codes(plain)


@pytest.mark.parametrize(
    ("lengths", "special", "experts", "per_token"),
    [([5], [], 4, 4), ([5], [], 4, 1), ([1], [], 4, 2), ([3, 2], [0, 1, 2], 4, 2), ([2] * 9, [], 3, 3)],
)
def test_small_traces_are_compared(lengths, special, experts, per_token) -> None:
    first, second = (random_trace(seed, experts, per_token, lengths, special=special) for seed in (0, 1))
    layer = second.layers[0]
    assert layer.weight is not None
    broken = replace(second, layers=(replace(layer, weight=np.full_like(layer.weight, np.nan)),))
    for other in (second, broken):
        report = compare(first, other)
        report.verify()
        assert text(report)
        assert report.summary["tokens"] == sum(lengths) - len(special)
        if experts == per_token:
            assert (report.summary["agreement"], report.summary["excess_load_shift"]) == (1, None)
    assert compare(first, broken).summary["weight_distance"] is None


def test_one_group_is_one_group(traces) -> None:
    first, second = (random_trace(seed, 6, 2, [9]) for seed in (0, 1))
    report = compare(first, second)
    assert codes(report)["few_documents"].startswith("Only 1 independent group of documents: ")
    assert {row["p_value"] for row in report.table("experts").rows} == {None}
    assert report.summary["shifted_experts"] is None


def test_traces_on_the_command_line(run, traces, tmp_path) -> None:
    a, b = (save_trace(trace, tmp_path / name) for trace, name in zip(traces, "ab", strict=True))
    code, out, err = run(a, b, "--json", "--fail-if", "agreement < 0.95", "--fail-if", "identical == 1")
    found = json.loads(out)
    assert (code, found["options"]["sources"]) == (1, [str(a), str(b)])
    assert [check["failed"] for check in found["checks"]] == [True, False]
    assert "agreement is 0.7298; fails if agreement < 0.95" in err
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
        compare_cli, "capture_input", lambda *wanted, **_: asked.append(wanted) or pair()[len(asked) % 2]
    )
    monkeypatch.setattr("moetool.commands.compare_outline.outline", lambda *found: pair()[0])
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


def test_models_that_do_not_fit_are_found_before_one_runs(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare_cli, "capture_input", lambda *_, **__: pytest.fail("a model was run"))
    corpus = tmp_path / "text.txt"
    corpus.write_text("One line of plain text for a small model.", encoding="utf-8")
    given = ("--text", corpus, "--device", "cpu")
    other = tmp_path / "other"
    shutil.copytree(DEMO, other)
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))

    def refused(**changes: int) -> str:
        (other / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        code, out, err = run("demo", other, *given)
        assert (code, out) == (2, "")
        return err

    assert f"MoE layers: 0-3 in A (demo) and 0-1 in B ({other})" in refused(num_hidden_layers=2)
    assert f"experts of layer 0: 8 in A (demo) and 16 in B ({other})" in refused(num_local_experts=16)
    assert f"experts per token of layer 0: 2 in A (demo) and 1 in B ({other})" in refused(num_experts_per_tok=1)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:200]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "the text is the same, their tokenizers are not" in refused()
    trace = save_trace(random_trace(0, 8, 2, [9], 4), tmp_path / "trace")
    assert "did not read the same tokens: document 1" in run(trace, "demo", *given)[2]


def test_what_does_not_go_together_is_refused(run, traces, tmp_path) -> None:
    trace, report = save_trace(traces[0], tmp_path / "trace"), tmp_path / "report.json"
    report.write_text("{}", encoding="utf-8")
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
        ("demo", "nowhere", "--device", "cpu"): "there is no trace, report or model 'nowhere'",
        (trace, "nowhere"): "there is no trace, report or model 'nowhere'",
        ("x" * 300,): "there is no trace, report or model 'xxx",
        ("demo", "~nobody-there/x"): "there is no trace, report or model",
        (report, "nope.json"): "there is no file nope.json",
        ("mixtral-8x7b", "demo"): "mixtral-8x7b is a preset",
        (trace, trace, "--fail-if", "agrement < 1"): "did you mean agreement?",
    }
    for arguments, message in refused.items():
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
