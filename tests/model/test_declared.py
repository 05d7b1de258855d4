"""Bytes that a config declares: published file sizes, worked layouts, and parameters that stay what they are."""

import pytest

from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.types import Checkpoint
from moetool.model.blueprint import blueprint_tensors
from moetool.model.declared import as_declared
from moetool.model.facts import model_facts
from moetool.model.presets import PRESETS, preset_checkpoint
from tests.stored import MIXTRAL

FP8 = {"quant_method": "fp8", "weight_block_size": [4, 4]}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 4}}},
    "ignore": ["lm_head", "re:.*self_attn.*"],
}


def stored(settings):
    config = {**MIXTRAL, "quantization_config": settings}
    tensors = as_declared(blueprint_tensors(config), config)
    return {tensor.name: tensor for tensor in tensors}, model_facts(
        Checkpoint("m", None, config, tensors, None), "config"
    )


def test_gpt_oss_has_the_bytes_of_its_published_files():
    for name, size in (("gpt-oss-120b", 65_248_815_744), ("gpt-oss-20b", 13_761_264_768)):
        checkpoint = preset_checkpoint(name)
        tensors = as_declared(checkpoint.tensors, checkpoint.config)
        assert sum(tensor.size_bytes for tensor in tensors) == size


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "quantization_config" in preset.config])
def test_parameters_stay_what_they_are(name):
    checkpoint = preset_checkpoint(name)
    tensors = as_declared(checkpoint.tensors, checkpoint.config)
    plain, packed = (
        make_ledger(model_facts(Checkpoint(name, None, checkpoint.config, found, None), "config"))
        for found in (checkpoint.tensors, tensors)
    )
    assert packed.total.parameters == plain.total.parameters
    assert packed.active_parameters == plain.active_parameters
    assert packed.total.bytes < plain.total.bytes
    assert packed.parameters("other") == 0


def test_fp8_in_blocks():
    tensors, facts = stored(FP8)
    fused = tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert (fused.dtype, fused.size_bytes) == ("F8_E4M3", 4 * 8 * 8)
    # 4 experts, gate and up of [4, 8] each: one block high, two wide; scales of four bytes
    assert tensors["model.layers.0.mlp.experts.gate_up_proj_scale_inv"].shape == (4, 2, 2)
    assert tensors["model.layers.0.self_attn.k_proj.weight_scale_inv"].shape == (1, 2)
    for plain in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight", "model.norm.weight"):
        assert tensors[plain].dtype == "BF16"
    assert make_ledger(facts).total.parameters == 1416


def test_fp8_without_blocks_has_a_scale_per_matrix():
    tensors, _ = stored({"quant_method": "fp8"})
    assert tensors["model.layers.0.mlp.experts.gate_up_proj_scale_inv"].shape == (4, 2)
    assert tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"].shape == (1,)


def test_packed_integers():
    tensors, facts = stored(INT4)
    packed = tensors["model.layers.0.mlp.experts.down_proj.weight_packed"]
    assert (packed.dtype, packed.shape) == ("I32", (4, 8, 1))  # four inputs of four bits do not fill 32 bits
    assert tensors["model.layers.0.mlp.experts.gate_up_proj.weight_scale"].shape == (4, 8, 2)
    assert tensors["model.layers.0.mlp.experts.gate_up_proj.weight_shape"].shape == (4, 2, 2)
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "BF16"
    assert facts.quantization == "compressed-tensors"


@pytest.mark.parametrize("spared", ["self_attn", "model.layers.*.self_attn", "model.layers.0.self_attn.q_proj"])
def test_modules_that_are_spared(spared):
    tensors, _ = stored({**FP8, "modules_to_not_convert": [spared, 5, None]})
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "BF16"
    assert tensors["model.layers.0.mlp.experts.down_proj"].dtype == "F8_E4M3"


@pytest.mark.parametrize("settings", [{}, None, 5, {"quant_method": "awq"}, {"quant_method": "compressed-tensors"}])
def test_what_is_not_known_is_not_planned(settings):
    config = {**MIXTRAL, "quantization_config": settings}
    assert as_declared(blueprint_tensors(config), config) is None


@pytest.mark.parametrize(
    "spoilt", [{"ignore": ["re:("]}, {"config_groups": 3}, {"config_groups": {"a": None}}, {"ignore": 7}]
)
def test_nonsense_in_the_config_is_survived(spoilt):
    config = {**MIXTRAL, "quantization_config": {**INT4, **spoilt}}
    assert as_declared(blueprint_tensors(config), config)
