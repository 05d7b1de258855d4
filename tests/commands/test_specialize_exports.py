"""What specialize hands to other tools: ESFT's config, LoRA targets, the atlas."""

import json
from dataclasses import replace

import numpy as np
import pytest

from moetool.commands.specialize import build_report
from moetool.commands.specialize_exports import PREFERENCE_KEYS, atlas, esft_config, lora_targets
from moetool.errors import MoetoolError
from moetool.model.families import role_of, template
from moetool.model.meta import build_meta_model
from moetool.progress import SilentProgress
from moetool.statistics.selection import select_experts
from moetool.statistics.specialization import analyse
from tests.families import make_config
from tests.statistics.domains import planted_trace

SELECTED = {1: (9, 5), 3: (0,), 4: ()}


def test_expert_config_has_the_layout_that_esft_reads():
    assert esft_config(SELECTED) == (
        b'{"experts": {"1": [9, 5], "3": [0], "4": []}, "shared_experts": false, "non_expert_modules": false}\n'
    )


def test_lora_targets_name_the_layers_with_a_selected_expert():
    targets = json.loads(lora_targets("qwen3_moe", SELECTED))
    assert targets["layers"] == {"1": [5, 9], "3": [0]}
    assert targets["target_modules"] == targets["checkpoint_tensors"] == []
    assert targets["target_parameters"] == [
        "layers.1.mlp.experts.gate_up_proj",
        "layers.1.mlp.experts.down_proj",
        "layers.3.mlp.experts.gate_up_proj",
        "layers.3.mlp.experts.down_proj",
    ]
    assert "adapts all experts of a listed layer" in targets["note"]


@pytest.mark.parametrize(
    "family",
    ["mixtral", "qwen3_5_moe", "jamba", "granitemoehybrid", "gemma4_text", "nemotron_h", "ernie4_5_vl_moe", "kimi_k25"],
)
def test_lora_targets_are_parameters_of_the_model(family):
    """Matched by their ends, as PEFT does, each name is one parameter with a leading axis of experts."""
    parameters = dict(build_meta_model(make_config(family)).named_parameters())
    fused = [
        name for name, tensor in parameters.items() if role_of(template(name)) == "routed_experts" and tensor.dim() == 3
    ]
    numbers = {int(name.split("layers.")[1].split(".")[0]) for name in fused}
    targets = json.loads(lora_targets(family, dict.fromkeys(sorted(numbers), (0,))))["target_parameters"]
    matches = [[name for name in parameters if name.endswith(f".{target}")] for target in targets]
    assert sorted(matches) == sorted([name] for name in fused)


@pytest.mark.parametrize(
    ("family", "message"),
    [("dbrx", "'dbrx' are not fused"), ("unheard_of", "'unheard_of' have no known names"), (None, "None have no")],
)
def test_lora_targets_are_not_guessed(family, message):
    with pytest.raises(MoetoolError, match=message):
        lora_targets(family, SELECTED)


def test_tensors_of_the_checkpoint_hold_selected_experts():
    held = [
        "model.layers.1.mlp.experts.5.gate_proj.weight",
        "model.layers.1.mlp.experts.9.down_proj.weight_scale_inv",
        "model.layers.3.mlp.experts.gate_up_proj",
        "blk.1.ffn_down_exps.weight",
    ]
    others = [
        "model.layers.1.mlp.experts.6.gate_proj.weight",
        "model.layers.2.mlp.experts.5.gate_proj.weight",
        "model.layers.4.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.shared_experts.gate_proj.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.5.self_attn.q_proj.weight",
        "lm_head.weight",
    ]
    targets = json.loads(lora_targets("deepseek_v3", SELECTED, [*held, *others]))
    assert targets["checkpoint_tensors"] == held


@pytest.fixture(scope="module")
def trace():
    """Expert 5 of the second layer is planted in domain 1; weights are known in the first layer only."""
    planted = planted_trace(0, domains=2, documents=32, lifts={(1, 5, 1): 1.9}, concentration=200)
    weight = np.tile([0.75, 0.25], (len(planted.tokens), 1))
    first, *others = planted.layers
    return replace(planted, layers=(replace(first, weight=weight), *others))


@pytest.fixture(scope="module")
def rows(trace):
    return build_report(trace, {"permutations": 500, "bootstraps": 200}).table("specialists").rows


@pytest.fixture(scope="module")
def result(trace):
    return analyse(trace, 0, 500, 200, SilentProgress())


def test_atlas_describes_every_expert(trace, result, rows):
    encoded = atlas(trace, result, rows, {(2, 5): [" the", "\ud800"]})
    content = json.loads(encoded)
    assert list(content) == ["schema", "model", "domains", "tested", "layers"]
    assert content["schema"] == "moetool.atlas/1.0"
    assert content["domains"] == ["domain0", "domain1"]
    assert [layer["layer"] for layer in content["layers"]] == [1, 2, 3]
    for layer in content["layers"]:
        assert layer["experts_per_token"] == 2
        assert [expert["expert"] for expert in layer["experts"]] == list(range(16))
        assert np.mean([expert["use"]["utilization"] for expert in layer["experts"]]) == pytest.approx(1)
        for domain in content["domains"]:
            assert sum(expert["use"]["token_share"][domain] for expert in layer["experts"]) == pytest.approx(2)
    planted = content["layers"][1]["experts"][5]
    assert list(planted) == ["expert", "use", "kinds", "domains", "tokens", "importance"]
    assert planted["use"]["token_share"]["domain1"] > 3 * planted["use"]["token_share"]["domain0"]
    assert planted["tokens"] == [" the", "\ud800"]
    assert content["layers"][1]["experts"][6]["tokens"] == []
    assert atlas(trace, result, rows, {(2, 5): [" the", "\ud800"]}) == encoded


def test_atlas_has_the_confirmed_preferences_of_the_report(trace, result, rows):
    layers = json.loads(atlas(trace, result, rows))["layers"]
    found = {
        (layer["layer"], expert["expert"]): expert["domains"]
        for layer in layers
        for expert in layer["experts"]
        if expert["domains"]
    }
    assert {place: len(domains) for place, domains in found.items()} == {
        (row["layer"], row["expert"]): 1 for row in rows
    }
    [planted] = found[2, 5]
    assert tuple(planted) == PREFERENCE_KEYS
    assert planted["domain"] == "domain1"
    assert 1 < planted["lift_low"] <= planted["lift"] <= planted["lift_high"]
    assert layers[1]["experts"][5]["tokens"] is None


def test_atlas_collects_kinds(trace, result, rows):
    [row] = [row for row in rows if (row["layer"], row["expert"]) == (2, 5)]
    named = [{**row, "kind": kind} for kind in ("pattern", "domain", None, "domain")]
    expert = json.loads(atlas(trace, result, named))["layers"][1]["experts"][5]
    assert expert["kinds"] == ["domain", "pattern"]
    assert [preference["kind"] for preference in expert["domains"]] == ["pattern", "domain", None, "domain"]


def test_importance_is_the_share_of_the_weights(trace, result, rows):
    first, second, _ = json.loads(atlas(trace, result, rows))["layers"]
    keep, chosen = result.sample.keep, trace.layers[0].chosen
    for expert in (0, 7):
        heavy, light = ((chosen[keep, slot] == expert).sum() for slot in (0, 1))
        expected = (0.75 * heavy + 0.25 * light) / keep.sum()
        assert first["experts"][expert]["importance"] == pytest.approx(expected)
    assert {expert["importance"] for expert in second["experts"]} == {None}


def test_untested_lifts_are_no_preferences():
    few = planted_trace(0, domains=2, documents=4, lifts={(1, 5, 1): 1.9})
    options = {"permutations": 100, "bootstraps": 100}
    rows = build_report(few, options).table("specialists").rows
    content = json.loads(atlas(few, analyse(few, 0, 100, 100, SilentProgress()), rows))
    assert rows
    assert content["tested"] is False
    assert not any(expert["domains"] for layer in content["layers"] for expert in layer["experts"])


def test_a_selection_goes_into_both_exports(trace):
    """The planted expert comes first in its domain, and the layer is named by its decoder number."""
    selected = select_experts(trace, "domain1", "token", 0.1)
    assert selected[2][0] == 5
    assert json.loads(esft_config(selected))["experts"]["2"][0] == 5
    assert 5 in json.loads(lora_targets("mixtral", selected))["layers"]["2"]
