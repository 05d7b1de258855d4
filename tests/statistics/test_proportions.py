"""Intervals of proportions near 1: by hand, at the ends, and how often they hold the truth."""

import numpy as np
import pytest

from moetool.statistics.proportions import score_interval
from moetool.statistics.student import student_quantile


def test_by_hand():
    """Wilson's interval of 9 of 10, where the clusters vary as independent counts do."""
    error = np.sqrt(0.9 * 0.1 / 10)
    assert score_interval(0.9, error, 1.96, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert score_interval(0.9, error / 5, 1.96, 10) == pytest.approx(score_interval(0.9, error, 1.96, 10))


def test_it_is_the_t_interval_where_counts_abound():
    assert score_interval(0.4, 0.001, 2.0, 1e9) == pytest.approx((0.398, 0.402), abs=1e-5)


@pytest.mark.parametrize(("value", "ends"), [(1.0, (1 / (1 + 4 / 100), 1.0)), (0.0, (0.0, 1 - 1 / (1 + 4 / 100)))])
def test_no_failure_in_100_counts_is_no_certainty(value, ends):
    assert score_interval(value, 0.0, 2.0, 100) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("truth", "tokens", "least"), [(0.99, 25, 0.95), (0.999, 25, 0.95), (0.99, 200, 0.95), (0.9, 200, 0.93)]
)
def test_it_holds_the_truth_where_a_t_interval_does_not(truth, tokens, least):
    """Eight documents whose rates differ a little (intraclass correlation 0.005), as bfloat16 and float32 do."""
    random = np.random.default_rng(0)
    groups, runs = 8, 1000
    quantile = float(student_quantile(groups - 1.0))
    held = np.zeros(2)
    for _ in range(runs):
        rates = random.beta(truth * 199, (1 - truth) * 199, groups)
        same = random.binomial(tokens, rates)
        value = same.sum() / (groups * tokens)
        error = float(np.sqrt((((same / tokens - value) / groups) ** 2).sum() * groups / (groups - 1)))
        low, high = score_interval(value, error, quantile, groups * tokens)
        held += [low <= truth <= high, abs(value - truth) <= quantile * error]
    assert held[0] / runs >= least
    assert truth < 0.95 or held[1] < held[0]
