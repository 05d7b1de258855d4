"""Conventions behind published figures: worked examples, and what rounding and truncation mean."""

from dataclasses import replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.accounting.conventions import Match, active_amounts, describe, matches, total_amounts
from moetool.accounting.ledger import make_ledger
from moetool.model.facts import ParameterGroup
from moetool.model.facts import model_facts as facts_of
from moetool.model.presets import preset_checkpoint

MIXTRAL = {"all": 12_879_925_248, "no-embedding": 12_748_853_248, "no-embedding-no-head": 12_617_781_248}
QWEN3_30B = {"all": 3_353_032_704, "no-embedding": 3_041_867_776, "no-embedding-no-head": 2_730_702_848}
GPT_OSS_120B = {"all": 5_711_982_912, "no-embedding": 5_132_849_472, "no-embedding-no-head": 4_553_716_032}
DEEPSEEK_V3 = {"all": 37_552_297_984, "no-embedding": 36_625_618_944, "no-embedding-no-head": 35_698_939_904}
GLM = {"all": 33_631_743_232, "no-embedding": 32_855_796_992, "no-embedding-no-head": 32_079_850_752}
DEEPSEEK_V3_TOTAL = {"total": 671_026_404_352, "+mtp": 682_636_472_320, "stored": 684_531_386_000}
"""``stored`` has 1,853,358,080 elements of second copies, 41,540,496 scales of FP8 blocks (128 x 128) and 15,104
correction biases more than ``+mtp``. The model card says 685B."""


@pytest.mark.parametrize(
    ("published", "amounts", "expected"),
    [
        ("12.9B", MIXTRAL, [("all", "rounding")]),
        ("13B", MIXTRAL, [(name, "rounding") for name in MIXTRAL]),
        ("12.7B", MIXTRAL, [("no-embedding", "rounding")]),
        ("12B", MIXTRAL, [(name, "truncation") for name in MIXTRAL]),
        ("3.3B", QWEN3_30B, [("all", "truncation")]),
        ("3B", QWEN3_30B, [(name, "rounding") for name in QWEN3_30B]),
        ("5.1B", GPT_OSS_120B, [("no-embedding", "rounding")]),
        ("5.13B", GPT_OSS_120B, [("no-embedding", "rounding")]),
        ("37B", DEEPSEEK_V3, [("all", "truncation"), ("no-embedding", "rounding")]),
        ("32B", GLM, [("no-embedding", "truncation"), ("no-embedding-no-head", "rounding")]),
        ("671B", DEEPSEEK_V3_TOTAL, [("total", "rounding")]),
        ("685B", DEEPSEEK_V3_TOTAL, [("stored", "rounding")]),
        ("684B", DEEPSEEK_V3_TOTAL, [("stored", "truncation")]),
        ("1T", {"total": 1_026_408_232_448}, [("total", "rounding")]),
        ("1026B", {"total": 1_026_408_232_448}, [("total", "rounding")]),
        ("1.0T", {"total": 1_026_408_232_448}, [("total", "rounding")]),
        ("1.1T", {"total": 1_026_408_232_448}, []),
        ("800M", {"all": 882_867_712, "no-embedding": 807_365_632}, []),
        (
            "810M",
            {"all": 809_999_999, "no-embedding": 810_499_999},
            [("all", "rounding"), ("no-embedding", "rounding")],
        ),
        ("7 B", {"all": 6_500_000_000, "no-embedding": 6_499_999_999}, [("all", "rounding")]),
        ("7B", {"all": None}, []),
        ("7B", {}, []),
    ],
)
def test_worked_examples(published, amounts, expected):
    assert matches(published, amounts) == tuple(Match(*match) for match in expected)


@pytest.mark.parametrize(
    ("published", "amounts", "expected"),
    [
        ("37B", DEEPSEEK_V3, "no-embedding"),
        ("3.3B", QWEN3_30B, "all (truncated)"),
        ("13B", MIXTRAL, "all, no-embedding, no-embedding-no-head"),
        ("14B", MIXTRAL, None),
        (None, MIXTRAL, None),
    ],
)
def test_in_words(published, amounts, expected):
    assert describe(published, amounts) == expected


@pytest.mark.parametrize(
    "text", ["", "B", "12.9", "12,9B", "-1B", "12.9b", "1e3B", "12.B", "١B", "12.9B ", "1.0000000000001T"]
)
def test_what_is_no_figure(text):
    with pytest.raises(ValueError, match="no published figure"):
        matches(text, MIXTRAL)


@given(
    st.integers(0, 10**13),
    st.sampled_from([("M", 6), ("B", 9), ("T", 12)]),
    st.integers(0, 3),
    st.sampled_from([ROUND_HALF_UP, ROUND_DOWN]),
)
def test_a_figure_is_recognised_however_it_was_cut(amount, unit, decimals, cut):
    name, exponent = unit
    figure = (Decimal(amount) / 10**exponent).quantize(Decimal(1).scaleb(-decimals), cut)
    found = matches(f"{figure:f}{name}", {"all": amount})
    rounded = (Decimal(amount) / 10**exponent).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    assert found == (Match("all", "rounding" if figure == rounded else "truncation"),)


def facts_with(*groups):
    facts = facts_of(preset_checkpoint("olmoe-1b-7b"), "config")
    return replace(facts, groups=facts.groups + groups)


def test_amounts_of_a_model():
    facts = facts_with()
    ledger = make_ledger(facts)
    embedding = 50304 * 2048
    active = ledger.active_parameters
    assert active_amounts(ledger) == {
        "all": active,
        "no-embedding": active - embedding,
        "no-embedding-no-head": active - 2 * embedding,
    }
    total = ledger.total.parameters
    assert total_amounts(facts, ledger) == {
        "total": total,
        "+mtp": None,
        "+mtp-no-embedding-no-head": None,
        "stored": total,
    }


def test_totals_with_multi_token_prediction_scales_and_copies():
    mtp = ParameterGroup("mtp", 16, "BF16", 1000, 2 * 1400, "mtp")  # 400 of its elements are copies
    scales = ParameterGroup("quantization", 3, "F32", 0, 40, "routed_experts")
    packed = ParameterGroup("routed_experts", 3, "U8", 200, 100, "routed_experts")
    facts = facts_with(mtp, scales, packed)
    ledger = make_ledger(facts)
    base = make_ledger(facts_with()).total.parameters
    assert total_amounts(facts, ledger) == {
        "total": base + 200,
        "+mtp": base + 1200,
        "+mtp-no-embedding-no-head": base + 1200 - 2 * 50304 * 2048,
        "stored": base + 1400 + 10 + 100,
    }
    assert total_amounts(replace(facts, unknown_dtypes=("F3",)), ledger)["stored"] is None


def test_glm_counts_multi_token_prediction_without_embedding_and_head():
    # one more layer with experts (3,935,625,216), a projection of 2 x 5120 to 5120, and three norms of 5120
    facts = facts_of(preset_checkpoint("glm-4.5"), "config")
    mtp = ParameterGroup("mtp", 92, "BF16", 3_988_069_632, 2 * 3_988_069_632, "mtp")
    facts = replace(facts, groups=(*facts.groups, mtp))
    assert describe("355B", total_amounts(facts, make_ledger(facts))) == "+mtp-no-embedding-no-head"
