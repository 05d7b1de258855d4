"""The causal check: estimates by hand, controls, verdicts, and how often a verdict is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.statistics.causal import GroupRises, causal_effect, group_rises, pick_controls, student_quantile


def make_rises(per_token, tokens=None):
    """``per_token [V, D, G]`` rises of equally many groups in each domain."""
    per_token = np.asarray(per_token, dtype=float)
    domains, groups = per_token.shape[1:]
    tokens = np.full(domains * groups, 10.0) if tokens is None else tokens
    names = tuple(f"d{index}" for index in range(domains))
    return GroupRises(
        names, np.repeat(np.arange(domains), groups), tokens, per_token.reshape(len(per_token), -1) * tokens
    )


def flat(*levels, groups=8, wobble=0.01):
    """``[D, G]`` rises at given levels; half of the groups lie above, half below."""
    return [[level + wobble * (-1) ** group for group in range(groups)] for level in levels]


CONTROLS = [flat(level, 0.0) for level in (0.0, 0.02, 0.04, 0.06)]


def verdict(target, controls=CONTROLS):
    rises = make_rises([target, *controls])
    return causal_effect(rises, 0, range(1, 1 + len(controls)), 0).verdict


def test_groups_add_up_their_documents():
    rises = group_rises(
        ["law", "code", "law", "law", "law"],
        ["a", "a", "b", "a", "b"],
        np.array([10, 20, 30, 40, 0]),
        np.array([1.0, 2.0, 3.0, 1.5, np.nan]),
        np.array([[1.5, 2.0, 2.9, 1.6, np.nan]]),
    )
    assert rises.domains == ("law", "code")
    assert rises.domain.tolist() == [0, 1, 0], "group a of law is not group a of code"
    assert rises.tokens.tolist() == [50, 20, 30]
    np.testing.assert_allclose(rises.nats, [[10 * 0.5 + 40 * 0.1, 0, 30 * -0.1]])


def test_estimates_by_hand():
    """Eight groups, rises 0.3 and 0.5 by turns: mean 0.4, squared residuals of totals 8 (0.1 x 10)^2 = 8."""
    rises = make_rises([flat(0.4, 0.1, 0.0, wobble=0.1), *[flat(c, 0, 0) for c in (0.0, 0.1, 0.2, 0.3)]])
    effect = causal_effect(rises, 0, [1, 2, 3, 4], 0)
    own, error = effect.rises[0], np.sqrt(8 * 8 / 7) / 80
    assert own.value == pytest.approx(0.4)
    assert own.high - own.value == pytest.approx(2.3646 * error, rel=1e-3), "t of 7 degrees of freedom"
    assert effect.beyond_others.value == pytest.approx(0.4 - (0.1 + 0.0) / 2)
    degrees = (1 + 1 / 4 + 1 / 4) ** 2 / ((1 + 1 / 16 + 1 / 16) / 7)
    half = effect.beyond_others.high - effect.beyond_others.value
    assert half == pytest.approx(student_quantile(degrees, 0.95) * error * 1.5**0.5)
    assert effect.beyond_controls.value == pytest.approx(0.4 - 0.15)
    spread = np.std([0, 0.1, 0.2, 0.3], ddof=1) * (1 + 1 / 4) ** 0.5
    assert effect.beyond_controls.high - effect.beyond_controls.value == pytest.approx(5.841 * spread, rel=0.01)


def test_a_rise_is_per_token_not_per_group():
    tokens = np.array([30.0, *[10.0] * 7, *[10.0] * 8])
    rises = make_rises([[[1.0, *[0.0] * 7], [0.0] * 8]], tokens)
    assert causal_effect(rises, 0, [], 0).rises[0].value == pytest.approx(30 / 100)


def test_verdicts():
    assert verdict(flat(0.5, 0.1)) == "confirmed"
    assert verdict(flat(0.5, 0.5)) == "refuted", "the other domain suffers as much"
    assert verdict(flat(0.5, 0.8)) == "refuted", "it suffers more"
    assert verdict(flat(-0.2, -0.5)) == "refuted", "the domain is better off without"
    tight = [flat(level, 0.0) for level in (0.49, 0.50, 0.50, 0.51)]
    assert verdict(flat(0.5, 0.0), tight) == "refuted", "any expert of the layer does as much"
    assert verdict(flat(0.5, 0.1, wobble=2.0)) == "unclear", "groups differ too much"
    loose = [flat(level, 0.0) for level in (0.0, 0.0, 0.0, 0.5)]
    assert verdict(flat(0.5, 0.1), loose) == "unclear", "experts differ too much"


def test_too_little_to_tell():
    assert verdict(flat(0.5, 0.1), CONTROLS[:3]) == "unclear"
    assert verdict(flat(0.5, 0.1), []) == "unclear"
    few = make_rises([flat(0.5, 0.1, groups=7), *[flat(c, 0, groups=7) for c in (0, 0.01, 0.02, 0.03)]])
    effect = causal_effect(few, 0, [1, 2, 3, 4], 0)
    assert effect.verdict == "unclear"
    assert effect.rises[0].low is None
    assert effect.beyond_others.low is None


@pytest.mark.parametrize("kind", ["nothing", "all domains alike", "normal experts", "few important experts"])
def test_experts_or_domains_that_are_alike_are_confirmed_at_most_5_percent_of_the_time(kind):
    trials, controls, rng = 600, 6, np.random.default_rng(0)
    confirmed = 0
    for _ in range(trials):
        effect = np.zeros((controls + 1, 3))
        if kind == "all domains alike":
            effect[0] = 0.3
        elif kind == "normal experts":
            effect[:, 0] = rng.normal(0.5, 0.1, controls + 1)
        elif kind == "few important experts":
            effect[:, 0] = rng.exponential(0.3, controls + 1)
        noise = rng.gamma(2, 0.5, (controls + 1, 3, 10))
        per_token = effect[:, :, None] * noise + 0.05 * rng.standard_t(4, noise.shape)
        rises = make_rises(per_token, rng.integers(50, 500, 30).astype(float))
        confirmed += causal_effect(rises, 0, range(1, controls + 1), 0).verdict == "confirmed"
    assert confirmed / trials <= 0.05


def test_a_real_specialist_is_confirmed():
    rng = np.random.default_rng(1)
    effect = rng.exponential(0.03, (7, 3))
    effect[0, 0] = 0.5
    per_token = effect[:, :, None] * rng.gamma(4, 0.25, (7, 3, 10)) + 0.02 * rng.standard_normal((7, 3, 10))
    assert causal_effect(make_rises(per_token), 0, range(1, 7), 0).verdict == "confirmed"
    assert causal_effect(make_rises(per_token), 0, range(1, 7), 1).verdict == "refuted", "it is no specialist of d1"


@given(st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_a_verdict_depends_on_no_unit(scale, seed):
    """Multiplying all rises by one number changes no verdict, and estimates by that number."""
    per_token = np.random.default_rng(seed).exponential(1, (6, 2, 8)) * [[[5]], *[[[1]]] * 5]
    plain = causal_effect(make_rises(per_token), 0, range(1, 6), 0)
    scaled = causal_effect(make_rises(per_token * scale), 0, range(1, 6), 0)
    assert scaled.verdict == plain.verdict
    assert scaled.beyond_others.low == pytest.approx(plain.beyond_others.low * scale)


@pytest.mark.parametrize(("degrees", "level", "expected"), [(7, 0.95, 2.3646), (30, 0.95, 2.0423), (5, 0.99, 4.0321)])
def test_quantiles_of_the_tables(degrees, level, expected):
    assert student_quantile(degrees, level) == pytest.approx(expected, rel=2e-3)


def test_controls_have_a_load_like_the_target():
    counts = np.array([1000, 90, 100, 110, 5, 120, 0, 80, 2000, 95])
    drawn = [pick_controls(counts, 2, 2, np.random.default_rng(seed), {9}) for seed in range(50)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert {expert for pair in drawn for expert in pair} == {1, 3, 5, 7}, "the four nearest, not the excluded one"
    assert pick_controls(counts, 2, 20, np.random.default_rng(0)) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert pick_controls(np.array([3]), 0, 4, np.random.default_rng(0)) == []
