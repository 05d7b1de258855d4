"""Models that only a config describes: exact counts for published ones, and by hand for a small one."""

import json
import tracemalloc
from pathlib import Path

import pytest

from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from moetool.model.facts import model_facts
from moetool.model.meta import build_meta_model, native_config, plan_checkpoint
from tests.stored import MIXTRAL

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
GOLDEN = CONFIGS / "golden-counts.json"
needs_configs = pytest.mark.skipif(not GOLDEN.is_file(), reason=f"published configs are not at {CONFIGS}")


def plan(config):
    return model_facts(plan_checkpoint(Checkpoint("test", None, config, (), None)), "config")


@needs_configs
def test_published_counts_are_met_exactly():
    golden = json.loads(GOLDEN.read_text())["models"]
    assert len(golden) >= 24
    for name, counts in golden.items():
        facts = plan(json.loads((CONFIGS / f"{name}.json").read_text()))
        ledger = make_ledger(facts)
        found = {
            "total": ledger.total.parameters,
            "active_all": ledger.active_parameters,
            "active_noembed": ledger.active_parameters_no_embedding,
            "active_noembed_nohead": ledger.active_parameters_no_embedding_no_head,
            "tied": facts.tied_head,
        }
        assert found == {key: counts[key] for key in found}, name
        layer = facts.moe_layers[-1]
        assert (layer.experts, layer.experts_per_token) == (counts["E"], counts["K"]), name
        parts = {"embed": "embedding", "lm_head": "lm_head", "routed": "routed_experts", "dense_ffn": "dense_ffn"}
        for part, role in {**parts, "router": "router", "vision": "vision"}.items():
            assert ledger.parameters(role) == counts["comps"].get(part, 0), (name, role)


@needs_configs
@pytest.mark.parametrize(
    ("name", "total"), [("Qwen__Qwen3-8B", 8_190_735_360), ("meta-llama__Meta-Llama-3.1-8B", 8_030_261_248)]
)
def test_dense_models(name, total):
    facts = plan(json.loads((CONFIGS / f"{name}.json").read_text()))
    ledger = make_ledger(facts)
    assert facts.moe_layers == ()
    assert ledger.total.parameters == ledger.active_parameters == total


@needs_configs
def test_a_custom_name_with_keys_of_its_own():
    ledger = make_ledger(plan(json.loads((CONFIGS / "tencent__Hunyuan-A13B-Instruct.json").read_text())))
    assert round(ledger.total.parameters / 1e9, 1) == 80.4
    assert round((ledger.active_parameters or 0) / 1e9) == 13


def test_counts_by_hand():
    # embedding and head 2 x 80; per layer: attention 2 x 64 + 2 x 32, norms 16, router 32, experts 4 x 3 x 32; norm 8
    ledger = make_ledger(plan(MIXTRAL))
    assert ledger.total.parameters == 160 + 2 * (192 + 16 + 32 + 384) + 8 == 1416
    assert ledger.active_parameters == 1416 - 2 * 192
    assert ledger.total.bytes == 2 * 1416


def test_a_known_architecture_under_an_unknown_name():
    assert make_ledger(plan({**MIXTRAL, "model_type": "my_mixtral"})).total.parameters == 1416


def test_an_alias_is_built_natively_and_no_code_is_run(tmp_path, monkeypatch):
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")
    monkeypatch.chdir(tmp_path)
    config = {
        "model_type": "kimi_k2",
        "auto_map": {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"},
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
    }
    native = native_config(config)
    assert type(native).__name__ == "DeepseekV3Config"
    assert [layer.layer for layer in plan(config).moe_layers] == [1]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "never_heard_of"},
        {"model_type": None},
        {},
        {**MIXTRAL, "model_type": "x", "architectures": ["Y"]},
        {"model_type": ["mixtral"], "architectures": None},
    ],
)
def test_unknown_architectures(config):
    with pytest.raises(MoetoolError, match="knows no architecture") as caught:
        plan(config)
    assert "headers" in str(caught.value.hint)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_size": -8}, {"num_hidden_layers": None}]
)
def test_configs_that_build_no_model(change):
    with pytest.raises(MoetoolError, match="cannot build a model"):
        plan({**MIXTRAL, **change})


NESTED: dict[str, object] = {}
for _ in range(2000):
    NESTED = {"nested": NESTED}


def test_a_config_nested_without_end():
    with pytest.raises(MoetoolError, match="cannot build a model of this config: RecursionError"):
        plan({**MIXTRAL, "nested": NESTED})


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -3},
        {"num_local_experts": 10**12},
        {"layer_types": ["full_attention"] * 10**5},
        {"model_type": "gpt2", "n_layer": 10**6},
        {"model_type": "nemotron_h", "hybrid_override_pattern": "ME" * 10**5},
        {"model_type": "qwen3_vl_moe", "vision_config": {"depth": 10**7}},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(change):
    with pytest.raises(MoetoolError, match="are possible"):
        plan({**MIXTRAL, **change})


@pytest.mark.parametrize("named", [5, [5], [{}], ["AutoModel"], ["__builtins__"], "MixtralForCausalLM"])
def test_architectures_may_be_anything(named):
    assert make_ledger(plan({**MIXTRAL, "architectures": named})).total.parameters == 1416


def test_no_weights_are_allocated():
    huge = {
        **MIXTRAL,
        "hidden_size": 8192,
        "intermediate_size": 32768,
        "num_local_experts": 512,
        "num_hidden_layers": 4,
    }
    native_config(huge)
    tracemalloc.start()
    model = build_meta_model(native_config(huge))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(parameter.numel() for parameter in model.parameters()) > 10**12
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert peak < 20e6


def test_experts_that_compute_nothing_have_no_weights():
    config = {
        "model_type": "longcat_flash", "vocab_size": 10, "hidden_size": 64, "ffn_hidden_size": 32, "num_layers": 2,
        "num_attention_heads": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 3, "expert_ffn_hidden_size": 16,
    }  # fmt: skip
    facts = plan(config)
    assert make_ledger(facts).parameters("routed_experts") == 2 * 4 * 3 * 64 * 16
    assert (facts.zero_experts, facts.moe_layers[0].experts) == (2, 4)
    by_default = plan({key: value for key, value in config.items() if key != "zero_expert_num"})
    assert by_default.zero_experts > 0
    assert by_default.moe_layers == facts.moe_layers
