"""``moetool memory``: the report's keys, its findings, and what it takes to make it."""

import json
import subprocess
import sys

import pytest

from moetool.commands.memory import SUMMARY_COLUMNS, build_report, read_facts, report_memory
from moetool.errors import MoetoolError
from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint

SUMMARY = {
    "total_parameters": 1416,
    "active_parameters": 1032,
    "active_parameters_no_embedding": 952,
    "active_parameters_no_embedding_no_head": 872,
    "routed_expert_parameters": 768,
    "shared_expert_parameters": 0,
    "mtp_parameters": 0,
    "total_bytes": 2832,
    "active_bytes_per_token": 2064,
    "sparsity": 1032 / 1416,
    "moe_layers": 2,
    "experts": 4,
    "experts_per_token": 2,
}
"""Of MIXTRAL, worked by hand in tests/model."""


def report_of(folder, tensors=None, **config):
    write_checkpoint(folder, {**MIXTRAL, **config}, mixtral_tensors() if tensors is None else tensors)
    return report_memory(str(folder))


def codes(report):
    return {finding.code: finding.level for finding in report.findings}


def test_summary_from_header_and_from_config(tmp_path):
    report = report_of(tmp_path)
    assert report.summary == SUMMARY
    assert (report.schema, report.environment["source"]) == ("moetool.memory/1.0", "header")
    planned = report_memory(str(tmp_path / "config.json"))
    assert planned.summary == SUMMARY
    assert planned.environment["source"] == "config"
    assert codes(planned) == codes(report) | {"planned_bytes": "info"}
    assert [table.rows for table in planned.tables] == [table.rows for table in report.tables]


def test_columns_describe_every_key_and_all_is_json(tmp_path):
    report = report_of(tmp_path)
    assert report.summary_columns == SUMMARY_COLUMNS
    assert [column.key for column in SUMMARY_COLUMNS] == list(report.summary)
    for table in report.tables:
        assert all(list(row) == [column.key for column in table.columns] for row in table.rows)
        json.dumps(table.rows, allow_nan=False)
    json.dumps(dict(report.summary), allow_nan=False)
    assert dict(report.model) == {"name": str(tmp_path), "revision": None, "family": "mixtral"}


def test_tables(tmp_path):
    report = report_of(tmp_path)
    roles = {row["role"]: row["parameters"] for row in report.table("components").rows}
    assert roles == {"routed_experts": 768, "attention": 384, "embedding": 80, "lm_head": 80, "router": 64, "norm": 40}
    assert sum(row["share"] for row in report.table("components").rows) == pytest.approx(1)
    row = {
        "kind": "moe",
        "parameters": 624,
        "active_parameters": 432,
        "bytes": 1248,
        "experts": 4,
        "experts_per_token": 2,
    }
    assert report.table("layers").rows == ({"layer": 0, **row}, {"layer": 1, **row})
    assert report.table("dtypes").rows == ({"dtype": "BF16", "parameters": 1416, "bytes": 2832, "share": 1.0},)


def test_a_dense_model_has_no_sparsity(tmp_path):
    tensors = {name: kind for name, kind in mixtral_tensors().items() if "block_sparse" not in name}
    report = report_of(tmp_path, tensors, model_type="llama", num_local_experts=None)
    assert report.summary["active_parameters"] == report.summary["total_parameters"] == 584
    assert report.summary["sparsity"] is report.summary["experts"] is report.summary["experts_per_token"] is None
    assert report.summary["moe_layers"] == 0
    assert codes(report) == {"dense_model": "info"}


def test_a_pruned_checkpoint_contradicts_its_config(tmp_path):
    report = report_of(tmp_path, num_local_experts=6)
    assert codes(report)["experts_differ"] == "warning"
    assert report.findings[0].message.startswith("The config names 6 experts per layer, the checkpoint holds 4")
    assert report.summary == SUMMARY


def test_layers_that_differ(tmp_path):
    pruned = "model.layers.1.block_sparse_moe.experts.3."
    report = report_of(
        tmp_path, {name: kind for name, kind in mixtral_tensors().items() if not name.startswith(pruned)}
    )
    assert report.summary["experts"] is None
    assert report.summary["experts_per_token"] == 2
    assert "the checkpoint holds 3 to 4" in report.findings[0].message
    assert codes(report)["layers_differ"] == "info"


def test_an_unknown_top_k(tmp_path):
    report = report_of(tmp_path, num_experts_per_tok=None)
    assert codes(report)["experts_per_token_unknown"] == "warning"
    assert report.summary["total_parameters"] == 1416
    assert report.summary["active_parameters"] is report.summary["sparsity"] is None


def test_findings_on_how_things_were_counted(tmp_path):
    extra = {
        "model.layers.0.block_sparse_moe.e_score_correction_bias": ("F32", [4]),
        "model.layers.2.eh_proj.weight": ("BF16", [8, 16]),
        "model.layers.0.self_attn.q_proj.weight_scale_inv": ("F32", [1]),
        "model.vision_tower.weight": ("BF16", [3]),
    }
    report = report_of(tmp_path, mixtral_tensors() | extra, tie_word_embeddings=True)
    expected = ("correction_biases", "mtp_apart", "quantization_bytes", "towers_inactive", "tied_head", "copies")
    assert set(expected) < set(codes(report))
    assert report.summary["mtp_parameters"] == 128
    assert report.summary["total_parameters"] == 1416 - 80 + 3


def test_a_config_of_a_quantised_checkpoint_warns(tmp_path):
    write_checkpoint(tmp_path, {**MIXTRAL, "quantization_config": {"quant_method": "fp8"}}, mixtral_tensors())
    report = report_memory(str(tmp_path / "config.json"))
    assert codes(report)["planned_bytes"] == "warning"
    assert "(fp8)" in report.findings[0].message


def test_unknown_model():
    with pytest.raises(MoetoolError, match="no model 'nowhere'"):
        report_memory("nowhere")


def test_options_are_repeated(tmp_path):
    write_checkpoint(tmp_path, MIXTRAL, mixtral_tensors())
    facts = read_facts(str(tmp_path))
    assert build_report(facts, {"revision": "main"}).options == {"revision": "main"}


def test_a_folder_is_read_without_heavy_imports(tmp_path):
    write_checkpoint(tmp_path, MIXTRAL, mixtral_tensors())
    script = (
        "import sys; from moetool.commands.memory import report_memory; report_memory(sys.argv[1]); "
        "print(*({'torch', 'transformers', 'pandas', 'matplotlib', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
