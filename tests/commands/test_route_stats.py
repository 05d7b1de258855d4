"""The route-stats report: contract, plain values, findings, and that importing it stays light."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetool import __version__
from moetool.capture.trace import RoutingTrace, open_trace
from moetool.commands.route_stats import build_report
from moetool.commands.route_stats_summary import summary_columns
from moetool.report.report import Report
from tests.statistics.traces import make_trace, random_trace, save_trace

CONTRACT_SUMMARY = [
    "tokens",
    "documents",
    "moe_layers",
    "dead_experts",
    "unobserved_experts",
    "max_violation",
    "mean_max_violation",
    "load_entropy",
    "gini",
    "router_entropy",
    "balance_loss",
    "z_loss",
    "repeat_rate",
    "coactivation_max",
]
CONTRACT_LAYERS = [
    "layer",
    "experts",
    "experts_per_token",
    "max_violation",
    "min_violation",
    "cv",
    "gini",
    "entropy",
    "effective_experts",
    "dead",
    "unobserved",
    "balance_loss",
    "balance_loss_hf",
    "z_loss",
    "router_entropy",
    "top1_probability",
    "topk_mass",
    "boundary_margin",
    "first_repeat",
    "first_repeat_matched",
    "any_repeat",
    "any_repeat_uniform",
    "any_repeat_matched",
    "overlap",
    "overlap_matched",
    "coactivation_max",
    "design_effect",
]
CONTRACT_EXPERTS = [
    "layer",
    "expert",
    "assignments",
    "token_share",
    "slot_share",
    "weight_share",
    "utilization",
    "status",
]


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.message for finding in report.findings}


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(random_trace(0, 8, 2, [60] * 10, layers=3), {"seed": 0, "text": ["a.txt"]})


def test_the_keys_that_scripts_rely_on(report: Report) -> None:
    keys = [column.key for column in summary_columns()]
    assert set(CONTRACT_SUMMARY) <= set(keys)
    assert list(report.summary) == keys == [column.key for column in report.summary_columns]
    for key, wanted in (("layers", CONTRACT_LAYERS), ("experts", CONTRACT_EXPERTS)):
        assert set(wanted) <= {column.key for column in report.table(key).columns}
    assert [len(report.table(key).rows) for key in ("layers", "experts")] == [3, 24]
    assert report.table("coactivation").rows


def test_every_value_is_plain_and_described(report: Report) -> None:
    report.verify()
    assert report.schema == "moetool.route-stats/1.0"
    assert report.model == {"name": "synthetic", "revision": None, "family": "test"}
    assert report.options == {"seed": 0, "text": ["a.txt"]}
    assert report.environment["moetool"] == __version__
    for column in (*report.summary_columns, *(column for table in report.tables for column in table.columns)):
        assert column.help.endswith("."), column.key


def test_the_summary_is_mean_or_worst_of_the_layers(report: Report) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in report.table("layers").rows]
    summary = report.summary
    assert summary["tokens"] == 600
    assert (summary["documents"], summary["groups"], summary["domains"], summary["moe_layers"]) == (10, 10, 2, 3)
    worst = max(rows, key=lambda row: row["max_violation"])
    assert (summary["max_violation"], summary["worst_layer"]) == (worst["max_violation"], worst["layer"])
    means = {
        "mean_max_violation": "max_violation",
        "load_entropy": "entropy",
        "gini": "gini",
        "router_entropy": "router_entropy",
        "balance_loss": "balance_loss",
        "z_loss": "z_loss",
        "repeat_rate": "first_repeat",
        "repeat_rate_matched": "first_repeat_matched",
    }
    for key, column in means.items():
        assert summary[key] == pytest.approx(np.mean([row[column] for row in rows])), key
    assert summary["coactivation_max"] == max(row["coactivation_max"] for row in rows)
    # Not the mean of the layers' own: transformers pools the layers first.
    assert summary["balance_loss_hf"] < np.mean([row["balance_loss_hf"] for row in rows])


def test_the_figure_draws_the_utilization_of_every_expert(report: Report) -> None:
    figure = next(figure for figure in report.figures if figure.key == "expert_usage")
    assert [panel.title for panel in figure.panels] == ["layer 0", "layer 1", "layer 2"]
    rows = report.table("experts").rows
    drawn = [value for panel in figure.panels for value in panel.series[0][1]]
    assert drawn == [row["utilization"] for row in rows]
    assert {panel.reference for panel in figure.panels} == {1.0}


def test_every_statistic_is_in_the_summary_and_in_the_distribution(report: Report) -> None:
    rows = {row["statistic"]: row for row in report.table("distribution").rows}
    layers = [dict(row) for row in report.table("layers").rows]
    assert {"max_violation", "entropy", "first_repeat", "path_information", "coactivation_max"} <= set(rows)
    for name, row in rows.items():
        values = [value for layer in layers if (value := layer[name]) is not None]
        assert row["mean"] == report.summary[f"mean_{name}"] == pytest.approx(np.mean(values))
        assert row["worst"] == report.summary[f"worst_{name}"]
        assert row["worst"] in (max(values), min(values))
        assert row["p50"] == pytest.approx(np.median(values))
        least = -np.inf if row["least"] is None else row["least"]
        most = np.inf if row["most"] is None else row["most"]
        assert all(least - 1e-9 <= value <= most + 1e-9 for value in values), name
        if row["worst_layer"] is not None:
            assert layers[row["worst_layer"]][name] == row["worst"]


def test_intervals_hold_the_value_and_need_documents(report: Report) -> None:
    for row in report.table("intervals").rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["value"] == report.summary[row["key"]]
    assert {"max_violation", "mean_entropy", "mean_first_repeat"} <= {
        row["key"] for row in report.table("intervals").rows
    }
    assert not build_report(random_trace(0, 8, 2, [60] * 7), {}).table("intervals").rows


def with_prompts(trace: RoutingTrace, prompt_tokens: int) -> RoutingTrace:
    documents = tuple(replace(document, prompt_tokens=prompt_tokens) for document in trace.documents)
    return replace(trace, documents=documents)


def test_prefill_and_decode_are_kept_apart() -> None:
    whole = random_trace(0, 8, 2, [60] * 10, layers=2)
    report = build_report(with_prompts(whole, 45), {})
    prefill, decode = report.table("phases").rows
    assert (prefill["tokens"], decode["tokens"]) == (450, 150)
    assert "450 of prefill and 150 of decode" in codes(report)["mixed_phases"]
    alone = build_report(with_prompts(whole, 45), {}, phase="decode")
    assert alone.summary["tokens"] == 150
    assert alone.summary["mean_max_violation"] == decode["max_violation"]
    assert alone.summary["load_entropy"] == decode["entropy"]
    assert not alone.table("phases").rows
    assert not build_report(whole, {}).table("phases").rows
    # The trace of the last 15 tokens of every document, recorded by themselves, has the same loads.
    first = whole.layers[0].chosen.reshape(10, 60, 2)[:, 45:].reshape(150, 2)
    row = build_report(make_trace([first], 8, lengths=[15] * 10), {}).table("layers").rows[0]
    assert row["max_violation"] == alone.table("layers").rows[0]["max_violation"]
    assert row["first_repeat_matched"] is not None


def test_a_trace_of_loads_says_nothing_of_tokens() -> None:
    trace = replace(random_trace(0, 8, 2, [60] * 10, layers=2), settings={"load_only": True})
    report = build_report(with_prompts(trace, 30), {})
    report.verify()
    row = report.table("layers").rows[1]
    unknown = {key for key, value in row.items() if value is None}
    assert {"first_repeat", "any_repeat_matched", "overlap", "coactivation_max", "path_information"} <= unknown
    assert {"max_violation", "entropy", "dead", "design_effect"} & unknown == set()
    assert not any(report.table(key).rows for key in ("coactivation", "paths", "locality"))
    assert {figure.key for figure in report.figures} >= {"expert_usage", "load_map", "load_curve"}
    assert "load_only" in codes(report)


def test_pairs_are_ranked_over_layers(report: Report) -> None:
    deviates = [row["deviate"] for row in report.table("coactivation").rows]
    assert deviates == sorted(deviates, key=lambda value: -float(value or 0))


def test_the_same_trace_gives_the_same_report(tmp_path: Path, report: Report) -> None:
    trace = random_trace(0, 8, 2, [60] * 10, layers=3)
    opened = open_trace(save_trace(trace, tmp_path))
    assert build_report(opened, report.options) == build_report(trace, report.options) == report


def test_a_clean_trace_is_told_in_a_few_sentences_without_warnings() -> None:
    random = np.random.default_rng(0)
    chosen = random.random((4000, 8)).argsort(axis=1)[:, :2]
    parts = {"weight": [np.ones((4000, 2))], "scores": [np.ones((4000, 4))], "probability": [np.full((1, 8), 1 / 8)]}
    trace = make_trace([chosen], 8, lengths=[400] * 10, **parts)
    report = build_report(trace, {})
    assert {finding.level for finding in report.findings} == {"info"}
    found = codes(report)
    assert list(found) == ["load_balance", "all_experts_used", "router_certainty", "locality", "coactivation"]
    assert "takes 1.02 times the mean load (1 would be uniform, 4 the worst possible)" in found["load_balance"]
    assert found["all_experts_used"].startswith("No dead experts: each of the 8 was chosen")
    assert found["router_certainty"].endswith("without any preference it would be 12.5 %.")


def test_sentences_follow_the_tables() -> None:
    random = np.random.default_rng(1)
    choices = [random.random((2000, 8)).argsort(axis=1)[:, :2] for _ in range(3)]
    report = build_report(make_trace(choices, 8, lengths=[200] * 10), {})
    found = codes(report)
    worst = max((dict(row) for row in report.table("layers").rows), key=lambda row: row["max_violation"])
    assert (
        f"layer {worst['layer']} is the least balanced; its busiest expert, {worst['busiest_expert']}, "
        in (found["load_balance"])
    )
    pair = report.table("coactivation").rows[0]
    assert f"in layer {pair['layer']}" in found["coactivation"]
    assert f"of expert {pair['expert']} choose expert {pair['other']} too" in found["coactivation"]


def test_warnings_come_first_and_are_not_repeated() -> None:
    skewed = [[0]] * 70 + [[expert] for expert in range(8) if expert] + [[1]] * 3
    report = build_report(make_trace([skewed * 10], 9, lengths=[80] * 10), {})
    levels = [finding.level for finding in report.findings]
    assert levels == sorted(levels, key=["warning", "info"].index)
    assert {"dead_experts", "unbalanced_layer"} <= set(codes(report))
    assert not {"load_balance", "all_experts_used"} & set(codes(report))


def test_one_document_is_called_too_few() -> None:
    found = codes(build_report(make_trace([[[0]] * 50], 2), {}))
    assert "one group" in found["few_documents"]
    assert "more than one group of documents" in found["unobserved_experts"]
    assert "Only 3" in codes(build_report(random_trace(0, 4, 2, [20] * 3), {}))["few_documents"]


def test_unobserved_experts_come_with_the_tokens_needed() -> None:
    """Equal documents: deff 1, so 3 * 1 * 3 / (0.05 * 1) = 180 tokens."""
    message = codes(build_report(make_trace([[[0], [1]] * 50], 3, lengths=[10] * 10), {}))["unobserved_experts"]
    assert "1, in 1 of 1 layers" in message
    assert "180 tokens" in message


def test_dead_and_cold_experts_are_named() -> None:
    choices = [[0], [1], [2]] * 33 + [[3]]
    report = build_report(make_trace([choices * 10] * 7, 5, lengths=[100] * 10), {})
    found = codes(report)
    assert found["dead_experts"].endswith(
        "expert 4 of layer 0; expert 4 of layer 1; expert 4 of layer 2; expert 4 of layer 3; expert 4 of layer 4; "
        "and 2 in 2 more layers."
    )
    assert "expert 3 of layer 0; " in found["cold_experts"]
    assert (report.summary["dead_experts"], report.summary["cold_experts"]) == (7, 7)


def test_an_unbalanced_layer_is_named_with_its_worst_case() -> None:
    """Expert 0 takes 7 of 8 tokens of 8 experts: 7 times the mean load of at most 8."""
    even = [[expert] for expert in range(8)] * 10
    skewed = [[0]] * 70 + [[expert] for expert in range(8) if expert] + [[1]] * 3
    message = codes(build_report(make_trace([even * 10, skewed * 10], 8, lengths=[80] * 10), {}))["unbalanced_layer"]
    assert message.startswith("Layer 1 is unbalanced: expert 0 takes 7.0 times")
    assert "(at worst 8.0 times)" in message
    assert message.endswith("1 of 2.")


def test_noise_of_few_tokens_is_no_imbalance() -> None:
    random = np.random.default_rng(0)
    chosen = random.random((80, 64)).argsort(axis=1)[:, :1]
    report = build_report(make_trace([chosen], 64, lengths=[10] * 8), {})
    assert float(report.summary["max_violation"] or 0) > 1
    assert "unbalanced_layer" not in codes(report)


def test_missing_arrays_are_told() -> None:
    found = codes(build_report(random_trace(0, 4, 2, [20] * 8, weight=None, scores=None, probability=None), {}))
    assert "router_entropy" in found["no_scores"]
    assert "balance losses" in found["no_probability"]
    assert "stored order" in found["no_weight"]


def test_a_trace_of_special_tokens_only() -> None:
    report = build_report(random_trace(0, 4, 2, [2, 2], special=range(4)), {})
    report.verify()
    assert report.summary["tokens"] == 0
    assert report.summary["max_violation"] is None
    assert [finding.level for finding in report.findings] == ["error"]


def test_large_tables_leave_the_terminal_to_the_figure() -> None:
    small, large = (build_report(random_trace(0, experts, 1, [20, 20]), {}) for experts in (4, 128))
    assert small.table("experts").text_rows is None
    assert large.table("experts").text_rows == 0


def test_importing_the_command_imports_no_numpy() -> None:
    code = "import sys, moetool.commands.route_stats as c; assert c.build_report; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
