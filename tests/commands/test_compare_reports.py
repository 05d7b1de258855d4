"""Two JSON reports compared: what differs, how that is measured and ranked, what is said of it and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moetool.commands import compare_reports
from moetool.commands.memory import report_memory
from moetool.commands.route_stats import route_stats
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Report
from tests.commands.test_compare import codes, run, traces

__all__ = ["run", "traces"]


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
    assert list(values) == ["dead", "z_loss", "gini", "note", "bytes"]
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


def test_changes_from_zero_and_from_nothing_come_first(tmp_path) -> None:
    first = small_report(summary={"gini": 0.25, "dead_experts": 0, "z_loss": None, "cv": 1.5, "cold": 0, "note": None})
    second = small_report(summary={"gini": 0.5, "dead_experts": 3, "z_loss": 1.5, "cv": None, "cold": 0, "note": "a"})
    report = compared(tmp_path, first, second)
    assert [row["key"] for row in report.table("values").rows] == [
        "dead_experts", "z_loss", "cv", "gini", "note", "cold",
    ]  # fmt: skip
    assert [report.summary[key] for key in ("from_zero", "undefined_in_one", "different_values")] == [1, 2, 5]
    assert report.summary["largest_relative_difference"] == 1
    assert codes(report)["from_zero"] == "0 in A and not in B: dead_experts (0 and 3)."
    assert codes(report)["undefined_in_one"] == "Undefined in one of the two: z_loss (— and 1.500), cv (1.500 and —)."
    assert report.table("values").text_rows == 5  # what is the same is not listed


def test_keys_of_an_older_report_are_no_changes(tmp_path) -> None:
    old = small_report(summary={"gini": 0.25}, tables={"layers": [{"layer": 0, "gini": 0.5}], "gone": [{"x": 1}]})
    new = small_report(
        summary={"gini": 0.3, "max_violation": 1.5}, tables={"layers": [{"layer": 0, "gini": 0.6, "cv": 2}]}
    )
    report = compared(tmp_path, old, new)
    assert [row["key"] for row in report.table("values").rows] == ["gini", "max_violation"]
    assert (report.summary["from_zero"], report.summary["undefined_in_one"]) == (0, 0)
    assert codes(report)["keys_of_one"].endswith("max_violation (— and 1.500).")
    assert codes(report)["rows_of_one"] == "Rows of tables that one report lacks: 1 in A only."
    assert [row["name"] for row in report.table("cells").rows] == [
        "layers.gini, layer 0", "layers.cv, layer 0", "gone.(row), x 1",  # in the order of their tables
    ]  # fmt: skip


def test_ids_are_names_and_no_quantities(tmp_path) -> None:
    def found(layer: int, expert: int, gini: float) -> dict[str, Any]:
        row = {"layer": 0, "busiest_expert": expert, "gini": gini, "seed": expert, "x_id": expert, "experts": 8}
        return small_report(summary={"worst_layer": layer, "gini": gini, "tokens": 9}, tables={"layers": [row]})

    report = compared(tmp_path, found(2, 7, 0.5), found(0, 1, 0.6))
    assert [row["key"] for row in report.table("values").rows] == ["gini", "worst_layer", "tokens"]
    worst = report.table("values").rows[1]
    assert (worst["a"], worst["b"], worst["difference"], worst["relative_difference"]) == (2, 0, None, None)
    cells = {str(row["column"]): row["difference"] for row in report.table("cells").rows}
    assert list(cells) == ["gini", "busiest_expert", "seed", "x_id"]
    assert [cells[key] for key in ("busiest_expert", "seed", "x_id")] == [None] * 3
    assert report.summary["largest_relative_difference"] == pytest.approx(0.2)
    assert "worst_layer" not in codes(report)["different"]
    gone = small_report(summary={"worst_layer": None})
    assert compared(tmp_path, found(2, 7, 0.5), gone).summary["undefined_in_one"] == 0


def test_whole_numbers_without_a_unit_are_ids(tmp_path) -> None:
    """``coactivation.other`` is an expert, as its description says and its name does not."""
    described = compare_reports._described("route-stats")["coactivation"]["other"]
    assert compare_reports._is_id("other", 1, 2, described)
    assert compare_reports._is_id("other", None, 2, described)
    assert not compare_reports._is_id("other", 1, 2, {})
    assert not compare_reports._is_id("other", 1.5, 2, described)


def test_units_are_those_of_the_command(tmp_path) -> None:
    def found(factor: int) -> dict[str, Any]:
        return small_report(
            schema="moetool.memory/1.0",
            summary={
                "active_parameters_no_embedding": 10**10 * factor,
                "stored_elements": 10**9 * factor,
                "new_bytes": 5,
            },
            tables={
                "components": [{"role": "attention", "bytes": 2**31 * factor, "share": 0.1 * factor}],
                "compare": [
                    {"quantity": "KV cache", "unit": "bytes", "this": 2**30 * factor, "other": factor, "new_share": 1}
                ],
            },
        )

    report = compared(tmp_path, found(1), found(3))
    units = {row["key"]: row["unit"] for row in report.table("values").rows}
    assert units == {"active_parameters_no_embedding": "parameters", "stored_elements": "parameters",
                     "new_bytes": "bytes"}  # fmt: skip
    cells = {row["name"]: row["unit"] for row in report.table("cells").rows}
    assert cells == {
        "components.bytes, role attention": "bytes", "components.share, role attention": "share",
        "compare.this, quantity KV cache": "bytes", "compare.other, quantity KV cache": "bytes",
    }  # fmt: skip
    assert compare_reports._unit("decode_flops_share", {}, {}, 0.5) == "share"
    assert compare_reports._unit("anything", {"unit": "[]"}, {"x-unit-from": "unit"}, 5) == "count"
    unknown = small_report(schema="moetool.nothing-known/1.0")
    assert compared(tmp_path, unknown, unknown).summary["identical"] is True


def test_differences_have_room_on_a_narrow_page(tmp_path) -> None:
    pages = []
    for name in ("mixtral-8x7b", "mixtral-8x22b"):
        content = FORMATS["json"].render(report_memory(name), Page())
        assert isinstance(content, str)
        pages.append(json.loads(content))
    content = FORMATS["text"].render(compared(tmp_path, *pages), Page(width=80))
    assert isinstance(content, str)
    assert "too narrow" not in content
    assert content.count("Difference  Relative") == 2
    assert "stored_elements                    46.70 B      140.62 B       93.92 B     201 %" in content
    assert max(map(len, content.splitlines())) <= 80


def test_what_auto_became_is_told_and_other_text_is_a_warning(tmp_path) -> None:
    def found(option: str, dtype: str, corpus: str) -> dict[str, Any]:
        made = {"moetool": "0.1.0", "dtype": dtype, "corpus": corpus}
        return small_report(options={"dtype": option, "sources": ["x"], "out": option}, environment=made)

    same = compared(tmp_path, found("auto", "float32", "1"), found("float32", "float32", "1"))
    assert not {"options", "corpus"} & codes(same).keys()
    assert [row["dtype"] for row in same.table("sources").rows] == ["float32", "float32"]
    other = compared(tmp_path, found("auto", "bfloat16", "1"), found("auto", "float32", "2"))
    assert codes(other)["options"] == "A and B differ in dtype (bfloat16 and float32)."
    assert next(finding for finding in other.findings if finding.code == "corpus").level == "warning"
    old = small_report(options={"dtype": "auto"}, environment=[1])
    assert "dtype (auto and float32)" in codes(compared(tmp_path, old, found("float32", "float32", "1")))["options"]


def test_comparisons_that_are_compared_name_each_model_once(tmp_path) -> None:
    first, second = (small_report(model={"name": name}) for name in ("base and tuned", "base"))
    report = compared(tmp_path, second, first)
    assert report.model["name"] == "base and tuned"
    assert "model (base; base and tuned)" in codes(report)["options"]


def test_equal_reports_are_identical(tmp_path) -> None:
    report = compared(tmp_path, small_report(), small_report())
    assert report.summary["identical"] is True
    assert (report.summary["different_values"], report.summary["intervals_apart"]) == (0, 0)
    assert not report.table("cells").rows
    assert not report.figures
    assert [table.key for table in report.tables if table.is_shown] == ["sources"]
    assert len(report.table("values").rows) == 5
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
