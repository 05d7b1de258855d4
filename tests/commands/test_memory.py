"""``moetool memory``: the report's keys, its sections, its options, its findings, and what it takes to make it."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from moetool import cli
from moetool.checkpoint.types import Checkpoint
from moetool.commands.memory import SUMMARY_COLUMNS, build_report, make_subject, read_facts, report_memory
from moetool.commands.memory_change import change_config
from moetool.commands.memory_section import MemorySettings
from moetool.errors import MoetoolError
from moetool.model.presets import PRESETS
from tests.statistics.traces import make_trace, save_trace
from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint

PARTS = {
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
CONTEXT = 131072
MATRICES = 384 + 384 + 64
"""Parameters that a token is multiplied with before the head: attention, two experts in each layer, the routers."""
SUMMARY = {
    **PARTS,
    "config_parameters": 1416,
    "unexplained_parameters": 0,
    "stored_elements": 1416,
    "context_tokens": CONTEXT,
    "batch": 1,
    "kv_cache_bytes": 32 * CONTEXT,
    "kv_bytes_per_token": 2 * 2 * 4 * 2,
    "kv_growth_bytes_per_token": 32,
    "state_bytes": 0,
    "cache_bytes": 32 * CONTEXT,
    "flops_per_token": 2 * (MATRICES + 80) + 2 * 2 * 2 * 8 * CONTEXT,
    "prefill_flops": 2 * MATRICES * CONTEXT + 2 * 80 + 2 * 2 * 2 * 8 * CONTEXT * (CONTEXT + 1) // 2,
    "decode_bytes_per_token": 2064 - 160 + 32 * CONTEXT,
    "distinct_experts": 2,
    "training_flops_per_token": 6 * 1032,
    "training_bytes": None,
    "gpus": 1,
    "device_bytes": 2832 + 32 * CONTEXT,
    "fits": None,
    "free_bytes": None,
    "largest_context": None,
    "largest_batch": None,
    "fewest_gpus": None,
    "offloaded_bytes": None,
    "bus_bytes_per_token": None,
}
"""Two layers with one head of 4 for keys and values; an attention of 2 heads of 4 to every token of the context."""


@pytest.fixture
def folder(tmp_path):
    return str(write_checkpoint(tmp_path / "model", MIXTRAL, mixtral_tensors()))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; exit code, standard output, standard error."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run_main(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moetool", "memory", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    yield run_main
    signal.signal(signal.SIGTERM, before)


def memory(model, **settings):
    return report_memory(str(model), settings=MemorySettings(**settings))


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
    assert planned.summary == {**SUMMARY, "unexplained_parameters": None}
    assert planned.environment["source"] == "config"
    assert set(codes(report)) - set(codes(planned)) == {"header_against_config"}
    assert codes(planned)["planned_bytes"] == "info"
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
    assert codes(report)["dense_model"] == "info"
    assert not {"active_conventions", "memory_for_all", "compute_for_few"} & set(codes(report))
    assert report.table("equivalents").rows == ()


def test_a_pruned_checkpoint_contradicts_its_config(tmp_path):
    report = report_of(tmp_path, num_local_experts=6)
    assert codes(report)["experts_differ"] == "warning"
    assert report.findings[0].message.startswith("The config names 6 experts per layer, the checkpoint holds 4")
    assert {key: report.summary[key] for key in PARTS} == PARTS
    assert report.summary["unexplained_parameters"] == 0


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


def test_a_config_of_a_quantised_checkpoint_names_its_scheme(tmp_path):
    write_checkpoint(tmp_path, {**MIXTRAL, "quantization_config": {"quant_method": "fp8"}}, mixtral_tensors())
    report = report_memory(str(tmp_path / "config.json"))
    (finding,) = [finding for finding in report.findings if finding.code == "planned_bytes"]
    assert "(fp8)" in finding.message
    assert report.summary["total_parameters"] == 1416


def test_unknown_model():
    with pytest.raises(MoetoolError, match="no model 'nowhere'"):
        report_memory("nowhere")


def test_options_are_repeated_without_defaults(folder):
    assert report_memory(folder).options == {"revision": None}
    assert memory(folder, context=5, by=("layer",)).options == {"revision": None, "context": 5, "by": ["layer"]}


def test_facts_are_those_of_the_headers(folder):
    assert read_facts(folder).source == "header"
    assert read_facts("mixtral-8x7b").source == "config"


# Context --------------------------------------------------------------------------------------------------------------


def test_cache_of_a_batch_in_another_type(folder):
    report = memory(folder, context=100, batch=3, kv_dtype="fp8")
    keys = ("context_tokens", "batch", "kv_cache_bytes", "kv_bytes_per_token", "state_bytes", "cache_bytes")
    assert [report.summary[key] for key in keys] == [100, 3, 16 * 300, 16, 0, 16 * 300]
    (row,) = report.table("cache_kinds").rows
    assert (row["kind"], row["layers"], row["cache_bytes"], row["bytes_per_token"]) == ("full", 2, 4800, 16)
    assert [row["cache_bytes"] for row in report.table("kv_cache").rows] == [2400, 2400]
    assert "3 sequences of 100 tokens" in report.table("cache_kinds").note


def test_windows_by_policy(tmp_path):
    """A window of 10 tokens at a context of 100: engines with pages of one size hold 112 in each layer, 7 x 16."""
    write_checkpoint(tmp_path, {**MIXTRAL, "sliding_window": 10}, mixtral_tensors())
    exact, reserve = memory(tmp_path, context=100), memory(tmp_path, context=100, kv_policy="reserve")
    assert exact.summary["kv_cache_bytes"] == 32 * 10
    assert exact.summary["kv_growth_bytes_per_token"] == 0
    assert exact.summary["kv_bytes_per_token"] == reserve.summary["kv_bytes_per_token"] == 32
    assert reserve.summary["kv_cache_bytes"] == 32 * 112
    assumed = {row["assumption"]: row["value"] for row in reserve.table("assumptions").rows}
    assert assumed["cache policy"] == "reserve"


def test_a_context_beyond_the_config(tmp_path):
    write_checkpoint(tmp_path, {**MIXTRAL, "max_position_embeddings": 64}, mixtral_tensors())
    assert memory(tmp_path).summary["context_tokens"] == 64
    assert "context_too_long" not in codes(memory(tmp_path, context=64))
    assert codes(memory(tmp_path, context=65))["context_too_long"] == "warning"


def test_unknown_attention(tmp_path):
    tensors = {name: kind for name, kind in mixtral_tensors().items() if ".self_attn." not in name}
    report = report_of(tmp_path, tensors, model_type="novel")
    assert codes(report)["mixers_unknown"] == "warning"
    for key in ("kv_cache_bytes", "kv_bytes_per_token", "kv_growth_bytes_per_token", "state_bytes", "cache_bytes"):
        assert report.summary[key] is None, key
    report.verify()


# Compute --------------------------------------------------------------------------------------------------------------


def test_compute_by_component(folder):
    report = memory(folder, context=10)
    rows = {row["component"]: row["decode_flops"] for row in report.table("compute").rows}
    assert rows == {
        "attention": 768, "routed_experts": 768, "lm_head": 160, "router": 128, "attention_to_context": 640,
    }  # fmt: skip
    assert sum(row["decode_share"] for row in report.table("compute").rows) == pytest.approx(1)
    assert report.summary["flops_per_token"] == sum(rows.values())
    prefill = sum(row["prefill_flops"] for row in report.table("compute").rows)
    assert prefill == report.summary["prefill_flops"] == 2 * MATRICES * 10 + 160 + 64 * 55


def test_the_trade_is_a_finding_and_a_figure():
    report = memory("mixtral-8x7b", context=1)
    assert {"memory_for_all", "compute_for_few"} <= set(codes(report))
    messages = {finding.code: finding.message for finding in report.findings}
    assert "3.6 times" in messages["memory_for_all"]
    (figure,) = report.figures
    assert figure.key == "trade"
    assert [panel.title for panel in figure.panels] == ["memory for weights", "FLOPs per token"]
    sizes, work = (panel.series[0][1] for panel in figure.panels)
    assert sizes == pytest.approx((1, 12_879_925_248 / 46_702_792_704, 1))
    assert work[2] == 1
    assert work[0] == pytest.approx(0.274, abs=0.002)


@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 16), ("adamw-8bit", 10), ("sgd", 8)])
def test_training(folder, optimizer, each):
    report = memory(folder, training=optimizer)
    rows = report.table("training").rows
    assert sum(row["bytes_per_parameter"] for row in rows) == each
    assert report.summary["training_bytes"] == each * 1416 == sum(row["bytes"] for row in rows)
    assert report.summary["training_flops_per_token"] == 6 * 1032


def test_distinct_experts_as_measured(folder, tmp_path):
    """Layer 0 always takes experts 0 and 1; layer 1 takes 0 and 1 or 2 and 3 in turn.

    Four of eight different tokens miss an expert that four of them take in one of 70 draws.
    """
    chosen = [np.tile([[0, 1]], (8, 1)), np.tile([[0, 1], [2, 3]], (4, 1))]
    trace = save_trace(make_trace(chosen, 4), tmp_path / "trace")
    report = memory(folder, batch=4, traces=(str(trace),))
    assert report.summary["distinct_experts"] == pytest.approx((2 + 4 * 69 / 70) / 2)
    assert memory(folder, batch=4).summary["distinct_experts"] == pytest.approx(4 * (1 - 0.5**4))
    assumed = {row["assumption"]: row["value"] for row in report.table("assumptions").rows}
    assert assumed["choice of experts"] == "measured"
    rows = {row["batch"]: row for row in report.table("traffic").rows}
    assert list(rows) == [1, 4]  # the recording has eight tokens: it says nothing of larger batches
    assert memory(folder, batch=8, traces=(str(trace),)).summary["distinct_experts"] == pytest.approx(3)
    assert memory(folder, batch=9, traces=(str(trace),)).summary["distinct_experts"] is None
    with pytest.raises(MoetoolError, match="other layers or experts than demo"):
        memory("demo", traces=(str(trace),))


# Devices --------------------------------------------------------------------------------------------------------------


def test_devices_are_quiet_until_they_are_asked_for(folder):
    report, asked = memory(folder), memory(folder, gpus=2)
    assert not report.table("devices").is_shown
    assert report.table("devices").rows[0]["total_bytes"] == report.summary["device_bytes"]
    assert asked.table("devices").is_shown
    assert [row["rank"] for row in asked.table("devices").rows] == [0, 1]
    assert asked.summary["gpus"] == 2
    assert sum(row["routed_expert_bytes"] for row in asked.table("devices").rows) == 2 * 768


def test_a_model_that_fits(folder):
    report = memory(folder, gpu_memory="1GiB")
    assert codes(report)["fits"] == "info"
    assert (report.summary["fits"], report.summary["fewest_gpus"]) == (True, 1)
    assert report.summary["largest_context"] > CONTEXT
    assert report.summary["largest_batch"] > 1
    assert report.table("offload").rows == ()
    assert {row["device"] for row in report.table("device_map").rows} == {"0"}
    again = memory(folder, gpu_memory="1GiB", context=report.summary["largest_context"])
    assert again.summary["fits"] is True
    beyond = memory(folder, gpu_memory="1GiB", context=report.summary["largest_context"] + 1)
    assert beyond.summary["fits"] is False


def test_a_model_that_fits_with_experts_on_the_host():
    report = memory("mixtral-8x7b", gpu_memory="24GiB", context=4096)
    assert (codes(report)["does_not_fit"], codes(report)["offload"]) == ("warning", "info")
    assert report.findings[0].code == "does_not_fit"
    assert report.summary["fits"] is False
    assert report.summary["free_bytes"] < 0
    layers = report.summary["offloaded_bytes"] // (8 * 3 * 4096 * 14336 * 2)
    assert report.summary["offloaded_bytes"] % (8 * 3 * 4096 * 14336 * 2) == 0
    assert report.summary["bus_bytes_per_token"] == report.summary["offloaded_bytes"] * 2 // 8
    written = {row["what"]: row["value"] for row in report.table("offload").rows}
    assert written["llama.cpp"] == f"--n-cpu-moe {layers}"
    devices = [row["device"] for row in report.table("device_map").rows]
    assert devices.count("cpu") == layers
    assert report.summary["fewest_gpus"] > 1
    flags = {name: int(size) for name, size in re.findall(r"--(\w+) (\d+)", report.findings[0].message)}
    assert flags["gpus"] == report.summary["fewest_gpus"]
    assert memory("mixtral-8x7b", gpu_memory="24GiB", context=4096, **flags).summary["fits"] is True


def test_a_model_that_fits_nowhere():
    report = memory("mixtral-8x7b", gpu_memory="2GiB")
    assert codes(report)["offload_impossible"] == "warning"
    assert report.summary["offloaded_bytes"] is None


# Sources --------------------------------------------------------------------------------------------------------------


def test_headers_against_config(folder):
    report = report_memory(folder)
    (finding,) = [finding for finding in report.findings if finding.code == "header_against_config"]
    assert finding.level == "info"
    assert "1,416" in finding.message
    assert not report.table("sources").is_shown


def test_a_difference_that_nothing_explains(tmp_path):
    tensors = {name: kind for name, kind in mixtral_tensors().items() if not name.endswith("1.self_attn.q_proj.weight")}
    report = report_of(tmp_path, tensors)
    (row,) = report.table("sources").rows
    assert (row["role"], row["header_parameters"], row["config_parameters"]) == ("attention", 320, 384)
    assert (row["difference"], row["explanation"]) == (-64, "unexplained")
    assert report.summary["unexplained_parameters"] == 64
    assert report.summary["config_parameters"] == 1416
    assert codes(report)["header_against_config"] == "warning"


@pytest.mark.parametrize("layers", [1, 3])
def test_another_number_of_layers_is_an_explanation(tmp_path, layers):
    """Layers beyond the config's number are layers all the same: these have nothing of multi-token prediction."""
    report = report_of(tmp_path, num_hidden_layers=layers)
    assert report.summary["unexplained_parameters"] == report.summary["mtp_parameters"] == 0
    assert report.summary["total_parameters"] == 1416
    assert codes(report)["layers_differ_from_config"] == "warning"


def test_a_family_without_blueprint_is_counted_on_request(tmp_path):
    write_checkpoint(tmp_path, {**MIXTRAL, "model_type": "novel", "architectures": ["Novel"]}, mixtral_tensors())
    report = report_memory(str(tmp_path))
    assert report.summary["config_parameters"] is report.summary["unexplained_parameters"] is None
    assert report.summary["total_parameters"] == report.summary["stored_elements"] == 1416


# Beside another model, and what if ------------------------------------------------------------------------------------


def test_beside_another_model(folder):
    report = memory(folder, compare="mixtral-8x7b")
    rows = {row["key"]: row for row in report.table("compare").rows}
    row = rows["total_parameters"]
    assert (row["unit"], row["this"], row["other"]) == ("parameters", 1416, 46_702_792_704)
    assert row["difference"] == 1416 - 46_702_792_704
    assert row["ratio"] == 1416 / 46_702_792_704
    units = {column.key: column.unit for column in SUMMARY_COLUMNS}
    assert all(row["unit"] == units[key] for key, row in rows.items())
    assert "training_bytes" not in rows
    assert rows["unexplained_parameters"]["other"] is rows["unexplained_parameters"]["ratio"] is None
    assert "mixtral-8x7b" in report.table("compare").title
    assert codes(report)["compared"] == "info"
    assert report.findings[0].code == "compared"


def test_more_experts_are_capacity_and_no_compute():
    """Twice the experts of Mixtral: only the routers grow with them."""
    report = memory("mixtral-8x7b", changes=("num_local_experts=16",))
    rows = {row["key"]: row for row in report.table("compare").rows}
    router = 32 * 8 * 4096
    assert rows["experts"]["this"] == 16
    assert rows["experts"]["other"] == 8
    assert rows["total_parameters"]["difference"] == 45_097_156_608 + router
    assert rows["active_parameters"]["difference"] == router
    assert rows["flops_per_token"]["difference"] == 2 * router
    assert rows["flops_per_token"]["ratio"] == pytest.approx(1, abs=1e-3)
    assert rows["total_parameters"]["ratio"] > 1.9
    assert rows["kv_cache_bytes"]["difference"] == 0
    assert report.options["changes"] == ["num_local_experts=16"]
    assert "unchanged" in report.table("compare").title


def test_what_if_of_a_folder_counts_its_config(folder):
    report = memory(folder, changes=("num_experts_per_tok=1",))
    assert report.environment["source"] == "config"
    assert report.summary["active_parameters"] == 1032 - 2 * 96
    assert report.summary["total_parameters"] == 1416


TEXT = {"num_experts": 4, "hidden_size": 8, "rope": {"a": 1}}
NESTED = {"model_type": "outer", "hidden_size": 1, "text_config": TEXT}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("num_experts=8", {"text_config": {**TEXT, "num_experts": 8}}),
        ("hidden_size=2", {"hidden_size": 2, "text_config": {**TEXT, "hidden_size": 2}}),
        ("text_config.hidden_size=2", {"text_config": {**TEXT, "hidden_size": 2}}),
        ("text_config.rope.a=[1, null]", {"text_config": {**TEXT, "rope": {"a": [1, None]}}}),
        ('rope={"b": true}', {"text_config": {**TEXT, "rope": {"b": True}}}),
        (" model_type = a=b ", {"model_type": "a=b"}),
    ],
)
def test_changes_of_a_config(change, changed):
    before = json.dumps(NESTED)
    assert change_config(NESTED, [change]) == {**NESTED, **changed}
    assert json.dumps(NESTED) == before


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("num_expert=8", "the config has no num_expert", "num_experts"),
        ("text_config.hiden_size=8", "has no text_config.hiden_size", ""),
        ("vision_config.hidden_size=8", "has no vision_config.hidden_size", ""),
        ("num_experts", "is no key=value", "write --set"),
        ("=3", "is no key=value", "write --set"),
    ],
)
def test_changes_that_are_none(change, message, hint):
    with pytest.raises(MoetoolError) as caught:
        change_config(NESTED, [change])
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


# Presets, options and the command line --------------------------------------------------------------------------------


def test_a_preset(run):
    code, out, _ = run("mixtral-8x7b", "--json")
    assert code == 0
    summary = json.loads(out)["summary"]
    assert (summary["total_parameters"], summary["active_parameters"]) == (46_702_792_704, 12_879_925_248)
    assert summary["context_tokens"] == 32768


def test_a_folder_goes_before_a_preset_of_its_name(monkeypatch, tmp_path):
    write_checkpoint(tmp_path / "mixtral-8x7b", MIXTRAL, mixtral_tensors())
    assert report_memory("mixtral-8x7b").summary["total_parameters"] == 46_702_792_704
    monkeypatch.chdir(tmp_path)
    assert report_memory("mixtral-8x7b").summary["total_parameters"] == 1416


def test_contexts_are_counted_in_powers_of_two(run, folder):
    for text, tokens in {"128k": 131072, "4K": 4096, "1M": 2**20, "100": 100}.items():
        code, out, _ = run(folder, "--json", "--context", text)
        assert (code, json.loads(out)["summary"]["context_tokens"]) == (0, tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kv-dtype", "int3"], "--kv-dtype int3 is unknown"),
        (["--kv-policy", "hope"], "--kv-policy hope is unknown"),
        (["--training", "adam"], "--training adam is unknown"),
        (["--gpu-memory", "much"], "much"),
        (["--gpu-memory", "-3GiB"], "-3GiB"),
        (["--by", "colour"], "'colour' is not one of component, layer, dtype, tensor, expert"),
        (["--context", "12q"], "'12q' is no number of tokens"),
        (["--context", "0"], "--context"),
        (["--batch", "0"], "--batch"),
        (["--gpus", "3", "--tp", "2"], "3"),
        (["--redundant-experts", "2"], "redundant"),
        (["--set", "experts=3"], "the config has no experts"),
        (["--compare", "nowhere"], "no model 'nowhere'"),
        (["--trace", "nowhere"], "nowhere"),
        (["--fail-if", "total_byte > 3"], "did you mean total_bytes"),
        (["--fail-if", "total_bytes > 3 k"], "total_bytes is measured in bytes"),
    ],
)
def test_wrong_options(run, folder, tmp_path, arguments, message):
    target = tmp_path / "report.json"
    code, out, err = run(folder, "--save", target, *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "bug" not in err
    assert "Traceback" not in err
    assert not target.exists()


@pytest.mark.parametrize(
    ("expression", "failed"),
    [
        ("total_bytes > 2 KiB", True),
        ("total_bytes > 1 GiB", False),
        ("kv_cache_bytes >= 4 MiB", True),
        ("flops_per_token > 8 M", True),
        ("flops_per_token > 0.01 G", False),
        ("prefill_flops > 500 G", True),
        ("prefill_flops > 1 T", False),
        ("sparsity > 70 %", True),
        ("fits == 0", False),
        ("fits == 1", True),
        ("largest_context < 128 k", False),
        ("training_bytes > 0", True),
        ("gpus > 1", False),
    ],
)
def test_checks(run, folder, expression, failed):
    code, out, _ = run(folder, "--json", "--gpu-memory", "1GiB", "--fail-if", expression)
    assert code == failed
    assert json.loads(out)["checks"][0]["failed"] is failed


FLAGS = [
    [], ["--gpus", "2"], ["--gpu-memory", "1GiB"], ["--training", "adamw"], ["--by", "tensor", "--by", "expert"],
    ["--compare", "mixtral-8x7b"], ["--set", "num_experts_per_tok=1"],
]  # fmt: skip


def test_flags_do_not_change_the_shape(run, folder):
    reports = [json.loads(run(folder, "--json", *flags)[1]) for flags in FLAGS]
    for report in reports:
        assert list(report["summary"]) == [column.key for column in SUMMARY_COLUMNS]
        assert list(report["tables"]) == list(reports[0]["tables"])
    settings = [{}, {"gpus": 2}, {"gpu_memory": "1GiB"}, {"training": "sgd"}, {"by": ("tensor",)}, {"compare": "demo"}]
    tables = [memory(folder, **some).tables for some in settings]
    shapes = [[(table.key, [column.key for column in table.columns]) for table in found] for found in tables]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("breakdown", ["component", "layer", "dtype", "tensor", "expert"])
def test_breakdowns_of_the_text(folder, breakdown):
    keys = {
        "component": "components", "layer": "layers", "dtype": "dtypes", "tensor": "tensors", "expert": "experts",
    }  # fmt: skip
    report = memory(folder, by=(breakdown,))
    shown = {key for key in keys.values() if report.table(key).is_shown}
    assert shown == {keys[breakdown]}
    usual = {key for key in keys.values() if report_memory(folder).table(key).is_shown}
    assert usual == {"components", "layers", "dtypes"}
    assert len(report.table("components").rows) == 6


def test_rows_by_tensor_and_by_expert(folder):
    report = memory(folder, by=("tensor", "expert"))
    rows = {row["tensor"]: row for row in report.table("tensors").rows}
    assert rows["model.layers.1.block_sparse_moe.experts.3.w2.weight"] == {
        "tensor": "model.layers.1.block_sparse_moe.experts.3.w2.weight", "role": "routed_experts", "layer": 1,
        "expert": 3, "parameters": 32, "bytes": 64, "dtype": "BF16", "scheme": None, "file": "model.safetensors",
    }  # fmt: skip
    assert len(rows) == len(mixtral_tensors())
    assert [(row["layer"], row["expert"]) for row in report.table("experts").rows] == [
        (layer, expert) for layer in range(2) for expert in range(4)
    ]
    assert {row["parameters"] for row in report.table("experts").rows} == {96}


def test_every_preset_is_a_report():
    for name in PRESETS:
        report = report_memory(name)
        report.verify()
        assert "warning" not in codes(report).values(), name
        assert all(value is not None for value in list(report.summary.values())[:7]), name
        assert bool(report.summary["mtp_parameters"]) == ("mtp_not_planned" in codes(report)), name


def test_multi_token_prediction_of_a_config():
    """The 62nd layer of the published DeepSeek-V3 holds 11,610,067,968 parameters: see test_memory_published.py."""
    assert report_memory("deepseek-v3").summary["mtp_parameters"] == 11_610_067_968
    assert report_memory("kimi-k2").summary["mtp_parameters"] == 0  # its config says none


def test_multi_token_prediction_that_is_not_known(tmp_path):
    write_checkpoint(tmp_path, {**MIXTRAL, "num_nextn_predict_layers": 2}, mixtral_tensors())
    assert report_memory(str(tmp_path)).summary["mtp_parameters"] == 0
    planned = report_memory(str(tmp_path / "config.json"))
    assert planned.summary["mtp_parameters"] is None
    assert "2 layers" in next(f.message for f in planned.findings if f.code == "mtp_not_planned")


def test_a_subject_knows_where_its_numbers_come_from(folder):
    from moetool.commands.memory import find_model

    assert make_subject(find_model(folder), MemorySettings()).facts.source == "header"
    assert make_subject(find_model("gpt-oss-20b"), MemorySettings()).facts.source == "config"


@pytest.mark.parametrize("arguments", [["FOLDER"], ["mixtral-8x7b"], ["FOLDER", "mixtral-8x7b"]])
def test_no_heavy_imports(folder, arguments):
    """A folder, a preset, and a folder beside a preset."""
    script = (
        "import sys; from moetool.commands.memory import report_memory; "
        "from moetool.commands.memory_section import MemorySettings; "
        "report_memory(sys.argv[1], settings=MemorySettings(compare=(sys.argv[2:] or [None])[0])); "
        "print(*({'torch', 'transformers', 'pandas', 'matplotlib', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    names = [folder if name == "FOLDER" else name for name in arguments]
    result = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_a_family_that_transformers_does_not_have():
    """DeepSeekMoE 16B: 16.4 B, of which 2.8 B active (arXiv:2401.06066); the facts are those of its config."""
    config = {
        "model_type": "deepseek", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    subject = make_subject(Checkpoint("d", None, config, (), None), MemorySettings(context=4096))
    summary = build_report(subject, {}).summary
    # per layer: attention 4 x 2048^2, two norms; layer 0 dense; 27 x (64 + 2 experts of 3 x 2048 x 1408, router)
    attention, expert = 4 * 2048**2 + 2 * 2048, 3 * 2048 * 1408
    total = 2 * 102400 * 2048 + 2048 + 28 * attention + 3 * 2048 * 10944 + 27 * (66 * expert + 64 * 2048)
    assert summary["total_parameters"] == total == 16_375_728_128
    assert summary["active_parameters"] == total - 27 * 58 * expert
    assert summary["kv_cache_bytes"] == 28 * 2 * 2048 * 2 * 4096
