"""The numbers of quantised weights, by their definitions and as the formats' own libraries compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moetool.capture import dequantize as numbers
from moetool.capture import quantized
from moetool.capture.dequantize import Layout, dequantize
from moetool.checkpoint.types import Checkpoint, TensorInfo
from tests import quantized_checkpoints as q
from tests.quantized_cases import CASES


def test_rows_at_a_time_make_no_difference(monkeypatch):
    torch.manual_seed(0)
    stored, scales, meant = q.fp8(torch.randn(37, 45), 16, 16)
    parts, layout = {"weight": stored, "scale": scales}, Layout("plain", (16, 16))
    for chunk in (1, 100, 45 * 5, 1 << 20):
        monkeypatch.setattr(numbers, "_CHUNK", chunk)
        assert torch.equal(dequantize(parts, layout, torch.float32), meant)


def test_experts_in_one_tensor():
    torch.manual_seed(0)
    single = [q.fp8(torch.randn(20, 36), 16, 16) for _ in range(3)]
    parts = {"weight": torch.stack([s[0] for s in single]), "scale": torch.stack([s[1] for s in single])}
    assert torch.equal(dequantize(parts, Layout("plain", (16, 16)), torch.float32), torch.stack([s[2] for s in single]))


def test_all_bytes_of_powers_and_fp4():
    scales = torch.arange(256, dtype=torch.uint8)[:, None]
    ones = torch.full((256, 16), 0x22, dtype=torch.uint8)  # 1.0 in both halves
    found = dequantize({"weight": ones, "scale": scales}, Layout("fp4", (1, 32)), torch.float32)
    assert found.shape == (256, 32)
    np.testing.assert_array_equal(found[:255, 0].double().numpy(), 2.0 ** (np.arange(255) - 127.0))
    assert found[255].isnan().all()
    codes = torch.arange(256, dtype=torch.uint8)[None]
    found = dequantize({"weight": codes, "scale": torch.ones(1, 1)}, Layout("fp4", (0, 0)), torch.float32)
    np.testing.assert_array_equal(found[0, 0::2].numpy(), q.FP4[np.arange(256) % 16])
    np.testing.assert_array_equal(found[0, 1::2].numpy(), q.FP4[np.arange(256) // 16])


LIBRARY = [name for name, case in CASES.items() if case[2]["quant_method"] == "compressed-tensors" and name != "mixed"]


@pytest.mark.parametrize("case", [name for name in LIBRARY if name != "int4 ordered"])
def test_numbers_are_those_of_compressed_tensors(case):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    torch.manual_seed(0)
    stored, _ = CASES[case][1]("q_proj.weight", torch.randn(24, 64))
    settings = CASES[case][2]
    scheme = QuantizationScheme(**settings["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    expected = compressor.decompress({name[1:]: tensor for name, tensor in stored.items()}, scheme)["weight"]
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}
    tensors = [
        TensorInfo(f"q_proj{name}", names.get(t.dtype, "F32"), tuple(t.shape), t.nbytes, "f")
        for name, t in stored.items()
    ]
    checkpoint = Checkpoint("m", None, {"quantization_config": settings}, tuple(tensors), None)
    weight = quantized.stored_weights(checkpoint)["q_proj.weight"]
    found = quantized.open_weight(weight, lambda name: stored[name.removeprefix("q_proj")]).to("cpu", torch.bfloat16)
    assert torch.equal(found, expected.bfloat16())


def test_numbers_are_those_of_transformers(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    stored, scales, _ = q.fp8(torch.randn(32, 64), 16, 16)
    expected = Fp8Dequantize(None)._dequantize_one(stored, scales, torch.bfloat16)
    found = dequantize({"weight": stored, "scale": scales}, Layout("plain", (16, 16)), torch.bfloat16)
    assert torch.equal(found, expected)

    experts, _ = q.gpt_oss_experts(torch.randn(3, 64, 24))
    expected = convert_moe_packed_tensors(experts["_blocks"], experts["_scales"], dtype=torch.bfloat16)
    layout = Layout("fp4", (1, 32), split=True, transposed=True)
    found = dequantize({"weight": experts["_blocks"], "scale": experts["_scales"]}, layout, torch.bfloat16)
    assert torch.equal(found, expected)
