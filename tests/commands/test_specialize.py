"""The report of ``specialize``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moetool.commands.specialize import SUMMARY_KEYS, build_report
from moetool.errors import MoetoolError
from tests.statistics.domains import esft_trace, planted_trace
from tests.statistics.traces import save_trace

FAST = {"seed": 0, "permutations": 500, "bootstraps": 200}
PLANTED = {(layer, 4 * k + domain, domain): 2.5 for layer in range(3) for k in range(2) for domain in range(4)}
CONTRACT = [
    "domains",
    "documents",
    "information_bits",
    "excess_information_bits",
    "document_accuracy",
    "chance_accuracy",
    "specialists",
    "control_specialists",
]


@pytest.fixture(scope="module")
def report():
    return build_report(planted_trace(0, lifts=PLANTED), FAST)


def codes(report):
    return [finding.code for finding in report.findings]


def test_contract_of_names(report):
    report.verify()
    assert report.schema == "moetool.specialize/1.0"
    assert set(CONTRACT) <= set(SUMMARY_KEYS)
    assert tuple(report.summary) == SUMMARY_KEYS
    assert [table.key for table in report.tables] == [
        "specialists",
        "ablation",
        "losses",
        "patterns",
        "tokens",
        "tasks",
        "layers",
        "domains",
        "divergence",
        "classes",
    ]
    keys = {column.key for column in report.table("specialists").columns}
    assert {"layer", "expert", "domain", "lift", "lift_low", "lift_high", "p_value", "q_value", "kind"} <= keys


def test_planted_specialists_are_the_rows(report):
    rows = report.table("specialists").rows
    assert {(row["layer"] - 1, row["expert"], int(str(row["domain"])[-1])) for row in rows} == set(PLANTED)
    lows = [row["lift_low"] for row in rows]
    assert lows == sorted(lows, reverse=True)
    assert all(1 < row["lift_low"] < row["lift"] < row["lift_high"] <= 4 and row["q_value"] < 0.05 for row in rows)
    assert all(row["kind"] is None and row["baseline"] == 2 / 16 for row in rows)
    assert report.summary["specialists"] == len(PLANTED)
    assert sum(row["specialists"] for row in report.table("layers").rows) == len(PLANTED)
    assert sum(row["specialists"] for row in report.table("domains").rows) == len(PLANTED)


def test_findings_read_without_documentation(report):
    assert codes(report)[:2] == ["specialists", "specialist"]
    assert codes(report)[-1] == "not_shown"
    assert 6 <= len(report.findings) <= 12
    row = report.table("specialists").rows[0]
    assert report.findings[1].message.startswith(
        f"Expert {row['expert']} of layer {row['layer']} prefers {row['domain']}: chosen for "
    )
    control = next(finding for finding in report.findings if finding.code == "control")
    assert "8 random splits of a single domain into two" in control.message
    assert "found 0 preferences" in control.message


def test_the_same_input_gives_the_same_report(report):
    assert build_report(planted_trace(0, lifts=PLANTED), FAST) == report


def test_figures_hold_confirmed_cells_only(report):
    figures = {figure.key: figure for figure in report.figures}
    assert len(figures["information"].panels[0].series[0][1]) == 3
    cells = [value for panel in figures["specialists"].panels for _, row in panel.series for value in row]
    assert sum(value != 1 for value in cells) == len(PLANTED)


def test_no_effect_is_said_in_words():
    report = build_report(planted_trace(0), FAST)
    report.verify()
    assert codes(report)[0] == "no_specialists"
    assert report.summary["specialists"] == 0
    assert [figure.key for figure in report.figures] == ["information", "documents"]


def test_few_documents_are_descriptive_only():
    report = build_report(planted_trace(0, documents=5, lifts=PLANTED), FAST)
    report.verify()
    assert codes(report)[0] == "descriptive_only"
    assert "domain0 has 5" in report.findings[0].message
    for key in ("specialists", "control_specialists", "excess_information_bits"):
        assert report.summary[key] is None
    rows = report.table("specialists").rows
    assert rows
    assert all(row["p_value"] is row["q_value"] is row["lift_low"] is None for row in rows)


def test_a_single_document_per_domain_still_reports():
    report = build_report(planted_trace(0, documents=1), FAST)
    report.verify()
    assert report.summary["document_accuracy"] is None


def test_without_a_domain_to_split_there_is_no_control():
    report = build_report(planted_trace(0, documents=10), FAST)
    report.verify()
    assert "no_control" in codes(report)
    assert report.summary["control_specialists"] is None
    assert report.summary["control_runs"] == 0


def test_a_template_is_named():
    trace = planted_trace(0, domains=2, documents=8, unequal=False, tokens=50)
    tokens = np.arange(len(trace.tokens), dtype=np.int32).reshape(2, 8, 50)
    tokens[0, :, :4] = 7
    report = build_report(replace(trace, tokens=tokens.ravel()), FAST)
    message = next(finding.message for finding in report.findings if finding.code == "template_masked")
    assert message.startswith("8 of 8 documents of domain0 start with the same 4 tokens")
    assert [row["template_tokens"] for row in report.table("domains").rows] == [4, 0]
    assert report.summary["budget_tokens"] == 8 * 46


def test_uneven_domains_are_named():
    trace = planted_trace(0, domains=2, documents=8, unequal=False, tokens=100)
    special = trace.special.reshape(2, 8, 100).copy()
    special[1, :, 20:] = True
    report = build_report(replace(trace, special=special.ravel()), FAST)
    finding = next(finding for finding in report.findings if finding.code == "token_budget")
    assert finding.level == "warning"
    assert "160 tokens" in finding.message


def test_uneven_numbers_of_groups_are_named():
    trace = planted_trace(0, domains=2, documents=32, tokens=50)
    assert not [finding for finding in build_report(trace, FAST).findings if finding.code == "uneven_groups"]
    merged = [
        replace(document, group=document.group if document.domain == "domain0" else str(i % 8))
        for i, document in enumerate(trace.documents)
    ]
    report = build_report(replace(trace, documents=tuple(merged)), FAST)
    finding = next(finding for finding in report.findings if finding.code == "uneven_groups")
    assert finding.message.startswith("domain1 has 8 groups of documents and domain0 has 32")


def test_published_tasks():
    report = build_report(esft_trace(), FAST)
    report.verify()
    assert report.summary["document_accuracy"] >= 0.99
    assert report.summary["control_specialists"] == 0
    assert report.summary["excess_information_bits"] > 0.1
    assert report.summary["specialists"] > 500


@pytest.mark.parametrize("value", ["many", 1.5, -1])
def test_options_that_are_no_whole_number_are_refused(value):
    with pytest.raises(MoetoolError, match="seed"):
        build_report(planted_trace(0, documents=2), {"seed": value})


def test_import_stays_light():
    script = (
        "import sys; from moetool.commands.specialize import SUMMARY_KEYS; "
        "print([name for name in ('numpy', 'torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_ablation_on_the_built_in_model():
    """The surest specialist of German is needed for German, with the numbers of the table in words."""
    corpora = Path(__file__).parents[2] / "moetool" / "demo" / "corpora"
    texts = [f"--text={corpora / name}.jsonl" for name in ("german", "fiction")]
    command = [
        sys.executable,
        "-m",
        "moetool",
        "specialize",
        "demo",
        *texts,
        "--max-tokens=2500",
        "--ablate=1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["domain"]: row for row in report["tables"]["ablation"]}
    assert rows["german"]["verdict"] == "confirmed"
    assert rows["german"]["rise_low"] > 0
    assert rows["german"]["beyond_others_low"] > 0
    assert rows["german"]["beyond_controls_low"] > 0
    layer, expert = map(int, rows["german"]["experts"].split(":"))
    found = [row for row in report["tables"]["specialists"] if row["causal"]]
    assert {(row["domain"], row["layer"], row["expert"]) for row in found} >= {("german", layer, expert)}
    assert report["summary"]["confirmed_specialists"] >= 1


def test_ablation_of_a_trace_is_refused(tmp_path):
    save_trace(planted_trace(0), tmp_path)
    command = [sys.executable, "-m", "moetool", "specialize", str(tmp_path), "--ablate", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--ablate runs the model, and a trace has none" in done.stderr
