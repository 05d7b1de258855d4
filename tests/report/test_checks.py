from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import MoetoolError
from moetool.report.checks import evaluate, parse, validate_keys
from moetool.report.report import Check, Column
from tests.report.sample_report import SUMMARY, make_report


def check(text: str, **summary) -> Check:
    report = make_report()
    (outcome,) = evaluate(replace(report, summary={**report.summary, **summary}), [parse(text)])
    return outcome


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("dead_experts > 0", True),
        ("dead_experts>2", True),
        ("  dead_experts   >=3  ", True),
        ("dead_experts > 3", False),
        ("dead_experts < 3", False),
        ("dead_experts <= 3", True),
        ("dead_experts == 3", True),
        ("dead_experts != 3", False),
        ("dead_experts > -1e3", True),
        ("total_bytes > 80 GiB", True),
        ("total_bytes > 80GiB", True),
        ("total_bytes > 87 GiB", False),
        ("total_bytes > 93 GB", True),
        ("total_bytes > 94 GB", False),
        ("total_bytes > 1.5 B", True),
        ("total_parameters > 46 B", True),
        ("total_parameters > 47B", False),
        ("total_parameters < 47000M", True),
        ("tokens < 124 k", True),
        ("sparsity > 25%", True),
        ("sparsity > 0.28", False),
        ("sparsity >= 30 %", False),
    ],
)
def test_checks_by_hand(text, failed):
    outcome = check(text)
    assert outcome.failed is failed
    assert outcome.expression == text


FLOPS = (Column("flops_per_token", "FLOPs per token", "flops"), Column("fits", "Fits", "text"))


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("flops_per_token > 25 G", True),
        ("flops_per_token > 25.76G", False),
        ("flops_per_token < 0.1 T", True),
        ("flops_per_token > 1 P", False),
        ("flops_per_token > 25000 M", True),
        ("flops_per_token == 25759850496", True),
        ("fits == 0", True),
        ("fits != 0", False),
    ],
)
def test_checks_of_work_and_of_yes_or_no(text, failed):
    report = replace(make_report(), summary_columns=FLOPS, summary={"flops_per_token": 25_759_850_496, "fits": False})
    (outcome,) = evaluate(report, [parse(text)])
    assert outcome.failed is failed


def test_the_message_of_a_check_of_work():
    report = replace(make_report(), summary_columns=FLOPS, summary={"flops_per_token": 25_759_850_496, "fits": None})
    first, second = evaluate(report, [parse("flops_per_token > 1 G"), parse("fits == 0")])
    assert first.message == "flops_per_token is 25759850496 (25.76 GFLOP)"
    assert second.failed
    assert second.value is None


@pytest.mark.parametrize("unit", ["GiB", "kB", "%"])
def test_work_is_measured_in_no_bytes(unit):
    with pytest.raises(MoetoolError, match="is measured in flops"):
        validate_keys([parse(f"flops_per_token > 1 {unit}")], FLOPS)


def test_messages_say_the_value():
    assert check("dead_experts > 0").message == "dead_experts is 3"
    assert check("total_bytes > 1").message == "total_bytes is 93405585408 (86.99 GiB)"
    assert check("tokens > 1").message == "tokens is 123456"


def test_an_undefined_value_fails():
    outcome = check("z_loss > 100")
    assert outcome.failed
    assert outcome.value is None
    assert "undefined" in outcome.message


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("", 1, "summary key"),
        ("> 3", 1, "summary key"),
        ("dead_experts", 13, "one of > >= < <= == !="),
        ("dead_experts = 3", 14, "one of > >= < <= == !="),
        ("dead_experts >> 3", 15, "a number"),
        ("dead_experts > many", 16, "a number"),
        ("dead_experts > nan", 16, "a number"),
        ("dead_experts > 3 furlongs", 18, "units"),
        ("dead_experts > 3 % 4", 20, "the end"),
        ("中文 > 3", 1, "summary key"),
        ("a \x1b[31m> 3", 3, "one of"),
    ],
)
def test_a_mistake_is_pointed_at(text, column, expected):
    with pytest.raises(MoetoolError) as caught:
        parse(text)
    message, restated, pointer = caught.value.message.split("\n")
    assert message.endswith(f"at column {column}")
    assert expected in message
    assert pointer == " " * pointer.index("^") + "^"
    assert "\x1b" not in restated
    assert "--fail-if" in caught.value.hint


def test_too_large_a_number():
    with pytest.raises(MoetoolError, match="too large"):
        parse("tokens > 1e999")


def test_the_title_of_a_key_leads_to_it():
    with pytest.raises(MoetoolError) as caught:
        validate_keys([parse("router Entropy  > 3")], SUMMARY)
    assert caught.value.hint == "did you mean router_entropy?"


def test_floats_are_written_exactly_only_where_it_matters():
    assert evaluate(make_report(), [parse("router_entropy > 3")])[0].message == "router_entropy is 2.014 nats"
    near = evaluate(make_report(), [parse("router_entropy > 2.0144")])[0].message
    assert near == "router_entropy is 2.0143 (2.014 nats)"


def test_unknown_keys_list_the_valid_ones():
    with pytest.raises(MoetoolError, match="it has tokens, dead_experts") as caught:
        validate_keys([parse("dead_expert > 0")], ["tokens", "dead_experts"])
    assert caught.value.hint == "did you mean dead_experts?"
    validate_keys([parse("tokens > 0")], ["tokens"])


@pytest.mark.parametrize("text", ["dead_experts > 3 GiB", "total_bytes > 3 %", "total_bytes > 3 M", "sparsity > 3 k"])
def test_units_that_do_not_belong_are_refused_early(text):
    with pytest.raises(MoetoolError, match="is measured in"):
        validate_keys([parse(text)], SUMMARY)


def test_text_cannot_be_compared():
    report = replace(make_report(), summary_columns=(Column("kind", "Kind", "text"),), summary={"kind": "moe"})
    with pytest.raises(MoetoolError, match="is the text moe"):
        evaluate(report, [parse("kind > 1")])


@given(st.text())
def test_any_text_is_parsed_or_refused_with_a_message(text):
    with suppress(MoetoolError):
        assert parse(text).text == text


SPACE = st.sampled_from(["", " ", "  "])


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    st.integers(-5, 5),
    SPACE,
    SPACE,
)
def test_every_number_and_operator_means_what_python_means(limit, sign, value, before, after):
    outcome = check(f"dead_experts{before}{sign}{after}{limit!r}", dead_experts=value)
    assert outcome.failed is eval(f"{value} {sign} {limit!r}")
