"""The ledger: sums worked by hand, and laws that hold for any model."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moetool.accounting.ledger import Amount, LayerCost, make_ledger
from moetool.model.facts import ModelFacts, MoELayer, ParameterGroup


def make_facts(groups, moe_layers):
    return ModelFacts(
        name="m", revision=None, family="f", source="header", layers=2, hidden_size=8, moe_layers=tuple(moe_layers),
        groups=tuple(groups), tied_head=False, correction_biases=0, copied_parameters=0, quantization=None,
        config_experts=None, zero_experts=0, unknown_dtypes=(),
    )  # fmt: skip


def group(role, layer, parameters, size, dtype="BF16", owner=None):
    return ParameterGroup(role, layer, dtype, parameters, size, owner or role)


GROUPS = [
    group("embedding", None, 100, 200),
    group("lm_head", None, 100, 200),
    group("vision", None, 50, 100),
    group("dense_ffn", 0, 30, 60),
    group("router", 1, 8, 16),
    group("routed_experts", 1, 80, 80, "F8_E4M3"),
    group("quantization", 1, 0, 16, "F32", "routed_experts"),
    group("quantization", 0, 0, 4, "F32", "dense_ffn"),
    group("shared_experts", 1, 10, 20),
    group("mtp", 2, 1000, 2000),
    group("quantization", 2, 0, 8, "F32", "mtp"),
]
FACTS = make_facts(GROUPS, [MoELayer(1, 8, 3, 1)])


def test_sums_by_hand():
    ledger = make_ledger(FACTS)
    assert ledger.total == Amount(100 + 100 + 50 + 30 + 8 + 80 + 10, 2704)
    assert ledger.active_parameters == 100 + 100 + 30 + 8 + 80 * 3 // 8 + 10 == 278
    assert ledger.active_parameters_no_embedding == 178
    assert ledger.active_parameters_no_embedding_no_head == 78
    assert ledger.active_bytes == 200 + 200 + 60 + 4 + 16 + 20 + (80 + 16) * 3 // 8
    assert ledger.parameters("mtp") == 1000
    assert ledger.parameters("norm") == 0
    assert ledger.components["quantization"] == Amount(0, 28)
    assert ledger.dtypes == {"BF16": Amount(1298, 2596), "F8_E4M3": Amount(80, 80), "F32": Amount(0, 28)}


def test_layers_by_hand():
    assert make_ledger(FACTS).layers == (
        LayerCost(0, "dense", 30, 30, 64, None, None),
        LayerCost(1, "moe", 98, 48, 132, 8, 3),
        LayerCost(2, "mtp", 1000, 0, 2008, None, None),
    )


def test_layers_of_different_width_are_scaled_one_by_one():
    layers = [MoELayer(0, 8, 2, 0), MoELayer(1, 4, 1, 0)]
    facts = make_facts([group("routed_experts", 0, 80, 80), group("routed_experts", 1, 80, 80)], layers)
    assert make_ledger(facts).active_parameters == 20 + 20
    assert make_ledger(replace(facts, moe_layers=(layers[0], MoELayer(1, 4, 4, 0)))).active_parameters == 20 + 80


def test_an_unknown_number_of_experts_per_token_gives_no_active_numbers():
    ledger = make_ledger(make_facts(GROUPS, [MoELayer(1, 8, None, 1)]))
    assert ledger.active_parameters is ledger.active_parameters_no_embedding is ledger.active_bytes is None
    assert ledger.total.parameters == 378
    assert [layer.active_parameters for layer in ledger.layers] == [30, None, 0]


def test_a_dense_model_uses_everything():
    ledger = make_ledger(make_facts([group("embedding", None, 5, 10), group("dense_ffn", 0, 7, 14)], []))
    assert ledger.active_parameters == ledger.total.parameters == 12
    assert ledger.active_bytes == ledger.total.bytes == 24


ROLES = st.sampled_from(["embedding", "attention", "routed_experts", "router", "norm", "lm_head", "mtp", "vision"])
ANY_GROUP = st.builds(
    group, ROLES, st.none() | st.integers(0, 3), st.integers(0, 10**12), st.integers(0, 10**13), st.sampled_from("ab")
)


@given(st.lists(ANY_GROUP, max_size=12), st.integers(1, 400), st.integers(1, 400))
def test_tables_add_up_and_conventions_are_ordered(groups, experts, chosen):
    layers = [MoELayer(number, experts, min(chosen, experts), 0) for number in range(4)]
    ledger = make_ledger(make_facts(groups, layers))
    assert sum(amount.bytes for amount in ledger.components.values()) == ledger.total.bytes
    assert sum(amount.bytes for amount in ledger.dtypes.values()) == ledger.total.bytes
    assert sum(layer.bytes for layer in ledger.layers) == sum(g.bytes for g in groups if g.layer is not None)
    assert ledger.active_parameters is not None
    assert ledger.total.parameters >= ledger.active_parameters >= ledger.active_parameters_no_embedding >= 0
    assert ledger.active_parameters_no_embedding >= ledger.active_parameters_no_embedding_no_head >= 0
    every = make_ledger(make_facts(groups, [replace(layer, experts_per_token=experts) for layer in layers]))
    assert every.active_parameters == every.total.parameters - ledger.parameters("vision")
