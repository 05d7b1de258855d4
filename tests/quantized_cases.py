"""Published formats of quantised checkpoints: family, what is stored, ``quantization_config`` and sizes."""

from __future__ import annotations

import torch

from tests import quantized_checkpoints as q


def every_linear(quantise):
    return lambda name, weight: quantise(weight) if q.is_linear(name) else None


def group(targets=("Linear",), **weights):
    return {"targets": list(targets), "weights": {"symmetric": True, "dynamic": False, **weights}}


def compressed(layout, *groups, **more):
    groups = {f"group_{index}": entry for index, entry in enumerate(groups)}
    settings = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": ["lm_head"]}
    return settings | more


def mixed(name, weight):
    if not q.is_linear(name):
        return None
    return (q.compressed_packed(8, 4) if ".experts." in name else q.compressed_fp8(1, 0))(weight)


INT = {"type": "int", "num_bits": 4}
FLOAT = {"type": "float", "num_bits": 8}
ATTENTION, EXPERTS = ("re:.*self_attn.*", "re:.*shared_expert.*"), ("re:.*mlp.experts.*",)
ODD = {"moe_intermediate_size": 20, "dtype": torch.float32}
"""The last word of a row is half empty; torch multiplies no bfloat16 matrices of this width."""
WIDE = {"hidden_size": 64, "intermediate_size": 64}
MODELOPT = {"quant_method": "modelopt"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
NVFP4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
CASES = {
    "deepseek blocks": (
        "deepseek_v3",
        every_linear(q.deepseek_block),
        {**FP8, "weight_block_size": [16, 16]},
        {"moe_intermediate_size": 40},
    ),
    "minimax blocks": ("minimax_m2", every_linear(q.deepseek_block), {**FP8, "weight_block_size": [16, 16]}, {}),
    "fp8 per tensor": ("qwen3_moe", every_linear(q.fp8_tensor), {**FP8, "weight_block_size": None}, {}),
    "mxfp8": ("qwen3_moe", every_linear(q.mxfp8), {"quant_method": "mxfp8", "weight_block_size": [1, 32]}, {}),
    "deepseek v4": (
        "deepseek_v3",
        every_linear(q.deepseek_v4),
        {**FP8, "scale_fmt": "ue8m0", "weight_block_size": [16, 16]},
        {"moe_intermediate_size": 32},
    ),
    "gpt-oss": (
        "gpt_oss",
        lambda name, weight: q.gpt_oss_experts(weight) if name.endswith(("gate_up_proj", "down_proj")) else None,
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        WIDE,
    ),
    "int4 groups": (
        "deepseek_v3",
        every_linear(q.compressed_packed(8, 4)),
        compressed("pack-quantized", group(**INT, strategy="group", group_size=8)),
        {},
    ),
    "int4 groups with zero points": (
        "qwen3_moe",
        every_linear(q.compressed_packed(8, 4, asymmetric=True)),
        compressed("pack-quantized", group(**{**INT, "symmetric": False}, strategy="group", group_size=8)),
        {},
    ),
    "int4 channels, odd width": (
        "qwen3_moe",
        every_linear(q.compressed_packed(0, 4)),
        compressed("pack-quantized", group(**INT, strategy="channel")),
        ODD,
    ),
    "int4 channels with zero points": (
        "qwen3_moe",
        every_linear(q.compressed_packed(0, 4, asymmetric=True)),
        compressed("pack-quantized", group(**{**INT, "symmetric": False}, strategy="channel")),
        ODD,
    ),
    "packed int8": (
        "qwen3_moe",
        every_linear(q.compressed_packed(8, 8)),
        compressed("pack-quantized", group(type="int", num_bits=8, strategy="group", group_size=8)),
        {},
    ),
    "int4 ordered": (
        "qwen3_moe",
        every_linear(q.compressed_ordered),
        compressed("pack-quantized", group(**INT, strategy="group", group_size=8, actorder="group")),
        {},
    ),
    "int8": (
        "qwen3_moe",
        every_linear(q.compressed_int8(False)),
        compressed("int-quantized", group(type="int", num_bits=8, strategy="channel")),
        {},
    ),
    "int8 with zero points": (
        "qwen3_moe",
        every_linear(q.compressed_int8(True)),
        compressed("int-quantized", group(type="int", num_bits=8, strategy="channel", symmetric=False)),
        {},
    ),
    "float per tensor": (
        "qwen3_moe",
        every_linear(q.compressed_fp8(0, 0)),
        compressed("float-quantized", group(**FLOAT, strategy="tensor")),
        {},
    ),
    "float per channel": (
        "deepseek_v3",
        every_linear(q.compressed_fp8(1, 0)),
        compressed("float-quantized", group(**FLOAT, strategy="channel"), quantization_status="frozen"),
        {},
    ),
    "float blocks": (
        "deepseek_v3",
        every_linear(q.compressed_fp8(16, 16)),
        compressed("float-quantized", group(**FLOAT, strategy="block", block_structure=[16, 16])),
        {"moe_intermediate_size": 40},
    ),
    "compressed mxfp8": (
        "qwen3_moe",
        every_linear(q.compressed_mxfp8),
        compressed("mxfp8-quantized", group(**FLOAT, strategy="group", group_size=32, scale_dtype="torch.uint8")),
        {},
    ),
    "compressed nvfp4": (
        "qwen3_moe",
        every_linear(q.compressed_nvfp4),
        compressed("nvfp4-pack-quantized", group(**NVFP4)),
        {},
    ),
    "compressed mxfp4": (
        "qwen3_moe",
        every_linear(q.compressed_mxfp4),
        compressed("mxfp4-pack-quantized", group(type="float", num_bits=4, strategy="group", group_size=32)),
        {"moe_intermediate_size": 32},
    ),
    "mixed": (
        "qwen2_moe",
        mixed,
        compressed(
            "mixed-precision",
            {**group(ATTENTION, **FLOAT, strategy="channel"), "format": "float-quantized"},
            {**group(EXPERTS, **INT, strategy="group", group_size=8), "format": "pack-quantized"},
        ),
        {},
    ),
    "modelopt fp8": ("mixtral", every_linear(q.modelopt_fp8), {**MODELOPT, "quant_algo": "FP8"}, {}),
    "modelopt nvfp4": ("mixtral", every_linear(q.modelopt_nvfp4), {**MODELOPT, "quant_algo": "NVFP4"}, {}),
}
