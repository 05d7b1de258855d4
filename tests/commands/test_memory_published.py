"""``moetool memory`` on headers as they are published: every number by arithmetic that knows nothing of the program."""

import json
import subprocess
import sys
from math import prod

import pytest

from moetool.commands.memory import report_memory
from moetool.commands.memory_section import MemorySettings
from tests import published
from tests.published import data_bytes, with_quantization
from tests.stored import write_checkpoint

BREAKDOWNS = MemorySettings(by=("tensor", "expert"))


def report_of(tmp_path, config, tensors, shards=1):
    """The report of a checkpoint, after all that holds for every one of them."""
    folder = write_checkpoint(tmp_path / "model", config, tensors, shards)
    report = report_memory(str(folder), settings=BREAKDOWNS)
    report.verify()
    check_sums(report, tensors, data_bytes(folder))
    return report


def check_sums(report, tensors, stored):
    """Components, tensors and experts add up to the files; every difference to the config has a reason."""
    summary = report.summary
    components = {row["role"]: row for row in report.table("components").rows}
    assert stored == summary["total_bytes"] == sum(row["bytes"] for row in components.values())
    assert "other" not in components
    assert summary["total_parameters"] == sum(row["parameters"] for role, row in components.items() if role != "mtp")
    assert sum(row["bytes"] for row in report.table("dtypes").rows) == stored
    assert summary["unexplained_parameters"] in (0, None)
    explained = sum(row["difference"] for row in report.table("sources").rows if row["role"] != "mtp")
    if summary["config_parameters"] is not None:
        assert summary["total_parameters"] - summary["config_parameters"] == explained
    rows = report.table("tensors").rows
    assert [row["tensor"] for row in rows] == sorted(tensors) or {row["tensor"] for row in rows} == set(tensors)
    assert sum(row["bytes"] for row in rows) == stored
    assert sum(row["parameters"] for row in rows) == summary["total_parameters"] + summary["mtp_parameters"]
    experts = report.table("experts").rows
    count = {row["layer"]: row["experts"] for row in report.table("layers").rows}
    copies = [1 if row["expert"] is not None else count[row["layer"]] for row in experts]
    routed = [row for row in rows if ".experts." in row["tensor"] or "_linear." in row["tensor"]]
    routed = [row for row in routed if row["layer"] in count and count[row["layer"]]]
    total = sum(row["parameters"] * n for row, n in zip(experts, copies, strict=True))
    assert total == summary["routed_expert_parameters"] == sum(row["parameters"] for row in routed)
    assert sum(row["bytes"] * n for row, n in zip(experts, copies, strict=True)) == sum(row["bytes"] for row in routed)


def roles(report, what="parameters"):
    return {row["role"]: row[what] for row in report.table("components").rows}


def schemes(report):
    """The schemes that occur, by role."""
    found = {}
    for row in report.table("tensors").rows:
        if row["scheme"]:
            found.setdefault(row["role"], set()).add(row["scheme"])
    return found


def codes(report):
    return {finding.code: finding.level for finding in report.findings}


def test_deepseek_v3_in_fp8(tmp_path):
    """671.026 B, of which 37.552 B are active; with the 14.1 B of its extra layer the 685 B of its model page."""
    model = published.deepseek_v3()
    report = report_of(tmp_path, model.config, model.tensors(published.fp8_blocks), shards=163)
    hidden, table = 7168, 129280 * 7168
    latent = [(1536, hidden), (24576, 1536), (576, hidden), (32768, 512), (hidden, 16384)]
    attention, norms = sum(map(prod, latent)), 1536 + 512
    expert, router = 3 * hidden * 2048, 256 * hidden
    dense = 3 * 3 * hidden * 18432
    moe = 257 * expert + router
    layer = attention + norms + 2 * hidden
    total = 61 * layer + 58 * moe + dense + 2 * table + hidden
    active = total - 58 * 248 * expert
    mtp = layer + moe + 3 * hidden + 2 * hidden * hidden
    assert (round(total / 1e9, 3), round(active / 1e9, 3), round(mtp / 1e9, 3)) == (671.026, 37.552, 11.610)
    summary = report.summary
    assert summary["total_parameters"] == summary["config_parameters"] == total
    assert summary["active_parameters"] == active
    assert summary["active_parameters_no_embedding"] == active - table
    assert summary["mtp_parameters"] == mtp
    biases = 59 * 256
    assert summary["stored_elements"] == total + mtp + 2 * table + biases
    assert f"{summary['stored_elements'] / 1e9:.3f}" == "684.490"
    assert (summary["moe_layers"], summary["experts"], summary["experts_per_token"]) == (58, 256, 8)
    assert roles(report) == {
        "routed_experts": 58 * 256 * expert, "shared_experts": 58 * expert, "router": 58 * router, "dense_ffn": dense,
        "attention": 61 * (attention + norms), "norm": (61 * 2 + 1) * hidden, "embedding": table, "lm_head": table,
        "mtp": mtp, "quantization": 0,
    }  # fmt: skip
    blocks = sum(-(-rows // 128) * (-(-columns // 128)) for rows, columns in latent)
    blocks = 62 * blocks + 59 * 257 * 3 * 16 * 56 + 3 * 3 * 56 * 144
    assert roles(report, "bytes")["quantization"] == 4 * blocks
    eights = 62 * attention + 59 * 257 * expert + dense
    halves = 4 * table + 59 * router + 62 * (norms + 2 * hidden) + hidden + 3 * hidden + 2 * hidden * hidden
    assert summary["total_bytes"] == eights + 2 * halves + 4 * biases + 4 * blocks
    assert set(schemes(report)) == {"routed_experts", "shared_experts", "dense_ffn", "attention", "mtp"}
    assert set.union(*schemes(report).values()) == {"fp8 blocks"}
    (row,) = report.table("sources").rows
    assert (row["role"], row["difference"]) == ("mtp", mtp)
    assert "which transformers does not build" in row["explanation"]
    expected = {"mtp_apart", "copies", "correction_biases", "quantization_bytes", "header_against_config"}
    assert expected <= set(codes(report))
    assert "warning" not in codes(report).values()


@pytest.mark.parametrize(
    ("layers", "experts", "total", "active", "size"),
    [(36, 128, 116.829, 5.133, 65_248_815_744), (24, 32, 20.915, 3.608, 13_761_264_768)],
)
def test_gpt_oss_in_mxfp4(tmp_path, layers, experts, total, active, size):
    """Published: 116.83 B with 5.13 B active and 20.91 B with 3.61 B active, without the embedding."""
    model = published.gpt_oss(layers, experts)
    report = report_of(tmp_path, model.config, model.tensors(published.bf16), shards=3)
    hidden, table = 2880, 201088 * 2880
    weights = 3 * hidden * hidden
    expert = weights + 3 * hidden
    attention = 2 * 4096 * hidden + 2 * 512 * hidden + 4096 + 2 * 512 + hidden + 64
    router = experts * (hidden + 1)
    count = layers * (experts * expert + attention + router + 2 * hidden) + 2 * table + hidden
    used = count - layers * (experts - 4) * expert - table
    summary = report.summary
    assert (summary["total_parameters"], summary["active_parameters_no_embedding"]) == (count, used)
    assert (round(count / 1e9, 3), round(used / 1e9, 3)) == (total, active)
    scales = layers * experts * weights // 32
    assert roles(report, "bytes")["quantization"] == scales
    assert summary["total_bytes"] == size
    assert size == 2 * (count - layers * experts * weights) + layers * experts * weights // 2 + scales
    assert roles(report)["routed_experts"] == layers * experts * expert
    assert schemes(report) == {"routed_experts": {"mxfp4"}}
    assert summary["config_parameters"] == count
    assert report.table("sources").rows == ()
    assert {row["expert"] for row in report.table("experts").rows} == {None}


def qwen3_total():
    expert = 3 * 2048 * 768
    attention = 2 * 2048 * 4096 + 2 * 512 * 2048
    rest = 48 * (2 * 128 + 128 * 2048 + 2 * 2048) + 2 * 151936 * 2048 + 2048
    return expert, attention, rest, 48 * (128 * expert + attention) + rest


def test_qwen3_in_nvfp4(tmp_path):
    model = published.qwen3_30b()
    config = with_quantization(model.config, quant_method="modelopt", quant_algo="NVFP4")
    report = report_of(tmp_path, config, model.tensors(published.nvfp4_modelopt), shards=4)
    expert, attention, rest, total = qwen3_total()
    assert total == 30_532_122_624 == report.summary["total_parameters"]
    assert report.summary["active_parameters"] == total - 48 * 120 * expert == 3_353_032_704
    packed = 48 * (128 * expert + attention)
    matrices = 48 * (128 * 3 + 4)
    scales = packed // 16 + 4 * (2 * matrices + 2 * 48)
    assert roles(report, "bytes")["quantization"] == scales
    assert report.summary["total_bytes"] == packed // 2 + scales + 2 * rest
    assert schemes(report) == {"routed_experts": {"nvfp4"}, "attention": {"nvfp4"}}
    assert report.table("sources").rows == ()


def aids(matrix):
    """Of a scheme: bytes beside the packed parameters, as a function of rows and columns of a matrix."""
    return sum(matrix(rows, columns) * count for rows, columns, count in MIXTRAL_MATRICES)


MIXTRAL_MATRICES = [(4096, 4096, 64), (1024, 4096, 64), (14336, 4096, 512), (4096, 14336, 256)]
MIXTRAL_TOTAL, MIXTRAL_ACTIVE = 46_702_792_704, 12_879_925_248
PACKED = sum(rows * columns * count for rows, columns, count in MIXTRAL_MATRICES)
FOUR_BITS = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
"""Of compressed-tensors."""
SCHEMES = {
    "awq": (published.awq, {"quant_method": "awq", "bits": 4}, 4, lambda r, c: r * c // 256 + r * c // 64),
    "awq, w_bit": (published.awq, {"quant_method": "awq", "w_bit": 4}, 4, lambda r, c: r * c // 256 + r * c // 64),
    "gptq 4": (
        published.gptq(4, True), {"quant_method": "gptq", "bits": 4, "desc_act": True}, 4,
        lambda r, c: r * c // 256 + r * c // 64 + 4 * c,
    ),
    "gptq 8": (
        published.gptq(8, True), {"quant_method": "gptq", "bits": 8, "desc_act": True}, 8,
        lambda r, c: r * c // 128 + r * c // 64 + 4 * c,
    ),
    "gptq 4, no order": (
        published.gptq(4, False), {"quant_method": "gptq", "bits": 4, "desc_act": False}, 4,
        lambda r, c: r * c // 256 + r * c // 64,
    ),
    "gptq 8, no order": (
        published.gptq(8, False), {"quant_method": "gptq", "bits": 8, "desc_act": False}, 8,
        lambda r, c: r * c // 128 + r * c // 64,
    ),
    "compressed-tensors": (
        published.pack_quantized, {"quant_method": "compressed-tensors", "format": "pack-quantized", **FOUR_BITS}, 4,
        lambda r, c: r * c // 64 + 16,
    ),
    "nvfp4": (
        published.nvfp4_pack_quantized,
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", **FOUR_BITS}, 4,
        lambda r, c: r * c // 16 + 8,
    ),
    "bitsandbytes": (
        published.nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4,
        lambda r, c: r * c // 64 + 4 * (r * c // 64 // 256) + 4 * 16 + 4 * 256 + 92,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_mixtral_in_many_schemes(tmp_path, name):
    store, settings, bits, beside = SCHEMES[name]
    model = published.mixtral()
    report = report_of(tmp_path, with_quantization(model.config, **settings), model.tensors(store), shards=2)
    summary = report.summary
    assert (summary["total_parameters"], summary["active_parameters"]) == (MIXTRAL_TOTAL, MIXTRAL_ACTIVE)
    assert roles(report, "bytes")["quantization"] == aids(beside)
    plain = MIXTRAL_TOTAL - PACKED
    assert summary["total_bytes"] == PACKED * bits // 8 + aids(beside) + 2 * plain
    scheme = name.split(",")[0].split(" ")[0]
    assert schemes(report) == {"routed_experts": {scheme}, "attention": {scheme}}
    assert summary["config_parameters"] == MIXTRAL_TOTAL
    assert report.table("sources").rows == ()
    assert codes(report)["quantization_bytes"] == "info"


def test_matrices_that_a_scheme_leaves_out(tmp_path):
    """Attention stays in bfloat16, as many quantisers leave it; bits come from the config alone."""
    model = published.mixtral(2)
    keep = ("q_proj", "k_proj", "v_proj", "o_proj")
    config = with_quantization(model.config, quant_method="gptq", bits=8)
    report = report_of(tmp_path, config, model.tensors(published.gptq(8, False), keep=keep))
    assert schemes(report) == {"routed_experts": {"gptq"}}
    assert roles(report)["attention"] == 2 * (2 * 4096 * 4096 + 2 * 1024 * 4096)
    assert roles(report)["routed_experts"] == 2 * 8 * 3 * 4096 * 14336


def mxfp4_by_quark(name, rows, columns):
    return {f"{name}.weight": ("U8", [rows, columns // 2]), f"{name}.weight_scale": ("U8", [rows, columns // 32])}


def fp4_of_deepseek(name, rows, columns):
    return {f"{name}.weight": ("I8", [rows, columns // 2]), f"{name}.scale": ("F8_E8M0", [rows, columns // 32])}


def int8(name, rows, columns):
    return {f"{name}.weight": ("I8", [rows, columns]), f"{name}.weight_scale": ("BF16", [rows, 1])}


def int8_of_bitsandbytes(name, rows, columns):
    return {
        f"{name}.weight": ("I8", [rows, columns]), f"{name}.SCB": ("F32", [rows]), f"{name}.weight_format": ("U8", []),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("store", "scheme"),
    [
        (mxfp4_by_quark, "mxfp4"),
        (fp4_of_deepseek, "mxfp4"),
        (int8, "int8"),
        (int8_of_bitsandbytes, "int8"),
        (published.fp8_tensor, "fp8"),
    ],
)
def test_schemes_told_by_the_tensors_alone(tmp_path, store, scheme):
    model = published.mixtral(1)
    report = report_of(tmp_path, model.config, model.tensors(store))
    assert schemes(report) == {"routed_experts": {scheme}, "attention": {scheme}}
    assert roles(report)["routed_experts"] == 8 * 3 * 4096 * 14336


def test_fused_experts_in_nvfp4(tmp_path):
    """Scales of fused experts are named after the matrix: there is no component ``weight``."""
    model = published.gpt_oss(1, 4)
    tensors = {name: kind for name, kind in model.plain.items() if not name.endswith(("_blocks", "_scales"))}
    for name, rows in (("gate_up_proj", 5760), ("down_proj", 2880)):
        stem = f"model.layers.0.mlp.experts.{name}"
        tensors |= {
            stem: ("U8", [4, rows, 1440]),
            f"{stem}_weight_scale": ("F8_E4M3", [4, rows, 180]),
            f"{stem}_weight_scale_2": ("F32", [4]),
            f"{stem}_input_scale": ("F32", [4]),
        }
    report = report_of(tmp_path, {**model.config, "num_hidden_layers": 1, "num_local_experts": 4}, tensors)
    assert schemes(report) == {"routed_experts": {"nvfp4"}}
    assert roles(report)["routed_experts"] == 4 * (3 * 2880 * 2880 + 3 * 2880)


def test_granite_fuses_without_a_component_experts(tmp_path):
    model = published.granite()
    report = report_of(tmp_path, model.config, model.tensors(published.bf16))
    expert, hidden = 3 * 1536 * 512, 1536
    rest = 32 * (2 * hidden * hidden + 2 * 512 * hidden + 40 * hidden + 2 * hidden) + 49155 * hidden + hidden
    summary = report.summary
    assert summary["total_parameters"] == rest + 32 * 40 * expert
    assert summary["active_parameters"] == rest + 32 * 8 * expert
    assert summary["total_bytes"] == 2 * summary["total_parameters"]
    assert (summary["moe_layers"], summary["experts"], summary["experts_per_token"]) == (32, 40, 8)
    assert schemes(report) == {}
    assert report.table("sources").rows == ()
    assert codes(report)["tied_head"] == "info"


def test_a_tower_beside_the_decoder(tmp_path):
    model = published.qwen3_vl()
    report = report_of(tmp_path, model.config, model.tensors(published.bf16), shards=2)
    expert, _, _, total = qwen3_total()
    wide = 1152
    block = 4 * wide * (wide + 1) + 2 * wide * 4304 + 4304 + wide + 4 * wide
    inner = 4 * wide
    mergers = 4 * (inner * inner + inner + 2048 * inner + 2048) + 2 * wide + 3 * 2 * inner
    tower = wide * (3 * 2 * 256 + 1) + 2304 * wide + 27 * block + mergers
    assert roles(report)["vision"] == tower
    assert report.summary["total_parameters"] == total + tower
    assert report.summary["active_parameters"] == total - 48 * 120 * expert
    assert (report.summary["moe_layers"], report.summary["experts"]) == (48, 128)
    assert codes(report)["towers_inactive"] == "info"
    if report.summary["config_parameters"] is not None:
        assert {row["role"] for row in report.table("sources").rows} <= {"vision"}


def test_a_hybrid_with_one_mixer_per_layer(tmp_path):
    model = published.nemotron_h()
    report = report_of(tmp_path, model.config, model.tensors(published.bf16), shards=3)
    hidden, expert, inner, convolved = 2688, 2 * 2688 * 1856, 4096, 6144
    mamba = (inner + convolved + 64) * hidden + hidden * inner + 5 * convolved + 3 * 64 + inner
    attention = 2 * 4096 * hidden + 2 * 256 * hidden
    pattern = model.config["hybrid_override_pattern"]
    assert [pattern.count(kind) for kind in "M*E"] == [23, 6, 23]
    total = 2 * 131072 * hidden + 53 * hidden + 23 * mamba + 6 * attention + 23 * (128 * hidden + 130 * expert)
    assert report.summary["total_parameters"] == total
    assert report.summary["active_parameters"] == total - 23 * 122 * expert
    assert report.summary["total_bytes"] == 2 * total + 4 * 23 * 128
    assert report.summary["stored_elements"] == total + 23 * 128
    assert report.summary["shared_expert_parameters"] == 23 * 2 * expert
    kinds = {row["layer"]: row["kind"] for row in report.table("layers").rows}
    assert [kinds[layer] == "moe" for layer in range(52)] == [kind == "E" for kind in pattern]
    assert {row["kind"]: row["layers"] for row in report.table("cache_kinds").rows} == {"mamba": 23, "full": 6}
    assert "mixers_missing" not in codes(report)
    assert report.table("sources").rows == ()


def test_ragged_experts_of_mixed_precision(tmp_path):
    """Expert 1 is half as wide and layers keep 8, 7, 6 and 5 experts in three types: all is told by the tensors."""
    model, tensors = published.ragged()
    report = report_of(tmp_path, with_quantization(model.config, quant_method="awq", bits=4), tensors)
    whole, half = 3 * 4096 * 14336, 3 * 4096 * 7168
    layers = [(count, (count - 1) * whole + half) for count in (8, 7, 6, 5)]
    rest = 2 * 32000 * 4096 + 4096 + 4 * (2 * 4096 + 2 * 4096 * 4096 + 2 * 1024 * 4096) + 26 * 4096
    summary = report.summary
    assert summary["total_parameters"] == rest + sum(size for _, size in layers)
    assert summary["active_parameters"] == rest + sum(size * 2 // count for count, size in layers)
    assert summary["experts"] is None
    sizes = {(row["layer"], row["expert"]): row for row in report.table("experts").rows}
    assert len(sizes) == 26
    for (_, expert), row in sizes.items():
        parameters = half if expert == 1 else whole
        packed = parameters // 2 + parameters // 256 + parameters // 64
        assert row["parameters"] == parameters
        assert row["bytes"] == (packed if expert % 2 else 2 * parameters if expert in (0, 4) else parameters + 24)
        assert row["dtypes"] == ("F16 I32" if expert % 2 else "BF16" if expert in (0, 4) else "F32 F8_E4M3")
    assert schemes(report) == {"routed_experts": {"awq", "fp8"}}
    assert {row["explanation"] for row in report.table("sources").rows} == {
        "26 experts are stored, the config means 32"
    }
    assert codes(report)["experts_differ"] == "warning"
    assert codes(report)["layers_differ"] == "info"


def test_on_the_command_line(tmp_path):
    model = published.gpt_oss(36, 128)
    folder = write_checkpoint(tmp_path / "gpt-oss-120b", model.config, model.tensors(published.bf16), shards=15)
    command = [sys.executable, "-m", "moetool", "memory", str(folder), "--json", "--by", "tensor"]
    result = subprocess.run(
        [*command, "--fail-if", "total_bytes != 65248815744 B"], capture_output=True, text=True, check=True
    )
    report = json.loads(result.stdout)
    assert report["summary"]["total_parameters"] == 116_829_156_672
    assert report["summary"]["unexplained_parameters"] == 0
    assert sum(row["bytes"] for row in report["tables"]["tensors"]) == 65_248_815_744
    assert report["checks"][0]["failed"] is False
