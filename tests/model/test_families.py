"""Names: families, aliases and the roles that tensor names stand for."""

import json
from pathlib import Path

import pytest

from moetool.model.families import (
    BUFFER,
    CORRECTION_BIAS,
    experts_per_token_of,
    family_of,
    find,
    indices,
    role_of,
    template,
    to_native,
)

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"

ROLES = {
    "embedding": """
        model.embed_tokens.weight transformer.wte.weight backbone.embeddings.weight shared.weight embed.weight
        model.shared.weight model.language_model.embed_tokens.weight
        model.embed_tokens_per_layer.weight model.embed_tokens.qweight""",
    "lm_head": "lm_head.weight lm_head.qweight head.weight output.weight language_model.lm_head.weight",
    "router": """
        model.layers.0.block_sparse_moe.gate.weight model.layers.3.mlp.gate.weight model.layers.3.mlp.gate.wg.weight
        model.layers.1.mlp.router.weight model.layers.1.mlp.router.bias model.layers.1.feed_forward.router.weight
        transformer.blocks.2.ffn.router.layer.weight model.layers.0.block_sparse_moe.router.layer.weight
        model.layers.4.mlp.gate.e_score_correction_bias model.layers.4.block_sparse_moe.e_score_correction_bias
        model.layers.4.mlp.expert_bias layers.4.ffn.gate.bias model.layers.5.moe.router_bias layers.0.ffn.gate.weight
        model.layers.5.moe.gate.weight backbone.layers.1.mixer.gate.weight model.layers.0.router.proj.weight
        model.layers.0.router.per_expert_scale model.layers.1.mlp.router.gate.weight
        model.layers.1.mlp.moe_statics.e_score_correction_bias decoder.block.1.layer.2.mlp.router.classifier.weight
        model.layers.0.self_attention.experts.router.layer.weight""",
    "routed_experts": """
        model.layers.0.mlp.experts.3.gate_proj.weight model.layers.0.mlp.experts.gate_up_proj
        model.layers.0.mlp.experts.down_proj_blocks model.layers.0.mlp.experts.gate_up_proj_bias
        model.layers.0.block_sparse_moe.experts.7.w1.weight model.layers.0.block_sparse_moe.input_linear.weight
        model.layers.0.block_sparse_moe.output_linear.weight transformer.blocks.0.ffn.experts.mlp.w1
        model.layers.44.moe.gate_proj.weight model.layers.0.mlp.input_linear.weight layers.2.ffn.experts.9.w2.weight
        decoder.block.1.layer.2.mlp.experts.expert_0.wi.weight backbone.layers.1.mixer.experts.0.up_proj.weight
        language_model.model.layers.0.feed_forward.experts.gate_up_proj""",
    "shared_experts": """
        model.layers.3.mlp.shared_experts.gate_proj.weight model.layers.3.mlp.shared_expert.up_proj.weight
        model.layers.3.mlp.shared_expert_gate.weight model.layers.3.share_expert.up_proj.weight
        model.layers.3.mlp.shared_mlp.down_proj.weight model.layers.0.shared_mlp.input_linear.weight
        backbone.layers.1.mixer.shared_experts.up_proj.weight""",
    "attention": """
        model.layers.0.self_attn.q_proj.weight model.layers.0.self_attn.gate_proj.weight model.layers.0.self_attn.sinks
        model.layers.0.self_attn.q_norm.weight model.layers.0.linear_attn.A_log model.layers.0.mamba.in_proj.weight
        backbone.layers.0.mixer.in_proj.weight backbone.layers.5.mixer.q_proj.weight model.layers.0.conv.conv.weight
        transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight layers.0.attn.compressor.gate_proj.weight
        model.layers.0.attention.dense.weight encoder.block.0.layer.0.SelfAttention.q.weight""",
    "dense_ffn": """
        model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.up_proj.weight model.layers.0.mlps.1.down_proj.weight
        backbone.layers.3.mixer.up_proj.weight model.layers.0.feed_forward.w1.weight layers.0.ffn.w1.weight
        encoder.block.0.layer.1.mlp.wi.weight""",
    "norm": """
        model.norm.weight model.layers.0.input_layernorm.weight transformer.norm_f.weight model.final_layernorm.weight
        transformer.blocks.0.norm_attn_norm.norm_1.weight model.layers.0.post_mlp_layernorm.weight
        model.layers.0.mlp.experts.post_expert_norm.weight backbone.layers.0.norm.weight""",
    "mtp": """
        mtp.layers.0.mlp.experts.0.up_proj.weight model.mtp.embed_tokens.weight mtp.fc.weight
        model.mtp_block.0.x.weight""",
    "vision": """
        model.visual.blocks.0.attn.qkv.weight vision_tower.encoder.blocks.0.mlp.fc0.weight mm_projector.proj.0.weight
        multi_modal_projector.linear_1.weight model.audio_tower.layers.0.fc1.weight model.image_newline
        model.layers.1.mlp.vision_moe.experts.0.up_proj.weight model.embed_vision.embedding_projection.weight""",
    "other": "model.layers.0.attn_hc.fn model.layers.0.layer_scalar model.layers.0.post_attention_residual_gate.gate",
}  # fmt: skip


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in ROLES.items() for name in names.split()])
def test_role_of_a_name(role, name):
    assert role_of(template(name)) == role


def test_template_and_indices():
    name = "model.layers.12.mlp.experts.expert_3.w1.weight"
    assert template(name) == "model.layers.#.mlp.experts.#.w1.weight"
    assert list(indices(name)) == [12, 3]
    assert template("layers.0.x") == "layers.#.x"
    assert template("model.conv1d.block2.weight") == "model.conv1d.block2.weight"


def test_only_biases_that_steer_the_choice_are_correction_biases():
    steering = ("mlp.gate.e_score_correction_bias", "mlp.expert_bias", "ffn.gate.bias", "moe.router_bias")
    assert all(CORRECTION_BIAS.search("layers.#." + name) for name in steering)
    learned = ("mlp.router.bias", "mlp.gate_proj.bias", "mlp.shared_expert_gate.bias", "mlp.experts.gate_up_proj_bias")
    assert not any(CORRECTION_BIAS.search("layers.#." + name) for name in learned)
    assert BUFFER.search("model.rotary_emb.inv_freq")
    assert not BUFFER.search("model.layers.#.self_attn.sinks")


@pytest.mark.parametrize(
    ("config", "name", "scoring", "group_score", "engine"),
    [
        ({"model_type": "mixtral"}, "mixtral", "softmax", "top2", "any"),
        ({"model_type": "kimi_k2"}, "deepseek_v3", "sigmoid", "top2", "any"),
        ({"model_type": "deepseek_v2"}, "deepseek_v2", "softmax", "max", "any"),
        ({"model_type": "glm_moe_dsa"}, "glm_moe_dsa", "sigmoid", "top2", "any"),
        ({"model_type": "switch_transformers"}, "switch_transformers", "softmax", "top2", "resident"),
        ({"model_type": "llama4"}, "llama4", "sigmoid", "top2", "any"),
        ({"model_type": "deepseek_v4"}, "deepseek_v4", "sqrtsoftplus", "top2", "any"),
        ({"model_type": "doge"}, "doge", "softmax", "top2", "refused"),
        ({"model_type": "cohere2_moe", "expert_selection_fn": "sigmoid"}, "cohere2_moe", "sigmoid", "top2", "any"),
        ({"model_type": "cohere2_moe", "expert_selection_fn": "softmax"}, "cohere2_moe", "softmax", "top2", "any"),
        ({"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k2"}}, "kimi_k25", "sigmoid", "top2", "any"),
        ({"model_type": "glm4v_moe_text"}, "glm4v_moe_text", "sigmoid", "top2", "any"),
        ({"model_type": "never_heard_of"}, "never_heard_of", "softmax", "top2", "any"),
        ({}, "unknown", "softmax", "top2", "any"),
    ],
)
def test_family_of(config, name, scoring, group_score, engine):
    family = family_of(config)
    assert (family.name, family.scoring, family.group_score, family.engine) == (name, scoring, group_score, engine)
    assert bool(family.reason) == (engine != "any")


def test_refusal_names_the_family():
    assert "family doge cannot be captured: " in family_of({"model_type": "doge"}).reason


def test_config_keys_are_looked_up_where_they_are():
    assert find({"hidden_size": 1, "text_config": {"hidden_size": 2}}, "hidden_size") == 2
    assert find({"hidden_size": 1, "text_config": {"hidden_size": None}}, "hidden_size") == 1
    assert find({"ffn_config": {"moe_num_experts": 16}}, "num_experts", "moe_num_experts") == 16
    assert find({"thinker_config": {"text_config": {"num_experts": 4}}}, "num_experts") == 4
    assert find({"num_experts": None}, "num_experts") is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_experts_per_tok": 2}, 2),
        ({"moe_topk": [6, 8]}, 8),
        ({"ffn_config": {"moe_top_k": 4}}, 4),
        ({"experts_per_token": 4}, 4),
        ({"model_type": "switch_transformers"}, 1),
        ({"model_type": "nllb-moe"}, 2),
        ({"num_experts_per_tok": "2"}, None),
        ({"num_experts_per_tok": True}, None),
        ({}, None),
    ],
)
def test_experts_per_token_of_layer_1(config, expected):
    assert experts_per_token_of(config, 1) == expected


def test_to_native_renames_at_every_level():
    config = {"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k2"}, "layers": [1]}
    native = to_native(config)
    assert native == {"model_type": "kimi_k25", "text_config": {"model_type": "deepseek_v3"}, "layers": [1]}
    assert to_native({"model_type": "hunyuan", "attention_head_dim": 8})["head_dim"] == 8


@pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"published configs are not at {CONFIGS}")
def test_published_configs_say_how_many_experts_a_token_uses():
    golden = json.loads((CONFIGS / "golden-counts.json").read_text())["models"]
    for name, counts in golden.items():
        config = json.loads((CONFIGS / f"{name}.json").read_text())
        assert experts_per_token_of(config, 3) == counts["K"], name


@pytest.mark.parametrize("number", ["9" * 5000, "\u0663"])
def test_numbers_that_no_layer_or_expert_has_are_names(number):
    name = f"model.layers.{number}.mlp.experts.{number}.w1.weight"
    assert (template(name), list(indices(name))) == (name, [])


def test_no_expert_per_token_is_unknown():
    assert experts_per_token_of({"num_experts_per_tok": 0}, 0) is None


def test_text_configs_nested_without_end():
    config: dict[str, object] = {"hidden_size": 8}
    for _ in range(5000):
        config = {"text_config": config}
    assert find(config, "hidden_size") == 8


@pytest.mark.parametrize(
    ("config", "scoring"),
    [
        ({"model_type": "deepseek_v4"}, "sqrtsoftplus"),
        ({"model_type": "deepseek_v4", "scoring_func": "sigmoid"}, "sigmoid"),
        ({"model_type": "inkling2", "scoring_func": "sqrtsoftplus"}, "sqrtsoftplus"),
        ({"model_type": "deepseek_v4", "scoring_func": "tanh"}, "unknown"),
    ],
)
def test_scoring_that_the_config_names(config, scoring):
    assert family_of(config).scoring == scoring
