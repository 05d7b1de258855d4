"""Names and configs that once misled the inventory: each is a published layout."""

import pytest

from moetool.accounting.kv_cache import CacheOptions, total_cache
from moetool.accounting.traffic import decode_step
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.model.blueprint import blueprint_tensors
from moetool.model.facts import model_facts
from moetool.model.families import role_of
from moetool.model.meta import native_config
from moetool.model.presets import PRESETS

OPTIONS = CacheOptions(40)


def facts_of(shapes, **config):
    tensors = tuple(TensorInfo(name, "BF16", shape, 0, "f") for name, shape in shapes.items())
    return model_facts(Checkpoint("m", None, config, tensors, None))


def encoder_decoder(prefix):
    parts = {"self_attn": "decoder", "encoder_attn": "decoder"}
    shapes = {
        f"{prefix}decoder.layers.{layer}.{part}.{name}_proj.weight": (8, 8)
        for part in parts
        for layer in range(3)
        for name in ("q", "k", "v", "out")
    }
    return shapes | {
        f"{prefix}encoder.layers.{layer}.self_attn.{name}_proj.weight": (8, 8)
        for layer in range(2)
        for name in ("q", "k", "v", "out")
    }


@pytest.mark.parametrize("prefix", ["", "model.", "led.", "model.language_model.", "prophetnet."])
@pytest.mark.parametrize("layers", ["encoder_layers", "encoder_num_hidden_layers", "num_encoder_layers"])
def test_decoders_keep_their_own_and_their_cross_attention(prefix, layers):
    facts = facts_of(
        encoder_decoder(prefix),
        is_encoder_decoder=True,
        d_model=8,
        num_attention_heads=2,
        decoder_layers=3,
        **{layers: 2},
    )
    assert sorted(mixer.kind for mixer in facts.mixers) == ["cross"] * 3 + ["full"] * 3
    assert total_cache(facts.mixers, OPTIONS).cache_bytes == 6 * 2 * 8 * 40 * 2


def test_an_index_of_a_layer_is_no_number_of_layers():
    assert native_config({"model_type": "llava", "vision_feature_layer": -2}).vision_feature_layer == -2


def test_towers_and_scales_by_name():
    assert role_of("qformer.encoder.layer.#.attention.attention.key.weight") == "vision"
    facts = facts_of({"model.layers.0.altup.correct_output_scale": (8,)}, hidden_size=8)
    assert sum(group.parameters for group in facts.groups) == 8


def test_a_recurrence_is_no_attention():
    shapes = {f"rwkv.blocks.0.attention.{name}.weight": (8, 8) for name in ("key", "value", "receptance", "output")}
    facts = facts_of(shapes | {"rwkv.blocks.0.attention.time_decay": (8,)}, hidden_size=8)
    assert facts.mixers == ()


def test_a_step_reads_of_sparse_attention_what_it_chooses():
    """61 layers: all index keys of 128, and 2,048 latents of 576, in two bytes."""
    config = PRESETS["deepseek-v3.2"].config
    facts = model_facts(Checkpoint("v", None, config, blueprint_tensors(config), None), "config")
    step = decode_step(facts, CacheOptions(102_400, 4))
    assert step.cache_bytes == 4 * 61 * 2 * (128 * 102_400 + 576 * 2048)
    assert decode_step(facts, CacheOptions(1024, 1)).cache_bytes == 61 * 2 * (128 + 576) * 1024


def test_what_is_reserved_is_not_read():
    config = PRESETS["gpt-oss-20b"].config
    facts = model_facts(Checkpoint("g", None, config, blueprint_tensors(config), None), "config")
    exact, reserved = (decode_step(facts, CacheOptions(4096, 2, policy=policy)) for policy in ("exact", "reserve"))
    assert exact == reserved
